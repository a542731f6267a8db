"""One model through the three ways of noticing: the paired gate, the token-level check, and the usual threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from accuracy.answering import Answering, Tokenizer, settings_for
from accuracy.gate import Rule, compare
from accuracy.outcome import Run, RunInfo, Writer
from accuracy.running import answer_all
from accuracy.tasks import Task
from accuracy.tokens import TokenCheck, Told, compared
from serving.engine import Engine
from serving.model import HybridModel

#: Right runs differ too. What is more than so many times the most that they differ by is no rounding.
TIMES = 3.0
#: TensorRT-LLM's rule (its accuracy tests): two samples, one-sided at 0.05, a standard deviation of 50 points.
USUAL_Z, USUAL_SIGMA = 1.645, 0.5


@dataclass(frozen=True)
class Setup:
    """A task on a model.

    Attributes:
        concurrency, chunk_budget, seed, graphs: of the engine, as in `settings_for`. told: questions of the token check.
        longest: tokens of a prompt and its answer.
    """

    model: HybridModel
    text: Tokenizer
    task: Task
    told: tuple[Told, ...]
    longest: int
    concurrency: int
    chunk_budget: int | None = None
    seed: int = 0
    graphs: bool = True

    def answering(self, model: HybridModel | None = None, make: Callable[..., Any] = Engine) -> Answering:
        one = model or self.model
        settings = settings_for(
            one,
            self.longest,
            self.concurrency,
            graphs=self.graphs,
            chunk_budget=self.chunk_budget,
            slot_seed=self.seed or None,
        )
        return Answering(one, self.text, settings, make)


@dataclass(frozen=True)
class Distance:
    """How far apart the distributions of the next tokens are. mean, worst: KL, in nats. agreement: of the likeliest token."""

    mean: float
    worst: float
    agreement: float

    @classmethod
    def between(cls, baseline: Sequence[Tensor], new: Sequence[Tensor]) -> Distance:
        found = TokenCheck(tuple(compared(old, now) for old, now in zip(baseline, new, strict=True)))
        return cls(found.mean_kl, found.worst_kl, found.agreement)

    def beyond(self, right: Distance) -> bool:
        """Whether right runs do not differ so much."""
        return self.mean > TIMES * right.mean or self.worst > TIMES * right.worst


def farthest(distances: Sequence[Distance]) -> Distance:
    """What right runs may differ by; a floor of float32's rounding, for those that do not differ at all."""
    return Distance(
        max([1e-9, *(one.mean for one in distances)]),
        max([1e-7, *(one.worst for one in distances)]),
        min([1.0, *(one.agreement for one in distances)]),
    )


def told(task: Task, text: Tokenizer, number: int) -> tuple[Told, ...]:
    """The first so many questions with their worked solutions."""
    return tuple(
        Told(tuple(text.encode(one.prompt)), tuple(text.encode(f" {one.target}\n\n"))) for one in task.asked[:number]
    )


def answered(setup: Setup, answering: Answering, path: Path, name: str) -> Run:
    """All questions, into a file that goes on where it ended."""
    info = RunInfo(
        setup.task.name, setup.task.version, len(setup.task.asked), "model", "tokenizer", name, setup.concurrency
    )
    with Writer(path, info) as writer:
        return answer_all(setup.task.asked, answering, writer)


def usual(baseline: Run, new: Run) -> tuple[bool, float]:
    """The threshold rule: whether it fails the new run, and the accuracy that it asks for. It knows the baseline's score alone."""
    needed = baseline.accuracy() - USUAL_Z * math.sqrt(2 * USUAL_SIGMA**2 / len(new.outcomes))
    return new.accuracy() < needed, needed


def judge(baseline: Run, new: Run, distance: Distance, right: Distance, rule: Rule) -> dict[str, Any]:
    """What each way says of a run, as JSON."""
    found = compare(baseline, new, rule)
    failed, needed = usual(baseline, new)
    return {
        "accuracy": new.accuracy(),
        "lost": found.pairs.lost,
        "won": found.pairs.won,
        "same_text": found.same_text,
        "truncated": found.new.truncated,
        "verdict": found.verdict,
        "p_loss": found.p_loss,
        "gate": found.verdict == "regression",
        "tokens": distance.beyond(right),
        "threshold": failed,
        "needed": needed,
        "distance": asdict(distance),
    }
