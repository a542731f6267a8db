"""Whether an answer is what the same request gets that has the model for itself.

The request's tokens, prompt and answer, go through the oracle's model in one pass, without an engine, and each token of the
answer is compared with what that pass says at its place. So a wrong token is one finding, and those after it are judged by
what the engine really went on from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from serving.oracle import Book, Finding
from serving.request import Sampling
from serving.sampling import uniform


class Truth(Protocol):
    """What the oracle says of a request alone."""

    def logits(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits float64 [tokens, vocabulary] after each token, and [tokens] how far an engine's may be from them."""
        ...


def judge(book: Book, outputs: Sequence[int], recorded: Sequence[Tensor], truth: Truth) -> Iterator[Finding]:
    """Findings on one answer: `outputs` as the engine returns it, `recorded` its logits, as many as tokens were chosen, or none."""
    name, prompt = book.request.id, len(book.request.prompt)
    if list(outputs) != book.outputs:
        yield Finding("answer", "the answer, by the reports of its steps", book.outputs, list(outputs), name)
    if not book.chosen:
        return
    logits, allowances = truth.logits(book.tokens)
    for number, token in enumerate(book.chosen):
        at, step = prompt + number, book.steps[number]
        oracle, allowed = logits[at - 1], float(allowances[at - 1])
        if recorded:
            error = (recorded[number].double() - oracle).abs().max()
            if not float(error) <= allowed:  # NaN is no number of errors
                what = (
                    f"logits before the token: their largest error, in {_shown(recorded[number])} for {_shown(oracle)}"
                )
                yield Finding("answer", what, f"at most {allowed:.3g}", f"{float(error):.3g}", name, step, at)
            chosen = choose(recorded[number].double(), book.request.sampling, at)
            if chosen != token:
                yield Finding("answer", "token, by the engine's own logits", chosen, token, name, step, at)
        elif not could_choose(oracle, allowed, book.request.sampling, at, token):
            expected = choose(oracle, book.request.sampling, at)
            yield Finding("answer", "token", expected, token, name, step, at)


def choose(logits: Tensor, sampling: Sampling, position: int) -> int:
    """The token, worked out one by one: the reference of `serving.sampling`."""
    values = logits.tolist()
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    if sampling.greedy:
        return order[0]
    order = order[: sampling.top_k or len(order)]
    scaled = torch.tensor([values[token] / sampling.temperature for token in order], dtype=torch.float64)
    weights = torch.softmax(scaled, 0).tolist()
    kept: list[float] = []
    for weight in weights:
        if sum(kept) >= sampling.top_p:
            break
        kept.append(weight)
    draw, total = uniform(sampling.seed, position) * sum(kept), 0.0
    for token, weight in zip(order, kept, strict=False):
        total += weight
        if draw < total:
            return token
    return order[len(kept) - 1]


def could_choose(logits: Tensor, allowed: float, sampling: Sampling, position: int, token: int) -> bool:
    """Whether logits that are off by no more than `allowed` may lead to this token.

    Greedy: its logit is no further than twice that from the largest. Drawn: as the choice from these logits, or from
    those with this token and what stands around the draw moved by as much.
    """
    if choose(logits, sampling, position) == token:
        return True
    if sampling.greedy:
        return float(logits.max() - logits[token]) <= 2 * allowed
    raised, lowered = logits - allowed, logits + allowed
    raised[token], lowered[token] = logits[token] + allowed, logits[token] - allowed
    reach = {choose(moved, sampling, position) for moved in (raised, lowered)}
    return allowed > 0 and token in reach


def _shown(row: Tensor) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in row[:4].tolist()) + ", …]"
