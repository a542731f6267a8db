"""Faults are planted where they say, a crash is a result, and right runs raise no alarm."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from accuracy import specificity
from accuracy.answering import settings_for
from accuracy.gate import Rule
from accuracy.sensitivity import __main__ as command
from accuracy.sensitivity import faults, table, trial, worker
from accuracy.sensitivity.setup import Words, keep, read
from accuracy.sensitivity.trial import Distance, farthest, usual
from serving.kernel_set import OPERATORS
from serving.settings import EngineSettings
from tests.accuracy import models
from tests.accuracy.runs import run


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    folder = models.checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return Words(str(folder), limit=3, device="cpu", kernels="oracle", concurrency=2, told=2, most_tokens=4)


def test_there_are_faults_of_every_kind_and_every_operator() -> None:
    kinds = [faults.kind_of(id) for id in faults.known()]
    assert len(kinds) >= 25
    assert min(kinds.count(kind) for kind in ("kernel", "engine", "weights")) >= 5
    planted = {fault.operator for fault in faults.model.load() if fault.id in faults.CATALOGUED}
    assert {"conv_prefill", "conv_update", "gdn_prefill", "gdn_decode", "gated_rmsnorm", "engine"} <= planted
    assert planted <= {*OPERATORS, "engine"}


@pytest.mark.parametrize("id", sorted(faults.WEIGHTS))
def test_a_fault_of_weights_changes_a_copy(id: str) -> None:
    right = models.model()
    before = {name: tensor.clone() for name, tensor in right.weights.items()}
    config, weights = faults.WEIGHTS[id].change(right.config, right.weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in right.weights.items())
    changed = [name for name in weights if not torch.equal(weights[name], before[name])]
    assert bool(changed) != (config != right.config)


def test_trials_are_judged_kept_and_not_repeated(words: Words, tmp_path: Path) -> None:
    ids = ["wrong-rope-base", "engine-later-pieces-told-fresh", "expert-missing"]
    worker.run(words, ids[:2], tmp_path, Rule(), 300)
    found = [json.loads(worker.result_file(tmp_path, id).read_text()) for id in ids[:2]]
    assert [row["kind"] for row in found] == ["weights", "engine"]
    # An untrained model has nothing right, so only the token check can see anything.
    assert [(row["gate"], row["tokens"], row["threshold"]) for row in found] == [(False, True, False)] * 2
    assert not worker.result_file(tmp_path, ids[2]).exists()
    assert not (tmp_path / "current").exists()
    right = json.loads((tmp_path / "right.json").read_text())
    assert set(right["ways"]) == {"references", "a quarter of the batch", "small chunks"}
    assert right["farthest"]["mean"] < 1e-6


def test_a_fault_that_raises_is_a_result(words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def melts(*_: object) -> object:
        raise RuntimeError("melted")

    fault = faults.WeightFault("expert-missing", "All of it.", melts)  # type: ignore[arg-type]
    monkeypatch.setitem(faults.WEIGHTS, "expert-missing", fault)
    worker.run(words, ["expert-missing"], tmp_path, Rule(), 300)
    row = json.loads(worker.result_file(tmp_path, "expert-missing").read_text())
    assert row["broke"] == "raised RuntimeError"
    assert "melted" in row["message"]
    assert table.summary([row]) == {"faults": 1, "broke": 1, "gate": 0, "tokens": 0, "threshold": 0, "nobody": 0}
    assert "raised RuntimeError" in table.markdown([row])


@pytest.mark.parametrize(
    ("script", "said"),
    [("import os; os._exit(9)", "crashed with status 9"), ("import time; time.sleep(60)", "hung for 0 s")],
)
def test_a_crash_and_a_hang_are_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    popen, current = command.subprocess.Popen, tmp_path / "current-3"

    def started(words: list[str]) -> object:
        assert words[-6:] == ["--worker", str(current), "--fault", "expert-missing", "--time-limit", "9"]
        assert not {"a", "--processes", "--time-limit=3"} & set(words)
        current.write_text("expert-missing")
        return popen([sys.executable, "-c", script])

    monkeypatch.setattr(command.subprocess, "Popen", started)
    arguments = ["--fault", "a", "--time-limit=3", "--processes", "4", "--out", "x"]
    patience = 0.0 if "sleep" in script else 60.0
    assert command._watched(arguments, ["expert-missing"], tmp_path, 9, patience, current)
    assert not current.exists()
    assert json.loads(worker.result_file(tmp_path, "expert-missing").read_text())["broke"] == said


def test_an_unknown_fault_is_refused() -> None:
    application = command.typer.Typer()
    application.command()(command.main)
    done = CliRunner().invoke(application, ["--model", "x", "--out", "y", "--fault", "z"])
    assert done.exit_code == 2
    assert "got z, expected some of decode-no-decay" in done.output


def test_words_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    application = command.typer.Typer()
    application.command()(command.main)
    for words, said in (
        (["--chunk-budget", "16", "--concurrency", "32"], "--chunk-budget: got 16, expected at least the 32"),
        (["--shots", "3", "--task", "gsm8k"], "--shots: got 3 for gsm8k"),
    ):
        done = CliRunner().invoke(application, ["--model", "x", "--out", str(tmp_path / "out"), *words])
        assert (done.exit_code, said in done.output) == (2, True), done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_has_results_of_one_setup(words: Words, tmp_path: Path) -> None:
    for _ in range(2):
        keep(words, 0.01, tmp_path)
    with pytest.raises(ValueError, match="has results with chunk_budget None, got 8"):
        keep(replace(words, chunk_budget=8), 0.01, tmp_path)
    with pytest.raises(ValueError, match=r"has results with margin 0.01, got 0.02"):
        keep(words, 0.02, tmp_path)


def test_baseline_and_fault_are_asked_with_the_same_chunks(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = []

    def made(*arguments: Any, **keywords: Any) -> EngineSettings:
        settings = settings_for(*arguments, **keywords)
        budgets.append((settings.max_batch_size, settings.max_tokens))
        return settings

    monkeypatch.setattr(trial, "settings_for", made)
    worker.run(replace(words, limit=1, told=1, chunk_budget=48), ["expert-missing"], tmp_path, Rule(), 300)
    # The baseline's answers and logits; what right runs differ by: other kernels, batch, chunks; the fault.
    assert budgets == [(2, 48), (2, 48), (2, 48), (1, 48), (2, 512), (2, 48), (2, 48)]
    assert set(json.loads((tmp_path / "right.json").read_text())["ways"]) == {
        "references",
        "a quarter of the batch",
        "large chunks",
    }
    budgets.clear()
    worker.run(replace(words, limit=1, told=1, chunk_budget=48), ["wrong-rope-base"], tmp_path, Rule(), 300)
    assert len(budgets) == 4, "what right runs differ by is known"


def test_several_processes_share_a_baseline_and_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(faults.known())[:6]
    begun: list[tuple[list[str], Path]] = []
    works = True

    def watched(_: object, mine: list[str], out: Path, *others: Any) -> bool:
        begun.append((mine, others[-1]))
        for id in mine if works else ():
            worker.write(out, id, {"broke": "x"})
        return works

    monkeypatch.setattr(command, "_watched", watched)
    command.main("x", tmp_path / "works", processes=2, fault=ids)
    assert begun[0] == (ids[:1], tmp_path / "works" / "current-0"), "one alone, for the baseline"
    assert sorted(begun[1:]) == [
        (ids[1::2], tmp_path / "works" / "current-0"),
        (ids[2::2], tmp_path / "works" / "current-1"),
    ]
    begun.clear()
    works = False
    command.main("x", tmp_path / "fails", processes=2, fault=ids)
    assert len(begun) == 1, "without a baseline they would all write one"


def test_threshold_is_the_usual_one() -> None:
    """TensorRT-LLM's figures: of 1,319 questions anything above 3.20 points less passes."""
    base = run([True] * 1188 + [False] * 131)
    assert usual(base, base)[1] == pytest.approx(1188 / 1319 - 0.0320, abs=5e-5)
    assert not usual(base, run([True] * 1146 + [False] * 173))[0]
    assert usual(base, run([True] * 1145 + [False] * 174))[0]


def test_distances() -> None:
    right = farthest([Distance(1e-6, 1e-4, 1.0), Distance(2e-6, 1e-5, 0.99)])
    assert right == Distance(2e-6, 1e-4, 0.99)
    assert not Distance(5e-6, 2e-4, 0.5).beyond(right)
    assert Distance(7e-6, 0.0, 1.0).beyond(right)
    assert Distance(0.0, 4e-4, 1.0).beyond(right)
    assert not Distance(0.0, 0.0, 1.0).beyond(farthest([]))


def test_right_runs_raise_no_alarm(words: Words, tmp_path: Path) -> None:
    assert len(specificity.ways(read(words))) == 20
    assert len(specificity.ways(read(words), (5, 6))) == 8
    assert max(specificity.BATCHES) <= min(specificity.CHUNKS), "a step would be larger than its name says"
    for runs in (1, 2):
        specificity.main(
            words.model,
            tmp_path,
            limit=3,
            device="cpu",
            kernels="oracle",
            concurrency=2,
            told=2,
            batch=[8],
            runs=runs,
        )
    found = json.loads((tmp_path / "specificity.json").read_text())
    assert found["summary"]["runs"] == 2
    assert found["summary"]["alarms"] == 0
    assert [row["same_text"] for row in found["rows"]] == [3, 3]
    assert [row["id"] for row in found["rows"]] == ["batch 8 chunks 256 seed 0", "batch 8 chunks 256 seed 7"]
