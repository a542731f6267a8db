"""In which order a fault meets the properties: every one with a few cases first, then again with more.

Most faults fall to the first cases of one property or another, and which one is not known; going wide before going deep
finds it soonest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness import interpreter, operators
from harness.cell import CellSpec
from harness.context import Property
from harness.faults.model import Fault
from harness.isolation import suite

#: Cases of a property of weight 1, round by round. Two at least: the first one drawn is always the plainest there is.
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


def cells(fault: Fault, target: str, device: str, seed: int) -> Iterator[Planned]:
    """The cells that a fault meets, soonest first. dtypes take turns over properties and rounds, and so do seeds."""
    properties = sorted(
        (p for p in suite(fault.operator).PROPERTIES if device in p.devices), key=lambda p: ORDER.index(p.group)
    )
    untrusted = interpreter.probe()
    dtypes = [d for d in operators.get(fault.operator).dtypes if d not in untrusted]
    for turn, cases in enumerate(ROUNDS):
        final = turn == len(ROUNDS) - 1
        for place, prop in enumerate(properties):
            allowed = [d for d in dtypes if prop.dtypes is None or d in prop.dtypes]
            if not allowed or (prop.name in LAST and not final):
                continue
            yield Planned(
                prop,
                CellSpec(
                    operator=fault.operator,
                    subject=fault.id,
                    target=target,
                    property=prop.name,
                    device=device,
                    dtype=allowed[(turn + place) % len(allowed)],
                    examples=_examples(prop, cases),
                    seed=seed + 1000 * turn + place,
                ),
            )


def _examples(prop: Property, cases: int) -> int:
    """Properties with a fixed number of cases enumerate by themselves: one case of theirs is many."""
    if prop.examples is not None:
        return min(prop.examples, cases)
    return max(ROUNDS[0], round(cases * min(prop.weight, MOST_WEIGHT)))
