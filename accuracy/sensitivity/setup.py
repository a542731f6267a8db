"""Reads what the two commands of this folder have in common: a model, a task, and questions for the token check."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accuracy import answerers, tasks
from accuracy.answering import Tokenizer
from accuracy.sensitivity.trial import Setup, told
from harness.files import write_whole


@dataclass(frozen=True)
class Words:
    """The command line of both.

    Attributes:
        shots: worked problems before each of the miniature's questions. chunk_budget: most tokens in a step, no fewer than
            requests at once, for a decode takes one; None: what the engine has by default, which cuts no short prompt.

    Raises:
        ValueError: a budget that the engine would not keep to, or examples for a task that brings its own.
    """

    model: str
    task: str = "miniature"
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    kernels: str = "optimized"
    concurrency: int = 64
    told: int = 100
    most_tokens: int = 128
    shots: int = 0
    chunk_budget: int | None = None

    def __post_init__(self) -> None:
        if self.chunk_budget is not None and self.chunk_budget < self.concurrency:
            raise ValueError(
                f"--chunk-budget: got {self.chunk_budget}, expected at least the {self.concurrency} of --concurrency"
            )
        if self.shots and self.task != "miniature":
            raise ValueError(
                f"--shots: got {self.shots} for {self.task}, expected 0; only the miniature takes examples"
            )


def keep(words: Words, margin: float, out: Path) -> None:
    """Results of two setups in one folder would be compared with each other: the first use of a folder settles its setup.

    Raises ValueError that names what differs.
    """
    path = out / "setup.json"
    asked = asdict(words) | {"margin": margin}
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asked, indent=2) + "\n")
        return
    kept = json.loads(path.read_text())
    for name, value in asked.items():
        if kept.get(name) != value:
            raise ValueError(
                f"--out: {out} has results with {name} {kept.get(name)!r}, got {value!r}; name another folder"
            )


def read(words: Words) -> Setup:
    """Raises ValueError for what is not there."""
    asked = tasks.miniature(words.shots) if words.shots else tasks.load(words.task, limit=words.limit)
    asked = asked.first(words.limit)
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
        answering.model,
        text,
        task,
        questions,
        longest,
        words.concurrency,
        words.chunk_budget,
        graphs=answerers.capturable(words.kernels),
    )
