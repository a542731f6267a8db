"""In which order a fault meets the properties: every one with a few cases first, then again with more.

Most faults fall to the first cases of one property or another, and which one is not known; going wide before going deep
finds it soonest. In all, each cell gets as many cases as the tier gives it, so that a verdict says what the tier would catch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from harness import plan
from harness.cell import CellSpec
from harness.context import GROUPS, Property
from harness.faults.model import Fault
from harness.isolation import suite
from harness.subjects import Subject, registered

#: Cases of a property of weight 1, round by round; the last number again until all are used up. Two at least: the first
#: one drawn is always the plainest there is.
ROUNDS = (2, 6, 20, 60)
#: A weight counts up to this: going wide comes first.
MOST_WEIGHT = 4.0
#: What costs one or two calls a case comes before what costs several.
ORDER = ("equivalence", "cost", "arguments", "memory", "relations")
#: Starts a process a case: last, and once.
LAST = ("cold_equals_warm",)


@dataclass(frozen=True)
class Planned:
    prop: Property
    spec: CellSpec


def allotment(fault: Fault, device: str, tier: str) -> dict[Property, dict[str, int]]:
    """property -> dtype -> cases that ``sluicegate verify --tier`` gives that cell of the subject on this device.

    A subject that is not registered takes its part beside those that are. Cells that verify could not run are left out.
    """
    subjects = registered(fault.operator)
    if fault.subject not in {subject.target for subject in subjects}:
        subjects.append(Subject(fault.operator, fault.subject, fault.subject))
    asked = plan.Plan((fault.operator,), tuple(subjects), tier, GROUPS, device, seed=0, out="")
    out: dict[Property, dict[str, int]] = {}
    for prop, planned in plan.cells(asked, fault.operator, suite(fault.operator).PROPERTIES):
        if planned.spec.target == fault.subject and not planned.not_run:
            out.setdefault(prop, {})[planned.spec.dtype] = planned.spec.examples
    return out


def cells(fault: Fault, target: str, device: str, seed: int, tier: str) -> Iterator[Planned]:
    """The cells that a fault meets, soonest first. dtypes take turns over properties and rounds, and so do seeds."""
    left = allotment(fault, device, tier)
    properties = sorted(left, key=priority)
    for turn in count():
        final = turn >= len(ROUNDS) - 1
        for place, prop in enumerate(properties):
            open_ = [dtype for dtype, cases in left[prop].items() if cases]
            if not open_ or (prop.name in LAST and not final):
                continue
            dtypes = list(left[prop])
            first = (turn + place) % len(dtypes)
            dtype = next(d for d in (*dtypes[first:], *dtypes[:first]) if d in open_)
            examples = _examples(prop, ROUNDS[min(turn, len(ROUNDS) - 1)], left[prop][dtype])
            left[prop][dtype] -= examples
            yield Planned(
                prop,
                CellSpec(
                    operator=fault.operator,
                    subject=fault.id,
                    target=target,
                    property=prop.name,
                    device=device,
                    dtype=dtype,
                    examples=examples,
                    seed=seed + 1000 * turn + place,
                ),
            )
        if not any(cases for dtypes_left in left.values() for cases in dtypes_left.values()):
            return


def priority(prop: Property) -> float:
    """What is for GPUs alone is about what only a GPU shows, and comes soon there."""
    return ORDER.index(prop.group) if "cpu" in prop.devices else min(ORDER.index(prop.group), 0.5)


def _examples(prop: Property, cases: int, left: int) -> int:
    """Properties with a fixed number of cases enumerate by themselves: one case of theirs is many."""
    wanted = cases if prop.examples is not None else max(ROUNDS[0], round(cases * min(prop.weight, MOST_WEIGHT)))
    # What is left must be worth a round.
    return left if left - wanted < ROUNDS[0] else wanted
