"""Generated faults that are none, because no caller can tell the change: each with its proof, in ``equivalents.yaml``.

An entry names faults by a pattern of their ``id`` or by ``module``, ``find`` and ``replace``, which outlive a line number;
``at`` is then a part of the line where ``find`` begins, if it occurs elsewhere too. ``proof`` is in words, ``check`` the name
of a test in tests/faults that tries what it says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from harness.faults.model import Fault
from harness.faults.reach import module

FILE = Path(__file__).with_name("equivalents.yaml")


@dataclass(frozen=True)
class Equivalent:
    proof: str
    id: str = "*"
    module: str = ""
    find: str = ""
    replace: str = ""
    at: str = ""
    check: str = ""

    def __post_init__(self) -> None:
        if not self.proof.strip():
            raise ValueError(f"equivalent {self.id}: proof: got none; without one a survivor is a survivor")
        exact = bool(self.module and self.find and self.replace)
        if exact == (self.id != "*"):
            raise ValueError(
                f"equivalent {self.id} in {self.module or 'no module'}: expected an id, or module, find and replace"
            )

    def covers(self, fault: Fault) -> bool:
        if self.module:
            same = (self.module, self.find, self.replace) == (fault.module, fault.find, fault.replace)
            return same and self.at in _line(fault)
        return fnmatchcase(fault.id, self.id)


def _line(fault: Fault) -> str:
    assert fault.span is not None
    return module(fault.module).source.text.split("\n")[fault.span.line - 1]


def load(path: Path = FILE) -> list[Equivalent]:
    return [Equivalent(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def mark(faults: Iterable[Fault], known: Iterable[Equivalent] | None = None) -> list[Fault]:
    """The same faults; those that are proven equivalent carry the proof."""
    entries = load() if known is None else list(known)
    return [_marked(fault, entries) for fault in faults]


def _marked(fault: Fault, entries: list[Equivalent]) -> Fault:
    proof = next((entry.proof for entry in entries if entry.covers(fault)), "")
    return replace(fault, equivalent=" ".join(proof.split())) if proof else fault
