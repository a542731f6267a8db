"""A fault gets the cases of the tier, no more and no less, and a trial ends at its last witness or its last case."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import operators, plan, tiers
from harness.case import AnyCase
from harness.context import GROUPS
from harness.faults import injection, model, schedule, trial
from harness.faults.verdict import Settings, Verdict
from harness.isolation import suite
from harness.subjects import registered
from tests.faults.test_injection import FAULT

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter's tier; a GPU's own is `sluicegate faults`"
)

CATALOGUE = model.load()
HARMLESS = replace(FAULT, replace=FAULT.find + "  # nothing is wrong here")


def a_fault(operator: str) -> model.Fault:
    registered_targets = {subject.target for subject in registered(operator)}
    return next(f for f in CATALOGUE if f.operator == operator and f.subject in registered_targets)


def verify_gives(fault: model.Fault, tier: str) -> dict[tuple[str, str], int]:
    """(property, dtype) -> cases of the fault's subject in a plain ``sluicegate verify --tier``."""
    asked = plan.Plan((fault.operator,), (), tier, GROUPS, "cpu", seed=0, out="")
    cells = plan.cells(asked, fault.operator, suite(fault.operator).PROPERTIES)
    return {
        (p.name, planned.spec.dtype): planned.spec.examples
        for p, planned in cells
        if planned.spec.target == fault.subject and not planned.not_run
    }


@pytest.mark.parametrize("tier", tiers.TIERS)
@pytest.mark.parametrize("operator", list(operators.OPERATORS))
def test_every_cell_gets_the_cases_that_verify_gives_it(operator: str, tier: str) -> None:
    fault = a_fault(operator)
    got: Counter[tuple[str, str]] = Counter()
    for planned in schedule.cells(fault, fault.subject, "cpu", 5, tier):
        got[planned.prop.name, planned.spec.dtype] += planned.spec.examples
    assert dict(got) == verify_gives(fault, tier)


def test_quick_leaves_out_what_verify_leaves_out() -> None:
    names = {t: {p.name for p in schedule.allotment(a_fault("conv_prefill"), "cpu", t)} for t in ("quick", "premerge")}
    assert names["premerge"] - names["quick"] == set(tiers.NOT_QUICK)


def test_what_only_a_gpu_shows_comes_soon() -> None:
    properties = sorted(suite("gdn_prefill").PROPERTIES, key=schedule.priority)
    only_gpu = [place for place, prop in enumerate(properties) if prop.devices == ("cuda",)]
    others = [place for place, prop in enumerate(properties) if "cpu" in prop.devices and prop.group != "equivalence"]
    assert only_gpu
    assert max(only_gpu) < min(others)


def test_it_goes_wide_before_it_goes_deep() -> None:
    fault = a_fault("conv_prefill")
    planned = list(schedule.cells(fault, fault.subject, "cpu", 5, "premerge"))
    wanted = {p.name for p in schedule.allotment(fault, "cpu", "premerge")} - set(schedule.LAST)
    opening = [p.prop.name for p in planned[: len(wanted)]]
    assert sorted(opening) == sorted(wanted)
    assert max(p.spec.examples for p in planned[: len(wanted)]) <= schedule.ROUNDS[0] * schedule.MOST_WEIGHT
    # Within a round, and over rounds, dtypes take turns; no two cells begin with the same seed.
    assert {p.spec.dtype for p in planned[: len(wanted)]} == {"float32", "float16", "bfloat16"}
    assert len({p.spec.seed for p in planned}) == len(planned)
    # One cell is never so long that nobody looks at the clock.
    assert max(p.spec.examples for p in planned) <= schedule.ROUNDS[-1] * schedule.MOST_WEIGHT


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier of next to no cases, so that using them up takes a moment."""
    monkeypatch.setitem(tiers.CASES["premerge"]["cpu"], "chunk_metadata", 10)


def judge(fault: model.Fault, folder: Path, **changes: object) -> Verdict:
    """A trial in this process."""
    settings = replace(Settings("cpu", 5, folder), **changes)  # type: ignore[arg-type]
    with injection.injected(fault, folder) as target:
        return trial.run(fault, target, settings)


@pytest.mark.usefixtures("small")
def test_what_uses_up_the_cases_of_the_tier_has_survived(tmp_path: Path) -> None:
    verdict = judge(HARMLESS, tmp_path)
    allotted = schedule.allotment(HARMLESS, "cpu", "premerge")
    assert (verdict.status, verdict.exhausted, verdict.notes) == ("survived", True, [])
    # A case may be several comparisons, and some enumerate by themselves.
    assert verdict.cases >= sum(cases for of in allotted.values() for cases in of.values())


@pytest.mark.usefixtures("small")
def test_the_time_limit_is_an_upper_bound_and_said(tmp_path: Path) -> None:
    verdict = judge(HARMLESS, tmp_path, time_limit=0.0)
    assert (verdict.status, verdict.exhausted, verdict.cases) == ("survived", False, 0)
    assert verdict.notes == ["out of time after 0 s, in equivalence"]


@pytest.mark.usefixtures("small")
def test_witnesses_are_different_properties_and_the_trial_ends_with_the_last_one_wanted(tmp_path: Path) -> None:
    verdict = judge(FAULT, tmp_path, witnesses=2)
    assert (verdict.status, verdict.exhausted, len(verdict.witnesses)) == ("killed", False, 2)
    first, second = verdict.witnesses
    assert first.property != second.property
    assert first.seconds <= second.seconds
    assert first.cases < second.cases
    assert (verdict.seconds, verdict.cases) == (first.seconds, first.cases)


@pytest.mark.usefixtures("small")
def test_who_kills_alone_is_known_when_the_cases_are_used_up(tmp_path: Path) -> None:
    unchecked = next(f for f in CATALOGUE if f.id == "chunk-size-zero-accepted")
    verdict = judge(replace(unchecked, subject=FAULT.subject), tmp_path, witnesses=2)
    assert [w.property for w in verdict.witnesses] == ["bad_arguments"]
    assert (verdict.status, verdict.exhausted) == ("killed", True)


@pytest.mark.usefixtures("small")
def test_a_property_is_a_witness_once(tmp_path: Path) -> None:
    verdict = judge(FAULT, tmp_path, witnesses=99)
    names = [w.property for w in verdict.witnesses]
    assert len(names) == len(set(names)) > 2
    assert (verdict.status, verdict.exhausted) == ("killed", True)


@pytest.mark.usefixtures("small")
def test_shrinking_stops_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[object] = []
    judge_one = trial.TrialCell.judge

    def counted(cell: trial.TrialCell, one: AnyCase) -> None:
        judged.append(one)
        judge_one(cell, one)

    monkeypatch.setattr(trial.TrialCell, "judge", counted)
    # Needs several sequences, so that there is much to try.
    fault = next(f for f in CATALOGUE if f.id == "chunk-host-offsets-overwritten")
    verdict = judge(fault, tmp_path, shrink_seconds=0.0)
    assert verdict.status == "killed"
    # The failing case, and the one that was refused; Hypothesis alone would go on for hundreds.
    assert len(judged) <= verdict.cases + 2
