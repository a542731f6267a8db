"""Sets of problems from a seed, and the line between those to learn and those to be asked.

On which side of the line a problem is depends on its template and on what is computed in its solution, on nothing else. So no seed,
no size and no other name for somebody can bring a held-out problem into training.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accuracy.problems import parts, sharing, shopping, travel
from accuracy.problems.template import TEMPLATES, Draw, Unsuitable, Work
from harness.files import write_whole

__all__ = ["HELD_OUT", "Problem", "generate", "held_out", "parts", "sharing", "shopping", "side", "travel", "write"]

#: As many as GSM8K's test split has.
HELD_OUT = 1319
Side = Literal["train", "test"]
_TRIES = 10_000


@dataclass(frozen=True)
class Problem:
    """question: as it is asked. solution: worked, ending in ``#### n``. expressions: of its lines; its identity."""

    template: str
    expressions: tuple[str, ...]
    question: str
    solution: str

    @property
    def key(self) -> str:
        return f"{self.template}:{';'.join(self.expressions)}"

    def line(self) -> str:
        """In GSM8K's format."""
        return json.dumps({"question": self.question, "answer": self.solution}, ensure_ascii=False)


def side(key: str) -> Side:
    """A tenth of what can be drawn is never learnt."""
    return "test" if hashlib.sha256(key.encode()).digest()[0] * 10 < 256 else "train"


def make(name: str, source: random.Random, *, annotations: bool = True) -> Problem:
    """One problem of a template.

    Args:
        annotations: with the calculator's ``<<a*b=c>>`` before each result.
    """
    for _ in range(_TRIES):
        draw, work = Draw(source), Work()
        try:
            question = TEMPLATES[name](draw, work)
        except Unsuitable:
            continue
        solution = "\n".join([*work.lines, f"#### {work.last}"])
        if not annotations:
            solution = re.sub(r"<<[^>]*>>", "", solution)
        return Problem(name, tuple(work.expressions), question, solution)
    raise RuntimeError(f"template {name}: no sensible problem in {_TRIES} draws")


def generate(seed: int, which: Side, *, annotations: bool = True) -> Iterator[Problem]:
    """Problems of one side of the line without end, every template as often as any other."""
    source = random.Random(f"sluicegate problems {which} {seed}")
    names = sorted(TEMPLATES)
    while True:
        source.shuffle(names)
        for name in names:
            problem = make(name, source, annotations=annotations)
            while side(problem.key) != which:
                problem = make(name, source, annotations=annotations)
            yield problem


def held_out(count: int = HELD_OUT, seed: int = 0, *, annotations: bool = True) -> list[Problem]:
    """Problems that are never learnt, all different."""
    found: dict[str, Problem] = {}
    for problem in generate(seed, "test", annotations=annotations):
        found.setdefault(problem.key, problem)
        if len(found) == count:
            break
    return list(found.values())


def write(folder: Path, training: int, seed: int = 0, *, annotations: bool = True) -> None:
    """Write train.jsonl, with so many problems, and test.jsonl, both in GSM8K's format."""
    folder.mkdir(parents=True, exist_ok=True)
    learnt = generate(seed, "train", annotations=annotations)
    write_whole(folder / "train.jsonl", "".join(next(learnt).line() + "\n" for _ in range(training)))
    write_whole(folder / "test.jsonl", "".join(p.line() + "\n" for p in held_out(annotations=annotations)))
