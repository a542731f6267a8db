"""`ci/choose_faults.py` covers what kills something, prefers what is fast and real, and keeps to its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ci import choose_faults
from harness.faults import model

LINK = "https://example.org/thread"


def fault(name: str, operator: str, prop: str, seconds: float, source: str = "own") -> dict[str, Any]:
    witnesses = [{"property": prop}, {"property": "second"}]
    return {
        "id": name,
        "operator": operator,
        "source": source,
        "status": "killed",
        "seconds": seconds,
        "witnesses": witnesses,
    }


FAULTS = [
    fault("slow", "conv", "equivalence", 9.0),
    fault("fast", "conv", "equivalence", 1.0),
    fault("lonely", "conv", "high_slot", 12.0),
    fault("elsewhere", "norm", "equivalence", 3.0),
    # Three times as slow is still preferred where it has happened.
    fault("real", "norm", "equivalence", 6.0, LINK),
    fault("real-too", "norm", "equivalence", 7.0, LINK),
    {**fault("alive", "norm", "repeated", 1.0), "status": "survived", "witnesses": []},
]


def choose(folder: Path, *arguments: str) -> int:
    path = folder / "faults.json"
    path.write_text(json.dumps({"faults": FAULTS}))
    return choose_faults.main([str(path), *arguments])


def test_everything_that_kills_is_covered_by_the_cheapest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(tmp_path, "--seconds", "28") == 0
    (tmp_path / "list.txt").write_text(capsys.readouterr().out)
    assert model.listed(tmp_path / "list.txt") == ["fast", "lonely", "real"]


def test_real_faults_fill_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(tmp_path, "--seconds", "60") == 0
    (tmp_path / "list.txt").write_text(capsys.readouterr().out)
    assert model.listed(tmp_path / "list.txt") == ["fast", "lonely", "real", "real-too"]


def test_what_cannot_be_covered_in_time_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(tmp_path, "--seconds", "20") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3 faults cover everything and take 25 s, expected some and at most 20 s" in captured.err


def test_the_list_of_the_premerge_job_names_faults_of_every_operator() -> None:
    ids = model.listed(Path(choose_faults.__file__).with_name("premerge_faults.txt"))
    chosen = model.select(model.load(), ids=ids)
    assert {f.operator for f in chosen} == {f.operator for f in model.load()}
    # What the job's device cannot show would check nothing.
    assert [f.id for f in chosen if "cpu" not in f.tiers] == []
