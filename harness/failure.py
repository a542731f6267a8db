"""What a failed check is: an identity, a sentence, the rows that prove it, and the case."""

from __future__ import annotations

import builtins
import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

#: In the order in which a result is judged (design section 5).
SYMPTOMS = (
    "raised",
    "crashed",
    "hung",
    "not rejected",
    "wrong shape",
    "wrong dtype",
    "not written",
    "non-finite",
    "input changed",
    "guard band written",
    "out of bounds",
    "untouched slot changed",
    "race",
    "inactive row not zero",
    "not bitwise equal",
    "wrong experts",
    "over budget",
    "host sync",
    "recompiles",
    "too many launches",
    "copies state",
    "not capturable",
    "address moved",
    "wrong metadata",
    "wrong inputs",
    "wrong schedule",
    "wrong accounting",
    "wrong answer",
    "stuck",
    "recomputed",
)


@dataclass(frozen=True)
class Row:
    """One offending row: where it is, what was expected, what came, and how far over the allowance it is."""

    where: str
    expected: list[float]
    got: list[float]
    error: float = float("nan")
    allowed: float = float("nan")

    def to_json(self) -> dict[str, Any]:
        return {
            "where": self.where,
            "expected": [_number(v) for v in self.expected],
            "got": [_number(v) for v in self.got],
            "error": _number(self.error),
            "allowed": _number(self.allowed),
        }


def _number(value: float) -> float | str:
    """JSON has no NaN or infinity: they travel as words."""
    value = float(value)
    return value if value - value == 0 else str(value)


class Failure(AssertionError):
    """A property did not hold.

    Hypothesis tells failures apart by their type and the line that raised them, and shrinks one kind at a time; `fail`
    therefore raises a subclass made for the symptom, so that shrinking cannot slip from one fault to another.
    """

    symptom = "over budget"

    def __init__(self, message: str, rows: list[Row] | None = None, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.rows = rows or []
        self.details = details


@cache
def _failure_type(symptom: str, mark: str) -> type[Failure]:
    if symptom not in SYMPTOMS:
        raise ValueError(
            f"symptom: got {symptom!r}, expected one of {SYMPTOMS}; add new ones to harness.failure.SYMPTOMS"
        )
    return type(f"Failure[{symptom}{mark}]", (Failure,), {"symptom": symptom})


def fail(symptom: str, message: str, rows: list[Row] | None = None, *, details: str = "", mark: str = "") -> NoReturn:
    """Raise the failure of this symptom. ``mark`` narrows the identity, e.g. to the exception's type or the tensor."""
    raise _failure_type(symptom, mark)(message, rows, details)


def failure_id(operator: str, subject: str, prop: str, dtype: str, device: str, symptom: str) -> str:
    key = json.dumps([operator, subject, prop, symptom, dtype, device])
    return f"{operator}-{prop}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


@dataclass
class FailureRecord:
    """A failure as the reports carry it: identity, sentence, rows, the smallest case and how to run it again."""

    operator: str
    subject: str
    property: str
    symptom: str
    message: str
    case: dict[str, Any]
    sentence: str
    device: str
    dtype: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    details: str = ""
    replay: str = ""
    seconds: float = 0.0
    examples: int = 0

    @builtins.property  # the field above hides the plain name
    def id(self) -> str:
        """Stable over runs that find the same symptom in the same cell: names the fault, not the draw."""
        return failure_id(self.operator, self.subject, self.property, self.dtype, self.device, self.symptom)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "operator": self.operator,
            "subject": self.subject,
            "property": self.property,
            "symptom": self.symptom,
            "message": self.message,
            "sentence": self.sentence,
            "case": self.case,
            "device": self.device,
            "dtype": self.dtype,
            "rows": self.rows,
            "details": self.details,
            "replay": self.replay,
            "seconds": round(self.seconds, 3),
            "examples": self.examples,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FailureRecord:
        return cls(**{k: v for k, v in data.items() if k != "id"})
