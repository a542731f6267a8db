"""Known failures do not fail a run, unexpected passes do, entries of nothing warn, and an entry needs its tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.case import Case
from harness.cell import CellResult, CellSpec
from harness.failure import FailureRecord
from harness.ledger import Ledger
from harness.plan import Plan
from harness.report import model
from harness.verification import Outcome

TRACKER = "https://tracker.example/7"


def result(status: str, prop: str = "equivalence") -> CellResult:
    spec = CellSpec("conv_update", "mine", "my.kernels:update", prop, "cpu", "float32", 10, 0)
    failure = None
    if status == "failed":
        case = Case(operator="conv_update", sequences=(), dims={"D": 1, "W": 4}).to_json()
        failure = FailureRecord("conv_update", "mine", prop, "over budget", "far off", case, "a row", "cpu", "float32")
    return CellResult(spec, status, cases=10, failure=failure)


ID = result("failed").failure.id  # type: ignore[union-attr]


def load(folder: Path, text: str) -> Ledger:
    (folder / "known.yaml").write_text(text)
    return Ledger.load(folder / "known.yaml")


def report(ledger: Ledger, *results: CellResult) -> dict[str, Any]:
    plan = Plan(("conv_update",), (), "quick", ("equivalence",), "cpu", 0, "out")
    return model.build(plan, Outcome(list(results)), ledger, command="x", started="now", workers=1)


def test_known_failure_does_not_fail_the_run(tmp_path: Path) -> None:
    built = report(load(tmp_path, f"- id: {ID}\n  tracker: {TRACKER}\n"), result("failed"))
    assert model.exit_status(built) == 0
    assert [c["status"] for c in built["cells"]] == ["known_failure"]
    assert (built["failures"], built["summary"]["known_failures"]) == ([], 1)
    assert [e["tracker"] for e in built["ledger"]["matched"]] == [TRACKER]


def test_without_the_ledger_it_fails() -> None:
    built = report(Ledger(), result("failed"))
    assert model.exit_status(built) == 1
    assert [f["id"] for f in built["failures"]] == [ID]


def test_another_failure_beside_it_fails_the_run(tmp_path: Path) -> None:
    ledger = load(tmp_path, f"- id: {ID}\n  tracker: {TRACKER}\n")
    built = report(ledger, result("failed"), result("failed", "repeated"))
    assert model.exit_status(built) == 1
    assert [f["property"] for f in built["failures"]] == ["repeated"]


def test_unexpected_pass_fails_the_run(tmp_path: Path) -> None:
    built = report(load(tmp_path, f"- id: {ID}\n  tracker: {TRACKER}\n"), result("passed"))
    assert model.exit_status(built) == 1
    assert [c["status"] for c in built["cells"]] == ["unexpected_pass"]
    assert [e["id"] for e in built["ledger"]["unexpected_passes"]] == [ID]
    assert built["ledger"]["unmatched"] == []


def test_entry_that_matches_nothing_warns(tmp_path: Path) -> None:
    built = report(load(tmp_path, f"- id: conv_update-gone-00000000\n  tracker: {TRACKER}\n"), result("passed"))
    assert model.exit_status(built) == 0
    assert [e["id"] for e in built["ledger"]["unmatched"]] == ["conv_update-gone-00000000"]


def test_a_ledger_of_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "").entries == ()
    assert Ledger.load(None).entries == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"- id: {ID}\n", "expected id, tracker"),
        (f"- id: {ID}\n  tracker: issue 7\n", "expected id, tracker"),
        (f"- tracker: {TRACKER}\n", "expected id, tracker"),
        (f"- id: {ID}\n  tracker: {TRACKER}\n  until: never\n", "expected id, tracker"),
        ("id: x\n", "holds a dict, expected a list"),
        ("- just a word\n", "expected id, tracker"),
        ("- id: [unclosed\n", "not YAML"),
    ],
)
def test_bad_ledger_is_wrong_usage(tmp_path: Path, text: str, message: str) -> None:
    """`sluicegate verify` turns the ValueError into exit status 2."""
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)
