"""Near ties of a router: an answer by the other expert is right, a choice that no rounding explains is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from serving import near_ties as module
from serving.assertion import Assertion, Outcome
from serving.cli import engine_settings
from serving.kernel_set import KernelSet
from serving.model import HybridModel
from serving.near_ties import near_ties, other_answers
from serving.presets import PRESETS
from serving.truth import ModelTruth, one_pass
from serving.weights import Weights, random_weights
from serving.workload import Mix, moments

SEED, LAYER, TOKEN, TIED = 3, 1, 13, "r0009"
#: Far more than float32 makes of these logits, and less than what they are allowed to be off by.
GAP = 2e-6
CONFIG = PRESETS["tiny"]
MIX = Mix(requests=60, prompt=112, new=12)
WORKLOAD = moments(MIX, CONFIG.vocab_size, (), SEED)[:12]
PROMPT = next(request.prompt for moment in WORKLOAD for request in moment.arrivals if request.id == TIED)


@cache
def weights() -> Weights:
    """Random, but for one expert's row of one router, which makes a near tie of one token's last expert and the next."""
    weights = random_weights(CONFIG, SEED, torch.float32, torch.device("cpu"))
    oracle = ModelTruth(HybridModel(CONFIG, weights, KernelSet.named("oracle"))).oracle
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keeping(layer: int, moe: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def kept(x: Tensor, logits: Tensor, *others: Any, **keywords: Any) -> Tensor:
            seen[layer] = x[TOKEN], logits[TOKEN]
            return moe(x, logits, *others, **keywords)

        return kept

    for index, layer in enumerate(oracle.layers):
        layer.kernels = layer.kernels.replaced(moe=keeping(index, layer.kernels.moe))
    one_pass(oracle, PROMPT)
    x, logits = seen[LAYER]
    values, experts = logits.sort(descending=True)
    last, following = CONFIG.top_k - 1, CONFIG.top_k
    router = weights[f"layers.{LAYER}.moe.router"]
    missing = values[last] - values[following] - GAP
    router[experts[following]] += (x * missing / x.square().sum()).float()
    return weights


def model() -> HybridModel:
    return HybridModel(CONFIG, weights(), KernelSet.named("oracle"))


def undecided(moe: Callable[..., Tensor], gap: float) -> Callable[..., Tensor]:
    """Takes the next expert for the last one where their logits are no further apart than `gap`."""

    def other(x: Tensor, logits: Tensor, *weights: Tensor, top_k: int, **keywords: Any) -> Tensor:
        values, experts = logits.sort(dim=-1, descending=True, stable=True)
        last, following = experts[:, top_k - 1 : top_k], experts[:, top_k : top_k + 1]
        near = values[:, top_k - 1 : top_k] - values[:, top_k : top_k + 1] <= gap
        logits = torch.where(
            near,
            logits.scatter(1, last, logits.gather(1, following)).scatter(1, following, logits.gather(1, last)),
            logits,
        )
        return moe(x, logits, *weights, top_k=top_k, **keywords)

    return other


def served(gap: float) -> Outcome:
    """Every layer that has experts takes the other one where two are near."""
    one = model()
    truth = ModelTruth(one)
    for layer in one.layers:
        layer.kernels = layer.kernels.replaced(moe=undecided(layer.kernels.moe, gap))
    settings = engine_settings(one, MIX.prompt + MIX.new, 16, graphs=False, prefixes=True, judge=True)
    return Assertion(one, settings, WORKLOAD, truth=truth).run()


def test_the_tie_is_found_and_its_other_answer_is_that_of_the_other_expert() -> None:
    one = model()
    truth = ModelTruth(one)
    first = near_ties(truth, PROMPT)[0]
    assert (first.layer, first.token) == (LAYER, TOKEN)
    assert first.share < 0.5
    rows, allowed = truth.logits(PROMPT)
    answers = [rows, next(other_answers(truth, PROMPT))]
    assert {layer.kernels.moe for layer in truth.oracle.layers} == {truth.oracle.kernels.moe}, (
        "the oracle is itself again"
    )
    for layer in one.layers:
        layer.kernels = layer.kernels.replaced(moe=undecided(layer.kernels.moe, 2 * GAP))
    other = one_pass(one, PROMPT)
    errors = [float(((other - each).abs().amax(1) / allowed).max()) for each in answers]
    assert errors[0] > 10
    assert errors[1] < 1


def test_an_answer_by_the_other_expert_is_right() -> None:
    outcome = served(gap=2 * GAP)
    assert outcome.findings == []
    assert outcome.counts["answer tokens explained by a router's near tie"] > 0


def test_without_the_other_answers_it_would_count_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PLACES", 0)
    assert TIED in {finding.request for finding in served(gap=2 * GAP).findings}


def test_a_choice_that_rounding_does_not_explain_stays_wrong() -> None:
    wrong = {finding.request for finding in served(gap=0.02).findings}
    assert len(wrong) > 5
    assert TIED in wrong, "a tie elsewhere in the request excuses nothing that it does not explain"
