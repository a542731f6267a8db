"""From logits to tokens. A draw depends on the request's seed and the token's position: never on the batch around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .request import Sampling

_MASK = 2**64 - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for this token of this request: two rounds of splitmix64 (Steele, Lea and Flood 2014)."""
    return (_mixed(_mixed(seed) + position) >> 11) / 2**53


def _mixed(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def choose(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """One token a row of logits [R, vocab]; positions[i]: where in its request the token will stand. Waits for the device."""
    greedy = logits.argmax(-1)  # of equal logits, the first
    drawn = [row for row, sampling in enumerate(samplings) if not sampling.greedy]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        greedy[rows] = _draw(logits[rows], [samplings[i] for i in drawn], [positions[i] for i in drawn])
    tokens: list[int] = greedy.tolist()
    return tokens


def _draw(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    """By the inverse of the cumulative distribution over the tokens from the likeliest to the least likely, in float64."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    vocabulary = logits.shape[1]
    scaled, order = torch.sort(
        logits.double() / column([s.temperature for s in samplings]), dim=-1, descending=True, stable=True
    )
    ranks = torch.arange(vocabulary, device=logits.device)
    kept = ranks < column([float(s.top_k or vocabulary) for s in samplings])
    weights = torch.softmax(scaled.masked_fill(~kept, -torch.inf), -1)
    # A token is kept where those before it do not reach the share yet: the likeliest always is.
    weights = weights * (weights.cumsum(-1) - weights < column([s.top_p for s in samplings]))
    totals = weights.cumsum(-1)
    draws = column([uniform(s.seed, position) for s, position in zip(samplings, positions, strict=True)])
    place = (totals <= draws * totals[:, -1:]).sum(-1, keepdim=True).clamp(max=vocabulary - 1)
    return order.gather(-1, place).squeeze(-1)
