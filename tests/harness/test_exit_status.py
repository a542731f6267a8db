"""How a run ends: what did not run is not passed, what failed is not forgotten, and the exit status says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import interpreter, tiers, verification
from harness.case import Case
from harness.cell import CellResult, CellSpec
from harness.failure import SYMPTOMS, FailureRecord, failure_id
from harness.isolation import suite
from harness.ledger import Ledger
from harness.plan import Plan, cells
from harness.report import model
from harness.subjects import Subject
from harness.verification import Outcome
from tests.harness.support import target

SUBJECT = Subject("conv_update", "mine", target("conv_update", "right"))
PLAN = Plan(("conv_update",), (SUBJECT,), "premerge", ("equivalence",), "cpu", 0, "out", cases=6)


def result(status: str, prop: str = "equivalence", reason: str = "") -> CellResult:
    spec = CellSpec("conv_update", "mine", SUBJECT.target, prop, "cpu", "float32", 10, 0)
    failure = None
    if status == "failed":
        case = Case(operator="conv_update", sequences=(), dims={"D": 1, "W": 4}).to_json()
        failure = FailureRecord("conv_update", "mine", prop, "over budget", "far off", case, "a row", "cpu", "float32")
    return CellResult(spec, status, cases=0 if status == "not_run" else 10, reason=reason, failure=failure)


PASSED = result("passed")
FAILED = result("failed", "repeated")
DISTRUSTED = result("not_run", "sequences_permuted", "cannot be trusted")
UNCLAIMED = result("not_run", "slots_renamed", "does not take it (not required)")

ENDS: dict[str, tuple[list[CellResult], list[str], int]] = {
    "all held": ([PASSED], [], 0),
    "what is not claimed did not run": ([PASSED, UNCLAIMED], [], 0),
    "one failed": ([PASSED, FAILED], [], 1),
    "one failed and one did not run": ([PASSED, FAILED, DISTRUSTED], [], 1),
    "something required did not run": ([PASSED, DISTRUSTED], [], 3),
    "an error of the harness": ([PASSED], ["collection of a suite"], 3),
    "nothing at all": ([], [], 3),
    "nothing but what is not claimed": ([UNCLAIMED], [], 3),
}


@pytest.mark.parametrize("end", ENDS)
def test_exit_status(end: str) -> None:
    results, errors, status = ENDS[end]
    report = model.build(PLAN, Outcome(results, errors), Ledger(), command="x", started="now", workers=1)
    assert model.exit_status(report) == status
    summary = report["summary"]
    for name in ("passed", "failed", "not_run"):
        assert summary[name] == sum(r.status == name for r in results)
    assert summary["required_not_run"] == (DISTRUSTED in results) + len(errors)
    assert summary["cells"] == len(results)


def test_the_symptom_is_part_of_a_failures_name() -> None:
    ids = {failure_id("conv_update", "mine", "equivalence", "float32", "cpu", symptom) for symptom in SYMPTOMS}
    assert len(ids) == len(SYMPTOMS)


# -- what gives no result ---------------------------------------------------------------------------------------------


def test_cells_that_gave_no_result_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that end in peace without having judged anything."""
    monkeypatch.setattr(verification.pytest, "main", lambda *_, **__: pytest.ExitCode.OK)
    plan = Plan(**{**vars(PLAN), "out": str(tmp_path)})
    outcome = verification.run(plan, workers=1, listener=lambda _: None)
    wanted = [planned.spec.key for _, planned in cells(plan, "conv_update", suite("conv_update").PROPERTIES)]
    assert len(wanted) >= 3
    assert outcome.errors == [f"{key}: the run ended without a result for it" for key in wanted]


def test_a_suite_that_is_not_collected_is_an_error(tmp_path: Path) -> None:
    controller = verification._Controller(PLAN, lambda _: None, tmp_path / "events.jsonl")
    report: Any = SimpleNamespace(failed=True, nodeid="test_conv_update.py", longreprtext="SyntaxError")
    controller.pytest_collectreport(report)
    controller.events.close()
    assert controller.outcome.errors == ["collection of test_conv_update.py\nSyntaxError"]


# -- what is planned --------------------------------------------------------------------------------------------------


def test_what_cannot_be_trusted_is_required_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "probe", lambda: {"bfloat16": "planted distrust"})
    planned = [planned for _, planned in cells(PLAN, "conv_update", suite("conv_update").PROPERTIES)]
    assert {p.spec.dtype for p in planned} == {"float32", "float16", "bfloat16"}
    for one in planned:
        distrusted = one.spec.dtype == "bfloat16"
        assert (one.not_run, one.required) == ("planted distrust" if distrusted else "", True)
        assert (one.spec.examples > 0) != distrusted


@pytest.mark.parametrize("total", [1, 10, 100, 1000])
def test_every_cell_gets_cases(total: int) -> None:
    """Hypothesis begins with the plainest case of all: with one or two, a cell would have looked at nothing else."""
    shares = [tiers.Share(6.0, None), *[tiers.Share(0.25, None)] * 20, tiers.Share(1.0, 2)]
    counts = tiers.distribute(total, shares)
    assert min(counts[:-1]) >= 6
    assert counts[-1] == 2
    assert sum(counts) >= total
