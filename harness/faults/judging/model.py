"""Faults of the judging code as data: the fields of a planted fault, and the tests that must go red.

A file of ``catalogue`` holds ``area``, a word for the report, and ``faults``: ``id``, ``source``, ``wrong``, ``module``,
``find`` and ``replace`` as in the catalogue of kernels, and ``tests``: files of tests, or single tests as ``file::name``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.faults.model import OWN, Fault, check_fields, check_ids

CATALOGUE = Path(__file__).with_name("catalogue")
#: Where judges live.
PACKAGES = ("harness", "references", "serving", "properties", "accuracy")
JUDGING = "judging"
_FIELDS = {"id", "source", "wrong", "module", "find", "replace", "tests"}


@dataclass(frozen=True)
class JudgingFault(Fault):
    """A fault of a judge. operator: the area of its file. subject: empty, no kernel is run for its sake.

    tests: what must go red, files relative to the repository's root or tests in them.
    """

    tests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.module.partition(".")[0] not in PACKAGES:
            raise ValueError(f"fault {self.id}: module: got {self.module!r}, expected one of {', '.join(PACKAGES)}")
        if not self.find or self.find == self.replace:
            raise ValueError(f"fault {self.id}: find and replace: expected some text and another one")
        if self.source != OWN and not self.source.startswith("https://"):
            raise ValueError(f"fault {self.id}: source: got {self.source!r}, expected {OWN!r} or an https link")
        if not self.tests or not all(test.startswith("tests/") for test in self.tests):
            raise ValueError(f"fault {self.id}: tests: got {list(self.tests)}, expected files below tests/")

    @property
    def kind(self) -> str:
        return JUDGING


def load(folder: Path = CATALOGUE) -> list[JudgingFault]:
    """Every fault, in the order of the files. Raises ValueError for an entry of another shape or an id that occurs twice."""
    faults = [fault for path in sorted(folder.glob("*.yaml")) for fault in _read(path)]
    check_ids(faults)
    return faults


def _read(path: Path) -> list[JudgingFault]:
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [_fault(path, data["area"], entry) for entry in data["faults"]]


def _fault(path: Path, area: str, entry: dict[str, Any]) -> JudgingFault:
    check_fields(path, entry, _FIELDS, _FIELDS)
    return JudgingFault(
        id=entry["id"],
        operator=area,
        source=entry["source"],
        wrong=" ".join(entry["wrong"].split()),
        subject="",
        module=entry["module"],
        # A block scalar ends with a line break that is no part of the anchor.
        find=entry["find"].rstrip("\n"),
        replace=entry["replace"].rstrip("\n"),
        tests=tuple(entry["tests"]),
    )
