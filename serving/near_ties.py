"""Answers that are as right as the oracle's: those of the other expert, where rounding decides between two.

A router's last chosen score and the best of those not chosen can be so near that no float32 or bfloat16 computation can be
asked to tell them apart. From there on, whoever chooses the other expert computes something else, off by far more than
rounding, and is not wrong. So before an answer counts as wrong, the oracle answers again with the two changed places, for each
place of the request where that could be; an answer that none of these explains stays wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from serving.model import HybridModel
from serving.truth import ModelTruth, allowance, one_pass

#: Of one request: the places looked at, the nearest ones first, and how many of them may have gone the other way at once.
MOST_PLACES, MOST_AT_ONCE = 8, 2


@dataclass(frozen=True)
class NearTie:
    """In this layer, the token's last chosen expert and the next one are this far apart, as a share of what is allowed."""

    layer: int
    token: int
    chosen: int
    next: int
    share: float


def near_ties(truth: ModelTruth, tokens: Sequence[int]) -> list[NearTie]:
    """Places of the request where rounding could choose another expert, the nearest ties first.

    Two logits count as tied where they are no further apart than twice what logits of an engine may be off by, with the
    rule of `serving.truth` in each layer.
    """
    oracle, near = (_router_logits(model, tokens) for model in (truth.oracle, truth.model_kernel))
    top_k = truth.oracle.config.top_k
    found = []
    for layer, logits in oracle.items():
        if logits.shape[1] <= top_k:
            continue
        allowed = 2 * allowance(near[layer], logits, truth.model_kernel.dtype)
        values, experts = logits.sort(dim=-1, descending=True, stable=True)
        shares = (values[:, top_k - 1] - values[:, top_k]) / allowed
        for token in (shares <= 1).nonzero().flatten().tolist():
            pair = experts[token, top_k - 1 : top_k + 1].tolist()
            found.append(NearTie(layer, token, pair[0], pair[1], float(shares[token])))
    return sorted(found, key=lambda tie: tie.share)


def other_answers(truth: ModelTruth, tokens: Sequence[int]) -> Iterator[Tensor]:
    """Logits float64 [tokens, vocabulary] of the oracle with one or more near ties the other way round."""
    ties = near_ties(truth, tokens)[:MOST_PLACES]
    for count in range(1, MOST_AT_ONCE + 1):
        for chosen in combinations(ties, count):
            with _before_moe(truth.oracle, lambda layer, logits, chosen=chosen: _exchanged(logits, layer, chosen)):
                yield one_pass(truth.oracle, tokens).cpu()


def _exchanged(logits: Tensor, layer: int, ties: Sequence[NearTie]) -> Tensor:
    logits = logits.clone()
    for tie in ties:
        if tie.layer == layer:
            logits[tie.token, [tie.chosen, tie.next]] = logits[tie.token, [tie.next, tie.chosen]]
    return logits


def _router_logits(model: HybridModel, tokens: Sequence[int]) -> dict[int, Tensor]:
    """[tokens, experts] by layer."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int, logits: Tensor) -> Tensor:
        seen[layer] = logits
        return logits

    with _before_moe(model, keep):
        one_pass(model, tokens)
    return seen


@contextmanager
def _before_moe(model: HybridModel, change: Callable[..., Tensor]) -> Iterator[None]:
    """The model with router logits that `change(layer, logits)` returns."""

    def changed(layer: int, moe: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, logits, *others, **keywords: moe(x, change(layer, logits), *others, **keywords)

    with model.kernels_kept():
        for index, layer in enumerate(model.layers):
            layer.kernels = layer.kernels.replaced(moe=changed(index, layer.kernels.moe))
        yield
