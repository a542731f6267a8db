"""The token-level check: two models, or two kernel sets, are shown the same answers and asked for each next token.

A fault shows here long before it flips an answer: every token of every answer is a measurement, and none depends on the ones before
having gone wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accuracy.answering import Answering
from serving.model import HybridModel
from serving.request import Request
from serving.truth import passes


@dataclass(frozen=True)
class Told:
    """A question and its reference answer, in tokens; at least one each."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.answer:
            raise ValueError(
                f"told: got {len(self.prompt)} tokens of prompt and {len(self.answer)} of answer, expected some"
            )


@dataclass(frozen=True)
class QuestionCheck:
    """One question.

    Attributes:
        tokens: of its answer. mean_kl, worst_kl: of KL(baseline || new) over them, in nats; infinite where logits are not finite.
        agreed: tokens where both find the same likeliest. first_divergence: the first where they do not, None if there is none.
    """

    tokens: int
    mean_kl: float
    worst_kl: float
    agreed: int
    first_divergence: int | None


@dataclass(frozen=True)
class TokenCheck:
    """All questions; at least one."""

    questions: tuple[QuestionCheck, ...]

    @property
    def tokens(self) -> int:
        return sum(q.tokens for q in self.questions)

    @property
    def mean_kl(self) -> float:
        """Over all tokens."""
        return sum(q.mean_kl * q.tokens for q in self.questions) / self.tokens

    @property
    def worst_kl(self) -> float:
        return max(q.worst_kl for q in self.questions)

    @property
    def agreement(self) -> float:
        """Share of tokens with the same likeliest next one."""
        return sum(q.agreed for q in self.questions) / self.tokens

    @property
    def diverging(self) -> int:
        """Questions with a divergence: at most so many greedy answers differ."""
        return sum(q.first_divergence is not None for q in self.questions)


def forced(model: HybridModel, told: Sequence[Told], most_tokens: int = 4096) -> Iterator[Tensor]:
    """Logits [answer tokens, vocabulary] from which each token of each answer would be chosen.

    Args:
        most_tokens: in one step; a longer question has one to itself.
    """
    for pack in packs([len(one.prompt) + len(one.answer) - 1 for one in told], most_tokens):
        histories = [(*told[index].prompt, *told[index].answer[:-1]) for index in pack]
        for index, logits in zip(pack, passes(model, histories), strict=True):
            yield logits[len(told[index].prompt) - 1 :]


def through_engine(answering: Answering, told: Sequence[Told]) -> list[Tensor]:
    """The same logits from a whole engine, which is made to say the reference answers: prefills, decodes, graphs and pools.

    Every step is made of the same rows whatever the model thinks, so two engines that compute the same agree to the bit, and a
    fault has nothing to hide behind. Logits stay on the model's device.
    """
    engine = answering.engine
    kept: list[list[Tensor]] = [[] for _ in told]
    names = {f"told {index}": index for index in range(len(told))}

    def say(logits: Tensor, rows: Sequence[Any]) -> list[int]:
        # A graph's buffer is written again by the next step.
        copied = logits.clone()
        if copied.is_cuda:
            # An engine waits here for its tokens; without that it would fill the next step's buffers under the last one.
            torch.cuda.synchronize(copied.device)
        tokens = []
        for row, one in zip(rows, copied, strict=True):
            index = names[row.tracked.id]
            kept[index].append(one)
            tokens.append(told[index].answer[len(row.tracked.outputs)])
        return tokens

    before = engine._choose
    engine._choose = say  # type: ignore[method-assign]
    try:
        engine.run(Request(name, told[index].prompt, len(told[index].answer)) for name, index in names.items())
    finally:
        engine._choose = before  # type: ignore[method-assign]
    for name in names:
        engine.forget(name)
    return [torch.stack(rows) for rows in kept]


def packs(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Indices in order, cut so that the lengths of each pack add up to no more than this."""
    pack: list[int] = []
    total = 0
    for index, length in enumerate(lengths):
        if pack and total + length > most_tokens:
            yield pack
            pack, total = [], 0
        pack.append(index)
        total += length
    if pack:
        yield pack


def check(baseline: HybridModel, new: HybridModel, told: Sequence[Told], most_tokens: int = 4096) -> TokenCheck:
    """Compare two models on the same answers.

    Raises ValueError for no question, or for models of different vocabularies.
    """
    if not told:
        raise ValueError("told: got no question, expected at least one")
    if baseline.config.vocab_size != new.config.vocab_size:
        raise ValueError(
            f"models: got vocabularies of {baseline.config.vocab_size} and {new.config.vocab_size} tokens, expected the same"
        )
    pairs = zip(forced(baseline, told, most_tokens), forced(new, told, most_tokens), strict=True)
    return TokenCheck(tuple(compared(old, now) for old, now in pairs))


def compared(old: Tensor, new: Tensor) -> QuestionCheck:
    """Two sets of logits [tokens, vocabulary] for the same tokens."""
    if old.shape != new.shape:
        raise ValueError(f"logits: got shapes {list(old.shape)} and {list(new.shape)}, expected the same")
    before, after = (torch.log_softmax(logits.double(), dim=-1) for logits in (old, new.to(old.device)))
    kl = (before.exp() * (before - after)).sum(dim=-1)
    # Rounding may leave less than nothing; a model that says nothing finite is as far away as can be.
    kl = torch.where(kl.isfinite(), kl.clamp_min(0), torch.inf)
    same = (old.argmax(dim=-1) == new.to(old.device).argmax(dim=-1)) & kl.isfinite()
    apart = (~same).nonzero()
    first = int(apart[0]) if len(apart) else None
    return QuestionCheck(len(kl), float(kl.mean()), float(kl.max()), int(same.sum()), first)
