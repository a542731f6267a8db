"""The command: what it prints and refuses, its exit status, and a run that is killed half way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from accuracy import tasks
from accuracy.outcome import Run, Writer, load
from harness.cli import build
from tests.accuracy import models
from tests.accuracy.runs import answered, info, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight short questions, whose answers are short."""
    path = tmp_path_factory.mktemp("questions") / "short.jsonl"
    asked = tuple(tasks.Asked(f"Question: {n}?\nAnswer:", f"#### {n}", most_tokens=8) for n in range(8))
    tasks.save(tasks.Task("short", "1", asked), path)
    return path


def call(*words: object) -> Result:
    return CliRunner().invoke(build(), ["accuracy", *map(str, words)])


def stored(path: Path, marks: Run) -> Path:
    with Writer(path, marks.info) as writer:
        for one in marks.outcomes.values():
            writer.add(one)
    return path


def report(out: Path) -> Any:
    return json.loads((out / "report.json").read_text())


def test_two_kernel_sets_cold_and_warm(folder: Path, questions: Path, tmp_path: Path) -> None:
    result = call(
        *("--model", folder, "--task", questions, "--kernels", "oracle", "--against", "references", "--device", "cpu"),
        *("--passes", "cold,warm", "--concurrency", 3, "--out", tmp_path, "--save-baseline", tmp_path / "base.jsonl"),
        *("--told", 2),
    )
    assert result.exit_code == 3, result.output
    assert "8 questions, compared one by one" in result.output
    assert result.output.index("false alarms") < result.output.index("references, cold:")
    found = report(tmp_path)
    assert [one["name"] for one in found["runs"]] == ["references, cold", "oracle, cold", "oracle, warm"]
    assert [(one["new"], one["baseline"]) for one in found["comparisons"]] == [
        ("oracle, cold", "references, cold"),
        ("oracle, warm", "references, cold"),
    ]
    assert all(one["same_text"] == 8 for one in found["comparisons"])
    assert found["verdict"] == "too little power to say"
    assert found["tokens"]["questions"] == 2
    assert found["tokens"]["agreement"] == 1.0
    assert found["tokens"]["worst_kl"] < 1e-9
    page = (tmp_path / "report.html").read_text()
    assert "made to say 2 worked solutions" in page
    assert page.count("<svg") == 2
    assert "<script" not in page
    assert "too little power to say" in (tmp_path / "report.md").read_text()
    # What it stored is a baseline for another call, and of the same questions only.
    words = ("--model", folder, "--task", questions, "--kernels", "oracle", "--device", "cpu")
    again = call(*words, "--baseline", tmp_path / "base.jsonl", "--out", tmp_path / "again")
    assert again.exit_code == 3, again.output
    assert report(tmp_path / "again")["comparisons"][0]["baseline"] == "base.jsonl: oracle, cold"
    fewer = call(*words, "--baseline", tmp_path / "base.jsonl", "--limit", 3, "--out", tmp_path / "fewer")
    assert fewer.exit_code == 2
    assert "its questions is 8, asked for is 3" in fewer.output


def test_a_killed_run_goes_on_to_the_same_report(folder: Path, questions: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of each of the three passes, a torn line, then to the end."""

    def process(out: Path) -> subprocess.Popen[bytes]:
        words = ["accuracy", "--model", folder, "--task", questions, "--kernels", "oracle", "--against", "references"]
        words += ["--passes", "cold,warm", "--concurrency", 1, "--device", "cpu", "--out", out]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "harness.cli", *map(str, words)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    whole = process(tmp_path / "whole")
    _, errors = whole.communicate(timeout=240)
    assert whole.returncode == 3, errors
    broken = tmp_path / "broken"
    for name in ("references-cold", "oracle-cold", "oracle-warm"):
        path = broken / "runs" / f"{name}.jsonl"
        one = process(broken)
        until = time.monotonic() + 120
        while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
            assert one.poll() is None, one.communicate()[1]
            assert time.monotonic() < until, f"{name} has not begun"
            time.sleep(0.002)
        one.send_signal(signal.SIGKILL)
        one.communicate()
        assert len(load(path).outcomes) < 8, "it was too quick to be killed half way"
        with path.open("ab") as file:
            file.write(b'{"index": 7, "ans')
    last = process(broken)
    _, errors = last.communicate(timeout=240)
    assert last.returncode == 3, errors

    def timeless(out: Path) -> Any:
        found = report(out)
        del found["command"]
        for one in found["runs"]:
            del one["date"]
        return found

    assert timeless(broken) == timeless(tmp_path / "whole")


@pytest.mark.parametrize(
    ("lost", "code", "verdict"),
    [(0, 0, "as before"), (9, 1, "regression"), (4, 3, "too little power to say")],
)
def test_exit_status_of_stored_runs(tmp_path: Path, lost: int, code: int, verdict: str) -> None:
    old = stored(tmp_path / "old.jsonl", run([True] * 500))
    new = stored(tmp_path / "new.jsonl", run([False] * lost + [True] * (500 - lost)))
    result = call("--compare", old, new, "--out", tmp_path / "out")
    assert result.exit_code == code, result.output
    assert report(tmp_path / "out")["verdict"] == verdict
    assert verdict in result.output


def test_what_is_quoted_cannot_break_the_page(tmp_path: Path) -> None:
    old = stored(tmp_path / "old.jsonl", run([True] * 3))
    bad = "<script>alert(1)</script>\x1b[2J ```"
    marks = {index: answered(index, False, text=bad) for index in range(3)}
    new = stored(tmp_path / "new.jsonl", Run(info(3), marks))
    result = call("--compare", old, new, "--out", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "\x1b" not in page
    assert (tmp_path / "report.md").read_text().count("```") == 2
    assert result.exit_code == 3


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "expected one of --model FOLDER, --base-url URL"),
        (("--model", "a", "--base-url", "http://b"), "expected one of --model"),
        (("--model", "nowhere"), "nowhere has no config.json"),
        (("--model", "MODEL", "--passes", "hot"), "expected cold, warm or cold,warm"),
        (("--model", "MODEL", "--task", "arc"), "got 'arc', expected one of miniature, gsm8k"),
        (("--model", "MODEL", "--baseline", "a", "--against", "references"), "got several"),
        (("--model", "MODEL", "--against", "oracle", "--kernels", "oracle"), "the same, expected two sets"),
        (("--model", "MODEL", "--baseline", "none.jsonl"), "cannot read none.jsonl"),
        (("--model", "MODEL", "--published", "nobody"), "expected one of "),
        (("--model", "MODEL", "--kernels", "slow", "--limit", "1"), "got 'slow', expected one of references"),
        (("--model", "MODEL", "--told", "3"), "expected --against KERNELS"),
        (("--base-url", "localhost:8000"), "expected http://host:port/v1"),
        (("--base-url", "http://127.0.0.1:9", "--against", "oracle"), "with a server or a library use --baseline"),
    ],
)
def test_wrong_usage_is_named(folder: Path, tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    result = call(*(folder if word == "MODEL" else word for word in words), "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert complaint in result.output
    assert not (tmp_path / "report.json").exists()


def test_a_run_of_something_else_is_not_continued(folder: Path, questions: Path, tmp_path: Path) -> None:
    words = ("--model", folder, "--task", questions, "--kernels", "oracle", "--device", "cpu", "--out", tmp_path)
    assert call(*words).exit_code == 0
    other = call(*words, "--concurrency", 2)
    assert other.exit_code == 2
    assert "was begun with concurrency 32, and is now to go on with 2" in other.output
    # The same again asks nobody.
    before = (tmp_path / "runs" / "oracle-cold.jsonl").read_bytes()
    assert call(*words).exit_code == 0
    assert (tmp_path / "runs" / "oracle-cold.jsonl").read_bytes() == before


def test_exported_questions_are_the_same_task(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    assert call("--limit", 5, "--export", path).exit_code == 0
    assert tasks.read(path) == tasks.load("miniature", limit=5)
    assert tasks.load(str(path), limit=2).asked == tasks.miniature().asked[:2]
    path.write_text(path.read_text() + '{"prompt": 1}\n')
    with pytest.raises(ValueError, match=r"line 7: expected prompt, target, until, most_tokens"):
        tasks.read(path)
