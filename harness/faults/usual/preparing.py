"""The calls of one subject, prepared once for all of its faults: their truths, and which rules the unchanged subject passes.

A catch counts only where the unchanged subject passes the same rule on the same call; where it does not, the rule has
raised a false alarm.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from harness import interpreter, operators
from harness.case import AnyCase
from harness.faults.model import Fault
from harness.faults.usual import calls, inputs, rules
from harness.faults.usual.inputs import Drawing, Kind
from harness.files import write_whole
from harness.subjects import load_target


@dataclass(frozen=True)
class Prepared:
    """One call. passes: rule to whether the unchanged subject passes it there."""

    case: AnyCase
    parts: tuple[rules.Part, ...]
    passes: dict[str, bool]


@dataclass(frozen=True)
class Bench:
    """Which subject of which operator is given which kind of calls."""

    operator: str
    subject: str
    kind: Kind

    @classmethod
    def of(cls, fault: Fault, kind: Kind) -> Bench:
        return cls(fault.operator, fault.subject, kind)

    def path(self, folder: Path) -> Path:
        return folder / f"{self.subject.replace(':', '.')}-{self.kind}.pickle"


def main(bench: Bench, cases: int, seed: int, folder: Path) -> None:
    """A child process: prepare a bench and leave it in the folder."""
    torch.set_num_threads(1)
    interpreter.repair()
    # A case is pickled as its JSON: its mappings are read-only views, which cannot be.
    prepared = [(one.case.to_json(), one.parts, one.passes) for one in prepare(bench, cases, seed)]
    write_whole(bench.path(folder), pickle.dumps(prepared))


def prepare(bench: Bench, cases: int, seed: int) -> Iterator[Prepared]:
    function = load_target(bench.subject)
    for case in inputs.cases(bench.operator, bench.kind, Drawing(bench.subject, cases, seed)):
        parts = calls.truth(bench.kind, case)
        yield Prepared(case, parts, rules.passing(calls.call(function, bench.kind, case), parts))


def load(bench: Bench, folder: Path) -> list[Prepared]:
    read = operators.get(bench.operator).case_from_json
    return [Prepared(read(case), *rest) for case, *rest in pickle.loads(bench.path(folder).read_bytes())]


def false_alarms(prepared: list[Prepared]) -> dict[str, int]:
    """By rule, of how many calls the unchanged subject's right result is called wrong."""
    return {name: sum(not one.passes[name] for one in prepared) for name in rules.NAMES}
