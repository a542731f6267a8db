"""A run is stored question by question, goes on after a crash, and is refused where it is not what it should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accuracy.outcome import Writer, load, versions
from tests.accuracy.runs import answered, info


def written(path: Path, count: int, questions: int = 10) -> None:
    with Writer(path, info(questions)) as writer:
        for index in range(count):
            writer.add(answered(index))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.jsonl"
    with Writer(path, info(3, versions={"torch": "2.11"})) as writer:
        writer.add(answered(2, text="wéird \u2028 text\n", truncated=True))
        writer.add(answered(0, right=False))
        kept = writer.run
    assert load(path) == kept
    assert list(kept.outcomes) == [0, 2]
    assert not kept.complete
    assert kept.outcomes[2].truncated
    assert kept.info.date
    assert (kept.accuracy(), load(path).outcomes[0].right) == (0.0, False)


def test_empty_answer_and_disagreement() -> None:
    assert answered(1, text=" \n").empty
    other = answered(1, text="it is 1")
    assert (other.empty, other.right, other.right_flexible) == (False, False, True)


LONG = '{"index": 4, "answer": "' + 5000 * "x"


@pytest.mark.parametrize("torn", ["", '{"index": 4, "prom', '{"index"', "é", LONG])
def test_goes_on_behind_a_torn_line(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "run.jsonl"
    written(path, 4)
    with path.open("ab") as file:
        file.write(torn.encode()[:-1] if torn == "é" else torn.encode())
    assert len(load(path).outcomes) == 4
    with Writer(path, info(10)) as writer:
        assert writer.missing == [4, 5, 6, 7, 8, 9]
        for index in writer.missing:
            writer.add(answered(index))
    uninterrupted = tmp_path / "other.jsonl"
    written(uninterrupted, 10)
    assert load(path).outcomes == load(uninterrupted).outcomes
    assert path.read_bytes().count(b"\n") == 11
    assert path.read_bytes().endswith(b"}\n")
    assert load(path).complete


def test_torn_before_the_first_line_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"format": 1, "ta')
    written(path, 2)
    assert len(load(path).outcomes) == 2


def test_killed_process_loses_nothing_done(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    program = (
        "import os, signal, sys\n"
        "from accuracy.outcome import Writer\n"
        "from tests.accuracy.runs import answered, info\n"
        "writer = Writer(sys.argv[1], info(10))\n"
        "for index in range(7):\n    writer.add(answered(index))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", program, str(path)], env={**os.environ, "PYTHONPATH": str(root)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(load(path).outcomes) == list(range(7))


def test_run_of_something_else_does_not_go_on(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    written(path, 2)
    with pytest.raises(ValueError, match="begun with kernels 'references', and is now to go on with 'optimized'"):
        Writer(path, info(10, kernels="optimized"))
    with pytest.raises(ValueError, match="begun with questions 10"):
        Writer(path, info(11))


def test_question_is_answered_once(tmp_path: Path) -> None:
    with Writer(tmp_path / "run.jsonl", info(2)) as writer:
        writer.add(answered(0))
        with pytest.raises(ValueError, match="index: got 0"):
            writer.add(answered(0))
        with pytest.raises(ValueError, match="index: got 2"):
            writer.add(answered(2))
    with pytest.raises(ValueError, match="is closed"):
        writer.add(answered(1))


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    written(path, 3)
    lines = path.read_text().splitlines()

    def refused(number: int, text: str | None, message: str) -> None:
        changed = [*lines]
        changed[number - 1 : number] = [] if text is None else [text]
        path.write_text("\n".join(changed) + "\n")
        with pytest.raises(ValueError, match=message):
            load(path)

    first, second = json.loads(lines[0]), json.loads(lines[1])
    refused(1, json.dumps({**first, "format": 0}), "not of format 1")
    refused(1, json.dumps({**first, "cache": "tepid"}), 'line 1: cache: got \'tepid\', expected "cold" or "warm"')
    refused(2, "nonsense", "line 2 is not JSON")
    refused(2, "[1]", "line 2: got list")
    refused(2, lines[2], "line 3: question 1 a second time")
    refused(2, json.dumps({**second, "index": 10}), "line 2: question 10, expected 0 to 9")
    refused(2, json.dumps({**second, "index": True}), "line 2: index is True, expected int")
    refused(2, json.dumps({**second, "mark": 1}), "line 2: got mark, which no Outcome has")
    refused(2, json.dumps({k: v for k, v in second.items() if k != "right"}), "line 2: .*'right'")
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        load(path)
    with pytest.raises(ValueError, match="cannot read"):
        load(tmp_path / "none.jsonl")


def test_versions_say_what_is_missing() -> None:
    assert versions("pytest", "no-such-package-anywhere")["no-such-package-anywhere"] == "not installed"
