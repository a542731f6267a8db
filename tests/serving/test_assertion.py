"""The serving assertion holds of the engine, sees what goes wrong in it, and traces a wrong answer to its operator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from serving import bisection
from serving.assertion import Assertion, Outcome, first_wrong_answer
from serving.cli import engine_settings
from serving.engine import Engine
from serving.kernel_set import KernelSet, implementation
from serving.model import HybridModel
from serving.presets import PRESETS
from serving.scheduler import Row, Scheduler
from serving.truth import ModelTruth
from serving.weights import random_weights
from serving.workload import Mix, moments
from tests.serving import broken

MIX = Mix(requests=40, arrival="bursts:10", prompt=140, new=10)
WORKLOAD = moments(MIX, 96, (), 3)


def tiny(kernels: str = "oracle") -> HybridModel:
    return HybridModel(PRESETS["tiny"], random_weights(PRESETS["tiny"], 0), KernelSet.named(kernels))


def assertion(model: HybridModel, **others: Any) -> Assertion:
    settings = engine_settings(model, MIX.prompt + MIX.new, 8, graphs=True, prefixes=True, judge=True)
    return Assertion(model, settings, WORKLOAD, truth=ModelTruth(model), **others)


def test_nothing_is_mismatched() -> None:
    seen: list[tuple[str, int, int]] = []
    outcome = assertion(tiny(), listener=lambda *said: seen.append(said)).run()
    assert outcome.findings == []
    counts = outcome.counts
    assert counts["requests"] == 40 == sum(counts[f"finished: {how}"] for how in ("length", "stop", "aborted"))
    for name in ("prefix hits", "steps replayed as graphs", "padding rows", "mixed steps", "preemptions by request"):
        assert counts[name] > 0, name
    assert counts["steps"] == counts["steps whose metadata was compared"] == len(outcome.timeline)
    assert seen[-1] == ("answers judged", 40, 40)


def test_a_wrong_operator_is_traced() -> None:
    """Swapped in in one layer alone, so that the layer can be told too."""
    model = tiny()
    model.layers[2].kernels = model.layers[2].kernels.replaced(gdn_decode=broken.gdn_decode)
    wrong = first_wrong_answer(assertion(model).run().findings)
    assert wrong is not None
    tried: list[str] = []

    def heals() -> bool:
        return not assertion(model, only=wrong.request).run().of("answer")

    traced = bisection.blame(model, heals, lambda what, *_: tried.append(what))
    assert (traced.operators, traced.layer) == (("gdn_decode",), 2)
    assert str(traced) == "gdn_decode, in layer 2"
    assert model.layers[2].kernels.gdn_decode is broken.gdn_decode
    assert len(tried) == traced.tried


class Confused(Scheduler):
    """Two decodes of a step get each other's slots."""

    def plan(self, budget: int) -> list[Row]:
        rows = super().plan(budget)
        decodes = [place for place, row in enumerate(rows) if not row.is_context]
        if len(decodes) > 1:
            a, b = decodes[:2]
            rows[a], rows[b] = replace(rows[a], slot=rows[b].slot), replace(rows[b], slot=rows[a].slot)
        return rows


def test_a_wrong_engine_is_not_blamed_on_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine.Scheduler", Confused)
    model = tiny()
    outcome = assertion(model).run()
    assert outcome.of("schedule")
    wrong = first_wrong_answer(outcome.findings)
    assert wrong is not None
    traced = bisection.blame(model, lambda: not assertion(model, only=wrong.request).run().of("answer"))
    assert traced.engine
    assert "not an operator" in str(traced)


class Raising(Engine):
    def step(self) -> Any:
        if len(self.requests) > 8:
            raise RuntimeError("no more")
        return super().step()


def test_what_the_engine_raises_is_a_finding() -> None:
    outcome = assertion(tiny(), factory=Raising).run()
    assert "the engine raised RuntimeError: no more" in str(outcome.of("schedule")[-1])


class Stuck(Engine):
    def step(self) -> Any:
        self._scheduler.max_batch_size = 0
        return super().step()


def test_an_engine_that_computes_nothing_is_stuck() -> None:
    outcome = assertion(tiny(), factory=Stuck).run()
    assert any("no progress" in str(finding) for finding in outcome.findings)


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        (lambda swapped: True, "comes and goes"),
        (lambda swapped: False, "not an operator"),
        (lambda swapped: {"moe"} <= swapped.get(1, set()), "moe, in layer 1"),
        (
            lambda swapped: all("conv_update" in swapped.get(i, ()) for i in range(3)),
            "conv_update, in more than one layer",
        ),
        (lambda swapped: {"moe", "conv_update"} <= swapped.get(0, set()), "more than one operator"),
        (
            lambda swapped: bool({"gdn_prefill", "gdn_decode"} & swapped.get(0, set())),
            "gdn_prefill or gdn_decode, in layer 0",
        ),
    ],
)
def test_what_a_bisection_says(right: Any, expected: str) -> None:
    model = tiny("references")
    oracle = {name: implementation(name, "oracle", torch.float64) for name in bisection.SWAPPED}
    # Two makings of the same reference are two functions: what a layer has of its own is told from what was put in.
    own = [layer.kernels for layer in model.layers]

    def trial() -> bool:
        swapped = {
            index: {name for name in oracle if getattr(layer.kernels, name) is not getattr(own[index], name)}
            for index, layer in enumerate(model.layers)
        }
        return bool(right(swapped)) if expected == "comes and goes" or any(swapped.values()) else False

    assert expected in str(bisection.blame(model, trial))
    assert [layer.kernels for layer in model.layers] == own


def test_the_first_wrong_answer_is_that_of_the_earliest_step() -> None:
    assert first_wrong_answer(Outcome().findings) is None
