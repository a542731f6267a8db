"""How far right engines are from the oracle, as a share of what they are allowed: the measurement behind `FACTOR`."""

from __future__ import annotations

import pytest
import torch

from properties.test_engine import TINY
from serving.engine import Engine
from serving.kernel_set import KernelSet
from serving.model import HybridModel
from serving.request import Request
from serving.truth import ModelTruth
from serving.weights import random_weights
from tests.serving.engines import settings


def hybrid(kernels: str, seed: int = 0) -> HybridModel:
    weights = random_weights(TINY, seed, torch.float32, torch.device("cpu"))
    return HybridModel(TINY, weights, KernelSet.named(kernels).replaced(chunk_size=4))


def shares(model: HybridModel, **changes: object) -> list[float]:
    """For each token that an engine chose: its logits' largest error over what is allowed."""
    truth = ModelTruth(model)
    served = Engine(model, settings(state_dtype=torch.float32, max_tokens=7, **changes))
    served.run([Request(str(n), tuple((n + 5 * i) % 24 for i in range(1 + 3 * n)), 3) for n in range(4)])
    found = []
    for tracked in served.requests.values():
        logits, allowed = truth.logits(tracked.tokens)
        first = len(tracked.request.prompt) - 1
        for number, row in enumerate(tracked.logits):
            found.append(float((row.double() - logits[first + number]).abs().max() / allowed[first + number]))
    return found


@pytest.mark.parametrize("kernels", ["references", "optimized,moe=references"])
@pytest.mark.parametrize("interval", [0, 4])
def test_right_engines_use_less_than_half_of_the_allowance(kernels: str, interval: int) -> None:
    seeds = range(2) if kernels == "references" else range(1)
    worst = [max(shares(hybrid(kernels, seed), snapshot_interval=interval)) for seed in seeds]
    assert max(worst) < 0.5
    assert min(worst) > 0.001, "an allowance that nobody comes near would hide faults"


def test_a_state_in_the_wrong_slot_is_far_beyond_it() -> None:
    model = hybrid("references")
    logits, allowed = ModelTruth(model).logits([1, 2, 3, 4])
    other, _ = ModelTruth(model).logits([5, 2, 3, 4])
    assert float((logits[-1] - other[-1]).abs().max()) > 100 * float(allowed[-1])
