"""Faults from end to end: killed by the property that should, and reported when nothing kills them."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from harness import interpreter
from harness.cell import Cell, CellSpec
from harness.cli import build
from harness.context import Context
from harness.failure import fail
from harness.faults import matrix, model, runner, schedule, trial
from harness.faults.injection import AnchorError
from harness.faults.verdict import Settings, Verdict
from harness.isolation import find_property
from tests.faults.test_injection import FAULT

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter's tier; a GPU's own is `sluicegate faults`"
)

#: A quick fault of each operator, and one of each kind of property.
QUICK = {
    "chunk-host-physical-indices": "wrong metadata",
    "chunk-hints-hidden-sync": "host sync",
    "step-flags-only-ever-set": "wrong metadata",
    "prefill-silu-omitted": "over budget",
    "update-variant-per-batch": "recompiles",
    "decode-inactive-rows-not-written": "inactive row not zero",
    # Far beyond its buffer: carried out, it damaged the trial's own process, which died, or stumbled somewhere else.
    "norm-end-of-a-program-taken-for-the-end-of-the-tensor": "out of bounds",
    "route-more-experts-than-there-are-accepted": "not rejected",
}


def run(faults: list[model.Fault], folder: Path, seconds: float = 60.0, witnesses: int = 1) -> list[Verdict]:
    seen: list[Verdict] = []
    settings = Settings("cpu", 1, folder / "trials", seconds, witnesses=witnesses)
    verdicts = runner.run(faults, settings, workers=2, listener=seen.append)
    assert sorted(v.fault.id for v in seen) == sorted(v.fault.id for v in verdicts)
    return verdicts


def symptom(verdict: Verdict) -> str:
    return verdict.first.symptom if verdict.first else ""


def test_quick_faults_are_killed(tmp_path: Path) -> None:
    verdicts = run(model.select(model.load(), ids=QUICK), tmp_path)
    assert {v.fault.id: (v.status, symptom(v)) for v in verdicts} == {n: ("killed", s) for n, s in QUICK.items()}
    assert matrix.exit_status(verdicts) == 0
    for verdict in verdicts:
        assert verdict.first
        assert verdict.first.sentence
        assert verdict.seconds <= verdict.total_seconds


def test_a_change_without_an_effect_survives(tmp_path: Path) -> None:
    harmless = replace(FAULT, replace=FAULT.find + "  # nothing is wrong here")
    (verdict,) = run([harmless], tmp_path, seconds=2.0)
    assert (verdict.status, verdict.witnesses) == ("survived", [])
    assert verdict.cases > 5
    assert not verdict.exhausted
    assert matrix.exit_status([verdict]) == 1
    assert matrix.summary([verdict])["score"] == 0.0


def test_what_fails_without_the_fault_proves_nothing_about_it() -> None:
    """A path of before the optimizations copies its inputs, fault or no fault."""
    interpreter.repair()  # as shipped it copies tensors itself
    subject, prop = "optimized.baselines:conv_update", find_property("conv_update", "no_copies_beside_the_kernel")
    spec = CellSpec("conv_update", "planted", subject, prop.name, "cpu", "float32", 3, 0)
    result = Cell(spec, prop).run()
    assert result.failure is not None
    planned = schedule.Planned(prop, spec)
    fault = replace(FAULT, operator="conv_update", subject=subject, module="optimized.baselines")
    assert not trial._holds_without(fault, planned, result)
    healthy = replace(fault, subject="optimized.causal_conv:conv_update", module="optimized.causal_conv")
    assert trial._holds_without(healthy, planned, result)


def test_a_process_that_dies_is_a_kill_with_its_case(tmp_path: Path) -> None:
    deadly = replace(FAULT, replace=".sub_(opened), __import__('os').abort()")
    (verdict,) = run([deadly], tmp_path)
    assert (verdict.status, symptom(verdict)) == ("killed", "crashed")
    assert "SIGABRT" in verdict.message
    assert verdict.first
    assert "chunk size" in verdict.first.sentence


def test_a_trial_whose_process_died_goes_on_to_its_next_witness(tmp_path: Path) -> None:
    deadly = replace(FAULT, replace=".sub_(opened), __import__('os').abort()")
    (verdict,) = run([deadly], tmp_path, witnesses=2)
    first, second = verdict.witnesses
    assert (first.property, first.symptom, second.symptom) == ("equivalence", "crashed", "crashed")
    assert second.property != first.property
    assert first.seconds < second.seconds


def test_a_fault_that_cannot_be_loaded_is_an_error_not_a_kill(tmp_path: Path) -> None:
    broken = replace(FAULT, replace=".sub_(opened), chunk_offsets +")
    (verdict,) = run([broken], tmp_path)
    assert verdict.status == "error"
    assert "SyntaxError" in verdict.message
    assert matrix.exit_status([verdict]) == 1


def test_an_error_is_shown_with_the_place_where_it_was_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line of many says no more than AssertionError."""
    try:
        assert not FAULT
    except AssertionError:
        verdict = Verdict(FAULT, "error", message=traceback.format_exc())
    matrix.show(Console(width=200), [verdict])
    shown = capsys.readouterr().out
    assert "test_trials.py" in shown
    assert "assert not FAULT" in shown


def test_a_trial_whose_memory_ran_out_proves_nothing(tmp_path: Path) -> None:
    """Not that the fault survives: the property that found no room may be the one that finds it."""
    full = "(_ for _ in ()).throw(__import__('torch').OutOfMemoryError('CUDA out of memory.'))"
    (verdict,) = run([replace(FAULT, replace=f".sub_(opened), {full}")], tmp_path, seconds=5.0)
    assert (verdict.status, verdict.witnesses) == ("error", [])
    assert "--workers" in verdict.message


CHANGED = "optimized.causal_conv:conv_update"


def only(monkeypatch: pytest.MonkeyPatch, **bodies: Callable[..., None]) -> None:
    """A trial of CHANGED meets these properties of conv_update, with other bodies, and no others."""
    planned = [
        schedule.Planned(
            replace(find_property("conv_update", name), body=body),
            CellSpec("conv_update", "planted", CHANGED, name, "cpu", "float32", 2, 0),
        )
        for name, body in bodies.items()
    ]
    monkeypatch.setattr(schedule, "cells", lambda *_: iter(planned))


def full(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("other", [full, lambda *_: None])
def test_a_property_that_found_no_room_leaves_open_who_else_finds_it(
    other: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def finds(context: Context, _: Any) -> None:
        if context.target == CHANGED:
            fail("over budget", "far off")

    only(monkeypatch, equivalence=finds, repeated=other)
    fault = replace(FAULT, operator="conv_update", subject="optimized.baselines:conv_update")
    verdict = trial.run(fault, CHANGED, Settings("cpu", 1, tmp_path, witnesses=2))
    assert (verdict.status, [w.property for w in verdict.witnesses]) == ("killed", ["equivalence"])
    assert verdict.exhausted is (other is not full)


def test_a_kernel_that_is_none_stays_that_where_memory_ran_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: Any) -> None:
        fail("raised", "conv_update raised CompilationError at 3: no such thing")

    only(monkeypatch, equivalence=full, repeated=refused)
    generated = replace(FAULT, operator="conv_update", span=model.Span(1, 0, 1, 1))
    verdict = trial.run(generated, CHANGED, Settings("cpu", 1, tmp_path))
    assert verdict.status == "invalid"
    assert "no valid kernel" in verdict.message


def test_what_the_tier_cannot_see_is_said_and_does_not_count(tmp_path: Path) -> None:
    elsewhere = replace(FAULT, tiers=("cuda",), reason="It needs a GPU.")
    (verdict,) = run([elsewhere], tmp_path)
    assert (verdict.status, verdict.message) == ("unseen", "It needs a GPU.")
    assert matrix.summary([verdict])["score"] is None
    # It does not count beside others; alone, it leaves nothing known.
    assert matrix.exit_status([verdict, Verdict(FAULT, "killed")]) == 0
    assert matrix.exit_status([verdict]) == 3
    assert matrix.conclusion([verdict], 1.0, "cpu").startswith("No fault counts on cpu")


def test_an_ambiguous_anchor_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match="times in"):
        run([replace(FAULT, find="chunk_offsets")], tmp_path)
    assert not (tmp_path / "trials").exists()


def test_the_command_writes_the_matrix(tmp_path: Path) -> None:
    name = "chunk-host-offsets-overwritten"
    arguments = ["faults", "--device", "cpu", "--fault", name, "--seed", "3", "--out", str(tmp_path)]
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == 0, result.output
    assert "1 of 1 faults killed on cpu by the premerge tier" in result.output
    report = json.loads((tmp_path / "faults.json").read_text())
    assert report["summary"]["score"] == 1.0
    (fault,) = report["faults"]
    assert (fault["id"], fault["status"], fault["witnesses"][0]["property"]) == (name, "killed", "equivalence")


def test_a_list_is_searched_for_the_faults_of_an_operator(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("prefill-initial-state-ignored\nengine-slot-freed-twice\n")
    # By its name as well: it is tried once.
    arguments = ["--fault", "engine-slot-freed-twice", "--list", str(tmp_path / "list.txt"), "--operator", "engine"]
    arguments += ["--seed", "3", "--out", str(tmp_path)]
    result = CliRunner().invoke(build(), ["faults", "--device", "cpu", *arguments])
    assert result.exit_code == 0, result.output
    (fault,) = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert fault["id"] == "engine-slot-freed-twice"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fault", "no-such-fault"], "got no-such-fault, which are no faults here"),
        (["--operator", "no_such_operator"], "no_such_operator"),
        (["--operator", "engine", "--fault", "prefill-initial-state-ignored"], "expected faults of engine"),
        (["--operator", "engine", "--only-generated", "--generated", "3"], "no generated fault of engine"),
        (["--operator", "engine", "--generated", "3"], "no generated fault of engine"),
        (["--operator", "engine", "--judging"], "--judging: got --device, --operator too"),
        (["--list", "LIST", "--operator", "moe"], "got no fault of moe"),
    ],
)
def test_a_choice_that_leaves_out_what_is_asked_for_is_wrong_usage(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("prefill-initial-state-ignored\nengine-abort-leaks\n")
    arguments = [str(tmp_path / "list.txt") if one == "LIST" else one for one in arguments]
    result = CliRunner().invoke(build(), ["faults", "--device", "cpu", *arguments])
    assert result.exit_code == 2
    assert "sluicegate faults:" in result.output
    assert words in result.output
