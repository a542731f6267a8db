"""Verdicts made by hand, of real faults, for what is made out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.case import Case, Segment
from harness.faults import matrix, model
from harness.faults.merge import Run
from harness.faults.verdict import Settings, Verdict, Witness

FAULTS = {fault.id: fault for fault in model.load()}
OPERATOR = "chunk_metadata"
#: Ids of the operator's faults; the first is historical.
IDS = sorted((f.id for f in FAULTS.values() if f.operator == OPERATOR), key=lambda n: (not FAULTS[n].historical, n))


def case(*lengths: int, chunk_size: int = 8) -> dict[str, Any]:
    """A shrunk case of the operator, as a verdict has it."""
    sequences = tuple(Segment(n) for n in lengths)
    of = Case(OPERATOR, sequences, dims={"C": chunk_size}, dtype="int32", options={"hints": False})
    return {"target": "planted:target", **of.to_json()}


def witness(prop: str, seconds: float = 1.0, symptom: str = "wrong metadata", **changes: Any) -> Witness:
    fields = {"sentence": f"a small batch of {prop}", "message": f"{prop} said no", "cases": 7, "case": case(3)}
    return Witness(property=prop, symptom=symptom, dtype="int32", seconds=seconds, **{**fields, **changes})


def killed(name: str, *witnesses: Witness, exhausted: bool = False) -> Verdict:
    verdict = Verdict(FAULTS[name], "survived", exhausted=exhausted, total_seconds=9.0)
    for one in witnesses:
        verdict.killed_by(one)
    return verdict


def survived(name: str) -> Verdict:
    return Verdict(FAULTS[name], "survived", seconds=31.0, total_seconds=31.0, cases=1234, exhausted=True)


def run(
    verdicts: list[Verdict],
    *,
    device: str = "cpu",
    tier: str = "premerge",
    witnesses: int = 2,
    planned: int | None = None,
    name: str = "a.json",
) -> Run:
    settings = Settings(device, 5, Path("trials"), tier=tier, witnesses=witnesses)
    return Run.from_json(matrix.to_json(verdicts, settings, 60.0, planned), name)
