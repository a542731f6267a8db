"""A subject that hangs, dies or raises is a recorded failure with its case, and everything else still runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.harness.support import SUBJECTS, Run, invoke, verify

pytestmark = pytest.mark.slow

#: A body, how the report must call it, and a word of the message. `{two}`: the smallest batch that shows it has two rows.
TWO = "x.dtype == torch.float32 and x.shape[0] >= 2"
DEATHS = {
    "hangs": (f"if {TWO}: time.sleep(3600)", "hung", "no answer within"),
    "segfaults": (f"if {TWO}: ctypes.string_at(0)", "crashed", "SIGSEGV"),
    # More than a pipe holds, on both streams: no hang, and no garbled answer.
    "exits": (
        f"print('o' * 200_000); os.write(2, b'e' * 200_000)\n    if {TWO}: os._exit(3)",
        "crashed",
        "exit code 3",
    ),
    "raises": (f"if {TWO}: raise OverflowError('two rows')", "raised", "OverflowError"),
}
REPAIRED = dict.fromkeys(DEATHS, ("assert x.dim() == 2", "", ""))


def write_subjects(folder: Path, bodies: dict[str, Any]) -> None:
    source = f"""
import ctypes, importlib.util, os, time
import torch
spec = importlib.util.spec_from_file_location("planted_right", {str(SUBJECTS / "right.py")!r})
right = importlib.util.module_from_spec(spec)
spec.loader.exec_module(right)
"""
    for name, (body, *_) in bodies.items():
        source += f"\ndef {name}(x, weight, **rest):\n    {body}\n    return right.conv_update(x, weight, **rest)\n"
    (folder / "subject.py").write_text(source)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run over all of them, and over an operator whose subjects are all right."""
    folder = tmp_path_factory.mktemp("isolation")
    write_subjects(folder, DEATHS)
    given = [part for name in DEATHS for part in ("--subject", f"conv_update=subject.py:{name}")]
    return verify(
        *("conv_update", "chunk_metadata", *given, "--properties", "equivalence"),
        *("--cases", "60", "--case-timeout", "4", "--workers", "2"),
        cwd=folder,
    )


def of_equivalence(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the properties in the group, the one by that name: the others find the same."""
    return [entry for entry in entries if entry["property"] == "equivalence"]


def failure_of(done: Run, death: str) -> dict[str, Any]:
    found = [f for f in of_equivalence(done.report["failures"]) if f["subject"].endswith(f":{death}")]
    assert [f["dtype"] for f in found] == ["float32"], [f["message"] for f in found]
    return found[0]


def test_the_run_finishes(done: Run) -> None:
    assert done.status == 1, done.stderr
    assert done.report["errors"] == []
    assert len(of_equivalence(done.report["failures"])) == len(DEATHS)
    for cell in done.report["cells"]:
        dies = cell["operator"] == "conv_update" and cell["dtype"] == "float32"
        assert cell["status"] == ("failed" if dies else "passed"), cell
        assert cell["cases"] >= 1
    assert {c["operator"] for c in done.report["cells"]} == {"conv_update", "chunk_metadata"}
    assert len(of_equivalence(done.cells(operator="conv_update"))) == 3 * len(DEATHS)


@pytest.mark.parametrize("death", DEATHS)
def test_death_is_a_recorded_failure(done: Run, death: str) -> None:
    _, symptom, word = DEATHS[death]
    failure = failure_of(done, death)
    assert failure["symptom"] == symptom
    assert word in failure["message"]
    assert json.loads((done.out / "failures" / f"{failure['id']}.json").read_text()) == failure
    rows = len(failure["case"]["sequences"])
    # Hangs stay as drawn: each look at one costs the whole time limit. All else is shrunk, a dead process notwithstanding.
    assert rows >= 2 if symptom == "hung" else rows == 2, failure["sentence"]
    assert failure["replay"].startswith("sluicegate replay ")


def test_the_stack_of_a_hang_is_kept(done: Run) -> None:
    assert "in hangs" in failure_of(done, "hangs")["details"]


@pytest.mark.parametrize("death", DEATHS)
def test_replay(done: Run, death: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = tmp_path / "failure.json"
    recorded.write_text(json.dumps(failure_of(done, death)))
    monkeypatch.chdir(done.out.parent)
    again = invoke("replay", str(recorded), "--timeout", "5")
    assert (again.status, "failed as recorded" in again.stdout) == (1, True), again.stdout + again.stderr

    monkeypatch.chdir(tmp_path)
    write_subjects(tmp_path, REPAIRED)
    fixed = invoke("replay", str(recorded))
    assert (fixed.status, "fixed" in fixed.stdout) == (0, True), fixed.stdout + fixed.stderr


def test_replay_tells_another_failure_apart(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = tmp_path / "failure.json"
    recorded.write_text(json.dumps(failure_of(done, "raises")))
    monkeypatch.chdir(tmp_path)
    write_subjects(tmp_path, {"raises": ("weight = weight * 2",)})
    again = invoke("replay", str(recorded))
    assert again.status == 1
    assert "failed differently: recorded was 'raised'" in again.stdout


def test_nothing_is_left_behind(done: Run) -> None:
    """The sleeper's processes are gone with the run."""
    mine = str(done.out.parent)
    alive = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = os.readlink(process / "cwd")
        except OSError:
            continue  # ended meanwhile, or another user's
        if where.startswith(mine):
            alive.append((process / "cmdline").read_text())
    assert alive == []
