"""``sluicegate serve`` from the command line: what it says, what it writes, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import build
from serving.checkpoint import write_checkpoint
from serving.cli import _without_seed
from serving.presets import PRESETS
from serving.weights import random_weights

SMALL = [
    "serve",
    "--requests",
    "12",
    "--device",
    "cpu",
    "--kernels",
    "oracle",
    "--prompt",
    "70",
    "--new",
    "5",
    "--batch",
    "4",
]


def serve(*words: str, out: Path):
    return CliRunner().invoke(build(), [*SMALL, *words, "--out", str(out)])


def test_no_mismatch(tmp_path: Path) -> None:
    ended = serve("--seed", "5", out=tmp_path)
    assert ended.exit_code == 0, ended.output
    assert "12 requests, 0 mismatches" in " ".join(ended.output.split())
    saved = json.loads((tmp_path / "serve.json").read_text())
    assert saved["counts"]["requests"] == 12
    assert saved["mismatches"] == {"metadata": 0, "accounting": 0, "schedule": 0, "answer": 0}
    assert saved["findings"] == []
    assert saved["command"].endswith("--seed 5")
    assert saved["environment"]["torch"]
    assert (tmp_path / "serve.svg").read_text().lstrip().startswith("<?xml")


def test_a_mismatch_is_told_and_traced(tmp_path: Path) -> None:
    ended = serve("--seed", "5", "--kernels", "oracle,gdn_decode=tests.serving.broken:gdn_decode", out=tmp_path)
    assert ended.exit_code == 1, ended.output
    said = " ".join(ended.output.split())
    assert "goes wrong first, in step" in said
    assert "gdn_decode, in " in said
    saved = json.loads((tmp_path / "serve.json").read_text())
    assert saved["mismatches"]["answer"] > 0
    assert saved["first_wrong_answer"]["blame"].startswith("gdn_decode")


def test_a_checkpoint_in_a_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", PRESETS["tiny"], random_weights(PRESETS["tiny"], 1), "qwen3_next")
    ended = serve("--seed", "5", "--model", str(tmp_path / "model"), "--requests", "3", out=tmp_path)
    assert ended.exit_code == 0, ended.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "nowhere"], "got 'nowhere', expected tiny, small, or the folder of a checkpoint"),
        (["--kernels", "fast"], "got 'fast', expected one of references, oracle, optimized first"),
        (["--arrival", "soon"], "got 'soon', expected all, steady:N, bursts:N or mixed:N"),
        (["--engine", "serving.engine:Motor"], "has no attribute 'Motor'"),
    ],
)
def test_wrong_usage(words: list[str], said: str, tmp_path: Path) -> None:
    ended = serve(*words, out=tmp_path)
    assert ended.exit_code == 2
    assert said in " ".join(ended.output.split())


def test_a_command_is_repeated_with_its_own_seed() -> None:
    words = ["serve", "--requests", "3", "--seed", "1", "--model=x", "--seed=2", "--new", "4"]
    assert _without_seed(words) == ["--requests", "3", "--model=x", "--new", "4"]
