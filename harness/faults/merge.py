"""Runs of several devices and tiers put together: one column for each device and tier, one row for each fault."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.faults import matrix
from harness.faults.model import Fault
from harness.faults.verdict import Verdict
from harness.tiers import TIERS

SCHEMA_VERSION = 1
#: What a run says of itself in ``faults.json``, beside its verdicts.
_META = ("device", "tier", "seed", "time_limit", "witnesses", "planned", "wall_seconds")


@dataclass(frozen=True)
class Run:
    """One ``faults.json``. name: how messages call it. planned: faults that the run was about."""

    name: str
    device: str
    tier: str
    seed: int
    time_limit: float
    witnesses: int
    planned: int
    wall_seconds: float
    verdicts: tuple[Verdict, ...] = field(repr=False)

    @property
    def column(self) -> str:
        return f"{self.device} {self.tier}"

    @classmethod
    def from_json(cls, data: dict[str, Any], name: str) -> Run:
        if data.get("schema_version") != matrix.SCHEMA_VERSION:
            raise ValueError(
                f"{name}: got schema version {data.get('schema_version')}, expected {matrix.SCHEMA_VERSION};"
                " run sluicegate faults again"
            )
        verdicts = tuple(Verdict.from_json(entry) for entry in data["faults"])
        return cls(name, **{key: data[key] for key in _META}, verdicts=verdicts)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Raises ValueError for a file that is not there or no ``faults.json``."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: expected a faults.json, got {error}") from error
        if not isinstance(data, dict) or "faults" not in data:
            raise ValueError(f"{path}: expected a faults.json, got other JSON; sluicegate faults writes one")
        return cls.from_json(data, str(path))


@dataclass
class Column:
    """All that is known of one tier on one device: fault's id -> verdict."""

    device: str
    tier: str
    runs: list[Run]
    verdicts: dict[str, Verdict]

    @property
    def name(self) -> str:
        return f"{self.device} {self.tier}"

    @property
    def summary(self) -> dict[str, Any]:
        return matrix.summary(list(self.verdicts.values()))

    def sees(self, fault: Fault) -> bool:
        return fault.id in self.verdicts and self.verdicts[fault.id].status not in matrix.APART

    @property
    def missing(self) -> int:
        """Faults that its runs were about and did not come to: an interrupted run has some."""
        return sum(run.planned - len(run.verdicts) for run in self.runs)


@dataclass
class Matrix:
    columns: list[Column]
    faults: list[Fault]

    @property
    def survivors(self) -> list[tuple[Column, Verdict]]:
        """What survived, or could not be judged, in some column; fault by fault."""
        return [
            (column, column.verdicts[fault.id])
            for fault in self.faults
            for column in self.columns
            if fault.id in column.verdicts and column.verdicts[fault.id].status in ("survived", "error")
        ]

    @property
    def visible(self) -> list[Fault]:
        """What some column can see."""
        return [fault for fault in self.faults if any(column.sees(fault) for column in self.columns)]

    @property
    def blind(self) -> list[Column]:
        """Columns in which no fault counts: all of theirs are unseen there, proven equivalent or no valid program."""
        return [column for column in self.columns if column.summary["score"] is None]

    @property
    def exit_status(self) -> int:
        """1: a fault survived or a trial went wrong. 3: a column is not complete, or no fault of it counts. 0: neither."""
        if self.survivors:
            return 1
        return 3 if any(column.missing for column in self.columns) or self.blind else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "columns": [
                {
                    "name": column.name,
                    "device": column.device,
                    "tier": column.tier,
                    "missing": column.missing,
                    "runs": [{key: getattr(run, key) for key in ("name", *_META)} for run in column.runs],
                    "summary": column.summary,
                }
                for column in self.columns
            ],
            "faults": [
                {
                    **fault.to_json(),
                    "verdicts": {
                        c.name: _verdict(c.verdicts[fault.id]) for c in self.columns if fault.id in c.verdicts
                    },
                }
                for fault in self.faults
            ],
        }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {name: value for name, value in asdict(verdict).items() if name != "fault"}


def merge(runs: Iterable[Run]) -> Matrix:
    """The matrix of these runs; CPU before GPU, quick before nightly, operators and faults in the order of the runs.

    Raises ValueError where a fault occurs twice in a column, since one verdict would hide the other, and where two runs mean
    different changes by one id.
    """
    columns: dict[str, Column] = {}
    faults: dict[str, Fault] = {}
    origin: dict[str, str] = {}
    for run in runs:
        column = columns.setdefault(run.column, Column(run.device, run.tier, [], {}))
        for verdict in run.verdicts:
            fault = verdict.fault
            if fault.id in column.verdicts:
                first = next(r.name for r in column.runs if fault.id in {v.fault.id for v in r.verdicts})
                raise ValueError(
                    f"{run.name}: got fault {fault.id} on {run.column}, which {first} has as well; give one of the two"
                )
            known = faults.setdefault(fault.id, fault)
            origin.setdefault(fault.id, run.name)
            if _change(known) != _change(fault):
                raise ValueError(
                    f"{run.name}: fault {fault.id} is another change than in {origin[fault.id]}; run the older one again"
                )
            column.verdicts[fault.id] = verdict
        column.runs.append(run)
    ordered = sorted(columns.values(), key=lambda c: (c.device, TIERS.index(c.tier)))
    operators = list(dict.fromkeys(fault.operator for fault in faults.values()))
    return Matrix(ordered, sorted(faults.values(), key=lambda f: operators.index(f.operator)))


def _change(fault: Fault) -> tuple[str, ...]:
    return fault.operator, fault.subject, fault.module, fault.find, fault.replace
