"""The matrix read the other way: which properties, and which of the values that are drawn, the kills would not miss.

A property *kills alone* where it is the only witness against some fault although all of the tier's cases were tried. That
needs a run with ``--witnesses 2`` or more; with one witness nobody asked for another.
"""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from harness import operators, strategies, tiers
from harness.draws import draws
from harness.faults.merge import Matrix
from harness.faults.verdict import Verdict, Witness
from harness.isolation import suite
from harness.report import drawings

#: Cases drawn of each operator on each device, over all dtypes, to see what the generator draws.
DRAWN = 300
#: The process was gone before such a case could be made smaller, so it says little about what the kill needs.
UNSHRUNK = ("crashed", "hung")


@dataclass
class Standing:
    """What one property of one operator did. first, further: faults that it killed first, or after others.

    alone: those that nothing else killed, each with its column. undecided: those where time ran out before another was found.
    """

    operator: str
    property: str
    first: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)
    alone: list[tuple[str, str]] = field(default_factory=list)
    undecided: list[tuple[str, str]] = field(default_factory=list)

    @builtins.property  # the field above hides the plain name
    def status(self) -> str:
        """``alone``, ``undecided``, ``never alone`` or ``no witness``."""
        if self.alone:
            return "alone"
        if self.undecided:
            return "undecided"
        return "never alone" if self.first or self.further else "no witness"


@dataclass
class Axis:
    """One axis of an operator's coverage: values, binned where there are many, with the killing cases that have each."""

    name: str
    needed: dict[str, int]
    unneeded: list[str]


@dataclass
class Reverse:
    """asked: whether some run looked for a second witness. drawn, killing: cases of each operator that ``axes`` compare."""

    asked: bool
    standings: list[Standing]
    axes: dict[str, list[Axis]]
    drawn: dict[str, int]
    killing: dict[str, int]

    def named(self, status: str) -> list[Standing]:
        return [standing for standing in self.standings if standing.status == status]

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        for entry, standing in zip(data["standings"], self.standings, strict=True):
            entry["status"] = standing.status
        return data


def view(matrix: Matrix) -> Reverse:
    """The reverse view of a matrix. Draws cases, and runs none."""
    axes, drawn, killing = {}, {}, {}
    for operator, witnesses in _witnesses(matrix).items():
        cases = [w for w in witnesses if w.symptom not in UNSHRUNK]
        # A narrow run says nothing about an operator of which it killed nothing.
        if not cases:
            continue
        counts: dict[str, Counter[str]] = {}
        drawn[operator] = sum(
            draw(operator, device, counts, DRAWN)
            for device in dict.fromkeys(column.device for column in matrix.columns)
        )
        axes[operator], killing[operator] = compared(counts, killing_values(operator, cases)), len(cases)
    asked = any(run.witnesses > 1 for column in matrix.columns for run in column.runs)
    return Reverse(asked, standings(matrix), axes, drawn, killing)


def _witnesses(matrix: Matrix) -> dict[str, list[Witness]]:
    found: dict[str, list[Witness]] = {}
    for column in matrix.columns:
        for verdict in column.verdicts.values():
            found.setdefault(verdict.fault.operator, []).extend(verdict.witnesses)
    return found


# -- properties -------------------------------------------------------------------------------------------------------


def standings(matrix: Matrix) -> list[Standing]:
    """Every property that some run of its operator could have asked, in the suites' order."""
    found: dict[tuple[str, str], Standing] = {}
    for column in matrix.columns:
        for operator in dict.fromkeys(v.fault.operator for v in column.verdicts.values()):
            for name in _asked(operator, column.device, column.tier):
                found.setdefault((operator, name), Standing(operator, name))
    for column in matrix.columns:
        sought = {v.fault.id: run.witnesses for run in column.runs for v in run.verdicts}
        for verdict in column.verdicts.values():
            _count(found, verdict, column.name, sought.get(verdict.fault.id, 1))
    return list(found.values())


def _asked(operator: str, device: str, tier: str) -> list[str]:
    return [
        p.name
        for p in suite(operator).PROPERTIES
        if device in p.devices and not (tier == "quick" and p.name in tiers.NOT_QUICK)
    ]


def _count(found: dict[tuple[str, str], Standing], verdict: Verdict, column: str, sought: int) -> None:
    fault = verdict.fault
    for place, witness in enumerate(verdict.witnesses):
        of = found.setdefault((fault.operator, witness.property), Standing(fault.operator, witness.property))
        faults = of.further if place else of.first
        if fault.id not in faults:
            faults.append(fault.id)
        if len(verdict.witnesses) == 1 < sought:
            (of.alone if verdict.exhausted else of.undecided).append((fault.id, column))


# -- values -----------------------------------------------------------------------------------------------------------


def draw(operator: str, device: str, counts: dict[str, Counter[str]], cases: int) -> int:
    """Add to ``counts``, axis -> value -> cases that have it, what so many cases are made of; how many were drawn.

    The same every time, and no case is run.
    """
    of = operators.get(operator)
    scale = strategies.GPU if device == "cuda" else strategies.CPU
    drawn = [case for dtype in of.dtypes for case in draws(of.cases(scale, dtype), max(1, cases // len(of.dtypes)), 0)]
    for case in drawn:
        _observe(counts, of.coverage(case))
    return len(drawn)


def killing_values(operator: str, witnesses: Iterable[Witness]) -> dict[str, Counter[str]]:
    """axis -> value -> how many of the shrunk killing cases have it."""
    of = operators.get(operator)
    counts: dict[str, Counter[str]] = {}
    for witness in witnesses:
        fields = {name: value for name, value in witness.case.items() if name != "target"}
        _observe(counts, of.coverage(of.case_from_json(fields)))
    return counts


def _observe(counts: dict[str, Counter[str]], coverage: Mapping[str, list[str | int]]) -> None:
    for axis, values in coverage.items():
        counts.setdefault(axis, Counter()).update({str(value) for value in values})


def compared(drawn: Mapping[str, Counter[str]], killing: Mapping[str, Counter[str]]) -> list[Axis]:
    """For each axis what the kills need, and what is drawn besides; many numbers in bins that double."""
    out = []
    for axis in drawn:
        of, by = drawn[axis], killing.get(axis, Counter())
        if drawings.is_histogram(axis, {**of, **by}):
            of, by = _binned(of), _binned(by)
        out.append(Axis(axis, dict(by.most_common()), [value for value in _ordered(of) if value not in by]))
    return out


def _ordered(counts: Counter[str]) -> list[str]:
    """Numbers and bins by size, words by how often they are drawn."""
    if all(value[:1].isdigit() for value in counts):
        return sorted(counts, key=lambda value: int("".join(c if c.isdigit() else " " for c in value).split()[0]))
    return [value for value, _ in counts.most_common()]


def _binned(counts: Counter[str]) -> Counter[str]:
    edges = drawings.bins(max((int(value) for value in counts), default=0))
    out: Counter[str] = Counter()
    for value, count in counts.items():
        low, high = next(edge for edge in edges if edge[0] <= int(value) <= edge[1])
        out[str(low) if low == high else f"{low} to {high}"] += count
    return out
