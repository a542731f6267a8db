"""What the trials of one run share, and what becomes of a fault."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.faults.model import Fault
from harness.files import write_whole


@dataclass(frozen=True)
class Settings:
    """What the trials of one run share.

    time_limit: seconds for a fault. shrink_seconds: the most that Hypothesis spends on making a case smaller, and again
    the most that the hand-made passes of `harness.shrink` spend. tier: whose cases a fault gets (`harness.tiers`).
    witnesses: different properties to look for; the trial goes on until so many have killed the fault.
    """

    device: str
    seed: int
    folder: Path
    time_limit: float = 60.0
    shrink_seconds: float = 0.75
    tier: str = "premerge"
    witnesses: int = 1


@dataclass(frozen=True)
class Witness:
    """One property that killed a fault, by its smallest failing case.

    seconds: from the start of the trial to the first failing case, without what shrinking and confirming took for earlier
    witnesses. cases: judged until then, over all properties.
    """

    property: str
    symptom: str
    dtype: str
    sentence: str
    message: str
    seconds: float
    cases: int
    case: dict[str, Any] = field(default_factory=dict)


@dataclass
class Verdict:
    """What became of a fault.

    status: ``killed``, ``survived``, ``unseen`` (this device cannot show it), ``equivalent`` (proven to change nothing),
    ``invalid`` (generated, and neither Python nor a kernel) or ``error``. witnesses: what killed it, soonest first.
    seconds, cases: those of the first witness, or of the whole trial where there is none. exhausted: all of the tier's cases
    were used up, so that no other property of the tier kills it with them.
    """

    fault: Fault
    status: str
    witnesses: list[Witness] = field(default_factory=list)
    message: str = ""
    seconds: float = 0.0
    total_seconds: float = 0.0
    cases: int = 0
    exhausted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> Witness | None:
        return self.witnesses[0] if self.witnesses else None

    def killed_by(self, witness: Witness) -> None:
        """One witness more."""
        if not self.witnesses:
            self.status, self.message = "killed", witness.message
            self.seconds, self.cases = witness.seconds, witness.cases
        self.witnesses.append(witness)

    def to_json(self) -> dict[str, Any]:
        data = {name: value for name, value in asdict(self).items() if name != "fault"}
        return {**self.fault.to_json(), **data}

    def save(self, path: Path) -> None:
        """Whole or not at all: the parent reads it when this process is gone, however it went."""
        write_whole(path, json.dumps(self.to_json()))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Verdict:
        """The verdict that `to_json` wrote."""
        of_fault = {"kind", *(one.name for one in fields(Fault))}
        own = {name: value for name, value in data.items() if name not in of_fault}
        witnesses = [Witness(**witness) for witness in own.pop("witnesses")]
        fault = Fault.from_json({name: value for name, value in data.items() if name in of_fault})
        return cls(fault, witnesses=witnesses, **own)

    @classmethod
    def load(cls, path: Path) -> Verdict:
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))


def verdict_path(settings: Settings, fault: Fault) -> Path:
    return settings.folder / f"{fault.file_name}.json"


def partial_path(settings: Settings, fault: Fault) -> Path:
    """What is known of a fault while its trial goes on: its process may end before it can say so."""
    return settings.folder / f"{fault.file_name}.partial"


def partial(settings: Settings, fault: Fault) -> Verdict | None:
    path = partial_path(settings, fault)
    return Verdict.load(path) if path.exists() else None


def by_operator(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The verdicts by their operators, both in the order given."""
    return {
        operator: [v for v in verdicts if v.fault.operator == operator]
        for operator in dict.fromkeys(v.fault.operator for v in verdicts)
    }
