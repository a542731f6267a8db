"""The miniature's share of `make verify`: what is missing is named, a faulty kernel is seen, and the checkpoint is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from accuracy import outcome, tasks
from accuracy.answering import Tokenizer
from accuracy.miniature import verify
from accuracy.outcome import Writer
from serving.checkpoint import read_checkpoint
from tests.accuracy import models
from tests.accuracy.runs import info, run

SMALL = verify.Share("oracle", 3, 2, 0.04, 0.0025, 1, 3, 1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    """Five problems that somebody answered rightly."""
    path = tmp_path / "baseline.jsonl"
    with Writer(path, info(5)) as writer:
        for index, one in enumerate(tasks.miniature().asked[:5]):
            writer.add(outcome.outcome(index, one.prompt, one.target, one.target, truncated=False))
    return path


def call(*words: object) -> tuple[int, str]:
    application = typer.Typer()
    application.command()(verify.main)
    done = CliRunner().invoke(application, ["--device", "cpu", *map(str, words)])
    return done.exit_code, done.output


def test_both_parts(folder: Path, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model against right answers: three are lost, which is no proof yet. Its kernels agree, unless one forgets."""
    monkeypatch.setitem(verify.SHARES, "cpu", SMALL)
    words = ("--checkpoint", folder, "--baseline", baseline, "--out", tmp_path / "out")
    code, said = call(*words, "--kernels", "references")
    assert code == 3, said
    assert "3 lost, 0 won of 3" in said
    assert re.search(r"detects: .*\nfalse alarms: ", said)
    assert "kernels agree" in said
    assert json.loads((tmp_path / "out" / "report.json").read_text())["task"]["questions"] == 3
    code, said = call(*words, "--kernels", "oracle,gdn_prefill=tests.accuracy.models:forgetful")
    assert code == 1, said
    assert "THEY DIFFER" in said
    assert "kernels DIFFER" in said


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    code, said = call("--checkpoint", tmp_path)
    assert code == 2
    assert "no checkpoint; python -m accuracy.miniature.train" in said
    code, said = call("--checkpoint", folder, "--baseline", tmp_path / "none")
    assert code == 2
    assert "no baseline; sluicegate accuracy --model" in said


def test_a_run_of_fewer_questions() -> None:
    whole = run([True, False, True])
    part = verify.first(whole, 2)
    assert part.complete
    assert (part.info.questions, part.accuracy()) == (2, 0.5)


def test_the_checkpoint_and_its_baseline_belong_together() -> None:
    """Both are in the repository, small enough, and of the held-out problems; the model is what it says it is."""
    files = [path for path in verify.CHECKPOINT.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32 * 2**20
    stored = outcome.load(verify.BASELINE)
    assert stored.complete
    assert stored.info.questions == 1319
    assert stored.accuracy() >= 0.85
    asked = tasks.miniature().asked
    assert all(one.prompt_hash == outcome.hashed(asked[index].prompt) for index, one in stored.outcomes.items())
    config = read_checkpoint(verify.CHECKPOINT).config
    assert config.layers.count("linear_attention") == 3 * config.layers.count("full_attention")
    assert config.num_experts > config.top_k > 1
    assert config.eos_token_ids
    text = Tokenizer(verify.CHECKPOINT / "tokenizer.json")
    answers = [len(text.encode(one.answer)) for one in stored.outcomes.values()]
    assert sum(answers) / len(answers) > 36
