"""What a property is, and what it gets to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from harness import budget
from harness.batch import Batch, Result
from harness.operators.base import Operator, SequenceOperator
from harness.subjects import Capabilities, baseline

GROUPS = ("equivalence", "relations", "memory", "arguments", "cost")


@dataclass(frozen=True)
class Property:
    """Something that must hold for every case: a name, a group of `GROUPS`, and a body that raises `Failure`.

    weight: its part of an operator's cases, relative to the other properties. devices: where it means something.
    examples: a fixed number of cases instead of a weighted one, for checks that are costly or that enumerate by
    themselves. tag: ``needs`` a capability beyond the contract (``"strided"``).
    """

    name: str
    group: str
    body: Callable[[Context, Any], None] = field(compare=False)
    weight: float = 1.0
    devices: tuple[str, ...] = ("cpu", "cuda")
    examples: int | None = None
    dtypes: tuple[str, ...] | None = None
    #: Replaces the operator's strategy, for properties about a special kind of case.
    strategy: Callable[..., Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"property {self.name}: got group {self.group!r}, expected one of {GROUPS}")


@dataclass
class Context:
    """One subject of one operator on one device, and helpers that judge what it returns."""

    operator: Operator
    function: Callable[..., Any]
    device: torch.device
    capabilities: Capabilities = Capabilities()
    check_memory: bool = True
    target: str = ""
    #: The largest share of its allowance that any row used, and how many cases were judged.
    worst_share: float = 0.0
    cases: int = 0

    @property
    def sequences(self) -> SequenceOperator:
        if not isinstance(self.operator, SequenceOperator):
            raise TypeError(f"{self.operator.name} is no operator over sequences; this property does not apply to it")
        return self.operator

    def batch(self, case: Any) -> Batch:
        return self.sequences.batch(case, self.device)

    def run(self, batch: Batch, *, poison: float | None = None) -> Result:
        return self.sequences.run(
            self.function, batch, device=self.device, check_memory=self.check_memory, poison=poison
        )

    def baseline(self) -> Callable[..., Any] | None:
        found = baseline(self.operator.name)
        return found.load() if found else None

    # -- judging ----------------------------------------------------------------------------------------------------

    def require_within_budget(self, got: Result, batch: Batch) -> None:
        """Outputs and states of every active sequence, judged apart against the oracle (see `harness.budget`)."""
        operator = self.sequences
        oracle, model, magnitude = operator.oracle(batch), operator.model(batch), operator.magnitude(batch)
        for i in batch.active:
            if operator.state_is_copy:
                self._state_bits(got, model, i, "the state is a copy of the last inputs: no arithmetic takes part in it")
            else:
                rows = [t.states[i].flatten(1) for t in (got, oracle, model, magnitude)]  # type: ignore[union-attr]
                self._share(budget.require_within(*rows, f"state of sequence {i}"))
            self._share(
                budget.require_within(
                    got.outputs[i], oracle.outputs[i], model.outputs[i], magnitude.outputs[i], f"output of sequence {i}"
                )
            )

    def _share(self, share: float) -> None:
        self.worst_share = max(self.worst_share, share)

    def require_same(self, got: Result, expected: Result, why: str, *, batch: Batch, only: list[int] | None = None) -> None:
        """Bitwise equality of outputs and states, sequence by sequence; by the budget for a subject that promises less."""
        if not self.capabilities.bitwise:
            self.require_within_budget(got, batch)
            return
        for i in range(len(expected.outputs)) if only is None else only:
            if expected.states[i] is not None:
                self._state_bits(got, expected, i, why)
            budget.require_same_bits(got.outputs[i], expected.outputs[i], f"output of sequence {i}", why)

    @staticmethod
    def _state_bits(got: Result, expected: Result, i: int, why: str) -> None:
        have, want = got.states[i], expected.states[i]
        if have is None or want is None:
            raise TypeError(f"sequence {i} has no state to compare")
        budget.require_same_bits(have, want, f"state of sequence {i}", why)
