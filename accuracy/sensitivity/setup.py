"""Reads what the two commands of this folder have in common: a model, a task, and questions for the token check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from accuracy import answerers, tasks
from accuracy.answering import Tokenizer
from accuracy.sensitivity.trial import Setup, told


@dataclass(frozen=True)
class Words:
    """The command line of both."""

    model: str
    task: str = "miniature"
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    kernels: str = "optimized"
    concurrency: int = 64
    told: int = 100
    most_tokens: int = 128


def read(words: Words) -> Setup:
    """Raises ValueError for what is not there."""
    asked = tasks.load(words.task, limit=words.limit)
    # A model that talks nonsense never ends an answer; a right one has ended long before.
    short = tuple(replace(one, most_tokens=min(one.most_tokens, words.most_tokens)) for one in asked.asked)
    task = tasks.Task(asked.name, asked.version, short)
    text = Tokenizer(Path(words.model) / "tokenizer.json")
    questions = told(task, text, words.told)
    longest = max(
        *(len(text.encode(one.prompt)) + one.most_tokens for one in task.asked),
        *(len(one.prompt) + len(one.answer) for one in questions),
    )
    answering = answerers.engine(
        answerers.Engine(words.model, words.kernels, words.device, words.dtype, 1, max_length=longest)
    )
    return Setup(
        answering.model, text, task, questions, longest, words.concurrency, graphs=answerers.capturable(words.kernels)
    )
