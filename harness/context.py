"""What a property is, and what it gets to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness import budget
from harness.batch import Batch, Result
from harness.distribution import Tally
from harness.failure import Failure, Row, fail
from harness.memory import Fill, poisoned, same_bits
from harness.operators.base import Operator, SequenceOperator, TokenOperator
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
    #: (operator's name, subject's function) -> why there is nothing to check for it, or "": such a cell is listed as not
    #: run instead of passing.
    nothing_to_check: Callable[[str, Callable[..., Any]], str] = field(default=lambda _, __: "", compare=False)

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"property {self.name}: got group {self.group!r}, expected one of {GROUPS}")


def in_one_dtype(dtype: str, *properties: Property) -> tuple[Property, ...]:
    """The properties, each in this dtype alone: for an operator that is slow, of whose relations few look at dtypes."""
    return tuple(replace(prop, dtypes=(dtype,)) for prop in properties)


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
    #: Counts that a guard bounds (launches, compiled variants …): the largest seen, for the report.
    measured: dict[str, int] = field(default_factory=dict)
    #: The errors of the rows that the budget judged, for the report.
    tally: Tally = field(default_factory=Tally)

    @property
    def tokens(self) -> TokenOperator:
        if not isinstance(self.operator, TokenOperator):
            raise TypeError(f"{self.operator.name} is no operator over tokens; this property does not apply to it")
        return self.operator

    @property
    def sequences(self) -> SequenceOperator:
        if not isinstance(self.operator, SequenceOperator):
            raise TypeError(f"{self.operator.name} is no operator over sequences; this property does not apply to it")
        return self.operator

    def note(self, what: str, count: int) -> None:
        self.measured[what] = max(count, self.measured.get(what, 0))

    def batch(self, case: Any) -> Batch:
        return self.tokens.batch(case, self.device)

    def run(self, batch: Batch, *, fill: Fill = poisoned) -> Result:
        return self.tokens.run(self.function, batch, device=self.device, check_memory=self.check_memory, fill=fill)

    def baseline(self) -> Callable[..., Any]:
        """The operator's pre-optimization implementation; its properties are not run where there is none."""
        found = baseline(self.operator.name)
        assert found is not None
        return found.load()

    # -- judging ----------------------------------------------------------------------------------------------------

    def require_within_budget(
        self, got: Result, batch: Batch, *, oracle: Result | None = None, by: str = "", states: bool = True
    ) -> None:
        """Outputs and states of every active sequence, judged apart against the oracle (see `harness.budget`).

        ``oracle``: what a property knows to be true by itself, in float64; None asks the operator's. What rounding explains comes
        from the operator in any case, so that a property that knows wrong fails right subjects, too. ``by``: whose result it
        is, where it is not the subject's, so that the report does not count its rows as the subject's. ``states`` false: the
        call gave none, so that only outputs can be judged.
        """
        active = batch.active
        if not active:
            return
        operator = self.tokens
        own = operator.oracle(batch)
        oracle = oracle or own
        model, magnitude, noise = operator.model(batch), operator.magnitude(batch), operator.operand_noise(batch)
        lengths = [batch.lengths[i] for i in active]
        owners = [(i, t) for i, length in zip(active, lengths, strict=True) for t in range(length)]

        def token(index: list[int]) -> str:
            sequence, number = owners[index[0]]
            return f"sequence {sequence}, token {number}" + (f", head {index[1]}" if len(index) > 1 else "")

        def state(index: list[int]) -> str:
            return f"sequence {active[index[0]]}, head {index[1]}"

        if operator.chooses:
            self._require_same_choices(got, oracle, active)
        judged: list[tuple[str, str, budget.Locate]] = [("outputs", "output", token)]
        if not states:
            pass
        elif isinstance(operator, SequenceOperator) and operator.state_is_copy:
            why = "the state is a copy of the last inputs: no arithmetic takes part in it"
            self._require_same_bits(got, model, active, "states", why)
        elif isinstance(operator, SequenceOperator):
            judged.insert(0, ("states", "state", state))
        failures = []
        for name, what, locate in judged:
            have, want, modelled, terms = (_joined(result, active, name) for result in (got, oracle, model, magnitude))
            truth = None if oracle is own else _joined(own, active, name)
            spread = None if noise is None else _joined(noise, active, name)
            count = partial(self.tally.add, f"{by} {what}".strip())
            try:
                share = budget.require_within(have, want, modelled, terms, what, locate, spread, count, truth)
            except Failure as failure:
                # Whatever became of the states, the errors of the outputs are counted too.
                failures.append(failure)
            else:
                self.worst_share = max(self.worst_share, share)
        if failures:
            raise failures[0]

    @staticmethod
    def _require_same_choices(got: Result, oracle: Result, active: list[int]) -> None:
        """What was chosen for each token is what the oracle chooses, in its order."""
        have, want = (torch.cat([part for i in active if (part := r.states[i]) is not None]) for r in (got, oracle))
        wrong = torch.nonzero((have != want).any(1)).flatten()
        if wrong.numel():
            first = int(wrong[0])
            row = Row(f"choice of token {first}", want[first, :8].tolist(), have[first, :8].tolist())
            text = f"{wrong.numel()} of {have.shape[0]} tokens are sent to other experts, or in another order, than the oracle says"
            fail("wrong experts", f"expert_ids: {text}; the first one is token {first}", [row], mark="choice")

    def require_same(
        self,
        got: Result,
        expected: Result,
        why: str,
        *,
        batch: Batch,
        only: list[int] | None = None,
        promised: bool | None = None,
    ) -> None:
        """Bitwise equality of outputs and states, sequence by sequence; by the budget for a subject that promises less.

        ``only``: these sequences; of ``batch``, what the others hold need not be what ``got`` was computed from.
        ``promised``: whether the subject promises these bits, if that is not what its ``bitwise`` says.
        """
        if not (self.capabilities.bitwise if promised is None else promised):
            if only is not None:
                got, batch = got.select(only), batch.select(only)
            self.require_within_budget(got, batch)
            return
        chosen = list(range(len(expected.outputs))) if only is None else only
        with_state = [i for i in chosen if expected.states[i] is not None]
        self._require_same_bits(got, expected, with_state, "states", why)
        self._require_same_bits(got, expected, chosen, "outputs", why)

    def require_invariant(self, got: Result, expected: Result, why: str, *, batch: Batch) -> None:
        """As `require_same`, of calls with different numbers of rows: bits only of a subject that promises them there, too."""
        if self.capabilities.batch_invariant:
            self.require_same(got, expected, why, batch=batch)
        else:
            self.require_within_budget(got, batch)

    @staticmethod
    def _require_same_bits(got: Result, expected: Result, chosen: list[int], name: str, why: str) -> None:
        """Compared at once, since hundreds of small comparisons would each wait for the device; reported one by one."""
        haves, wants = ([getattr(r, name)[i] for i in chosen] for r in (got, expected))
        shapes_agree = all(h.shape == w.shape and h.dtype == w.dtype for h, w in zip(haves, wants, strict=True))
        if not chosen or (shapes_agree and same_bits(_flat(haves), _flat(wants))):
            return
        for i, have, want in zip(chosen, haves, wants, strict=True):
            budget.require_same_bits(have, want, f"{name[:-1]} of sequence {i}", why)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _joined(result: Result, active: list[int], name: str) -> Tensor:
    """Outputs of the active sequences as [tokens, ...], or their states as [sequences, heads, V x K]."""
    parts = [getattr(result, name)[i] for i in active]
    return torch.cat(parts) if name == "outputs" else torch.stack([part.flatten(1) for part in parts])
