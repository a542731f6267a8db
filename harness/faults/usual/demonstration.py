"""Results that no kernel need compute: which rules let them pass?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.faults.usual import rules
from harness.faults.usual.preparing import Bench, Prepared


@dataclass(frozen=True)
class Shown:
    """A wrong result in the place of a subject's. passed: rule to the number of ``calls`` on which it passes."""

    name: str
    bench: Bench
    calls: int
    passed: dict[str, int]


def zero(part: rules.Part) -> Tensor | None:
    """All outputs and states are zero."""
    return None if part.expected is None else torch.zeros_like(part.expected)


def outputs_zero(part: rules.Part) -> Tensor | None:
    """Zeros for outputs, beside right states."""
    return zero(part) if part.name == "output" else part.expected


def state_untouched(part: rules.Part) -> Tensor | None:
    """Right outputs, and the state stays what it was before the call."""
    return part.expected if part.before is None else part.before


def doubled(part: rules.Part) -> Tensor | None:
    """Twice the right result."""
    return None if part.expected is None else part.expected * 2


WRONG: dict[str, Callable[[rules.Part], Tensor | None]] = {
    "all zero": zero,
    "outputs zero, states right": outputs_zero,
    "state never written": state_untouched,
    "twice the result": doubled,
}


def show(bench: Bench, prepared: list[Prepared]) -> Iterator[Shown]:
    """Of operators with tokens; a state can stay what it was only where there is one."""
    for name, wrong in WRONG.items():
        if bench.operator in ("chunk_metadata", "step_metadata"):
            continue
        if name == "state never written" and not any(part.before is not None for p in prepared for part in p.parts):
            continue
        said = [rules.passing([wrong(part) for part in one.parts], one.parts) for one in prepared]
        yield Shown(name, bench, len(said), {rule: sum(s[rule] for s in said) for rule in rules.NAMES})
