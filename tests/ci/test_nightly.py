"""The nightly script: what it hands on, and that its exit status is the verdict's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "ci" / "nightly.sh"


def nightly(folder: Path, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script with a Python that only says how it was called."""
    fake = folder / "python"
    fake.write_text(f'#!/bin/sh\necho "called: $*"\nexit {code}\n')
    fake.chmod(0o755)
    return subprocess.run(
        ["bash", str(SCRIPT), *words, "--out", str(folder / "out")]
        if "--" not in words
        else ["bash", str(SCRIPT), *words],
        env=os.environ | {"PYTHON": str(fake), "SLUICEGATE_BASELINES": str(folder)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_model_and_baseline_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "models" / "big").mkdir(parents=True)
    (tmp_path / "big-gsm8k.jsonl").touch()
    models = str(tmp_path / "models")
    done = nightly(tmp_path, "--model", "big", SLUICEGATE_MODELS=models)
    assert done.returncode == 0, done.stderr
    assert f"accuracy --model {models}/big --task gsm8k --passes cold,warm" in done.stdout
    assert f"--baseline {tmp_path}/big-gsm8k.jsonl" in done.stdout
    words = (
        "--model",
        "big",
        "--new-baseline",
        "--baseline",
        "monday",
        "--out",
        str(tmp_path / "o"),
        "--",
        "--limit",
        "5",
    )
    new = nightly(tmp_path, *words, SLUICEGATE_MODELS=models)
    assert f"--save-baseline {tmp_path}/monday.jsonl --limit 5" in new.stdout
    server = nightly(tmp_path, "--base-url", "http://x/v1", "--task", "miniature", "--new-baseline")
    assert "accuracy --base-url http://x/v1 --task miniature" in server.stdout
    assert f"{tmp_path}/server-miniature.jsonl" in server.stdout


@pytest.mark.parametrize(("code", "said"), [(1, "RED, a regression"), (3, "RED, too little power"), (2, "RED, exit")])
def test_it_is_as_red_as_the_verdict(tmp_path: Path, code: int, said: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here-gsm8k.jsonl").touch()
    done = nightly(tmp_path, "--model", "here", code=code)
    assert done.returncode == code
    assert said in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "expected --model NAME or --base-url URL"),
        (("--model",), "needs a value"),
        (("--model", "nowhere"), "no folder nowhere"),
        (("--model", "a", "--base-url", "b"), "expected one of them"),
        (("--base-url", "http://x/v1"), "make one with --new-baseline"),
        (("--fast",), "unknown argument --fast"),
    ],
)
def test_wrong_usage_is_named(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), *words],
        env=os.environ | {"PYTHON": "false", "SLUICEGATE_BASELINES": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert complaint in done.stderr
