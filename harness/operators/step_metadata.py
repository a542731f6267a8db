"""The metadata of a model step, built again and again in the same buffers (spec 1.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from harness import execution, inflight
from harness.case import Step, StepCase
from harness.failure import Failure, fail
from harness.memory import PoisonedAllocations
from harness.operators.base import Operator
from harness.operators.chunk_metadata import require_same_integers
from harness.plural import plural
from harness.strategies import Scale
from references.step_metadata import step_metadata

FIELDS = ("query_start_loc", "has_initial_state", "state_indices", "seq_idx", "chunk_indices", "chunk_offsets")
#: These hold one entry a row and must stay where they are: CUDA graphs capture their addresses.
PERSISTENT = ("query_start_loc", "has_initial_state", "state_indices")


class StepMetadataOperator(Operator):
    name = "step_metadata"
    summary = "row starts, flags, slots, token owners and logical chunks of every step, in persistent buffers"
    dtypes = ("int32",)
    case_type = StepCase

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[StepCase]:
        """A few unrelated steps in a row; the state machine in ``properties`` makes the related ones."""
        return st.builds(
            StepCase,
            operator=st.just(self.name),
            steps=st.lists(steps(max_rows=12), min_size=1, max_size=4).map(tuple),
            max_batch_size=st.sampled_from([16, 12, 64]),
            chunk_size=st.sampled_from([8, 4, 1, 64, 3]),
        )

    def compile_cases(self, dtype: str) -> Iterator[StepCase]:
        mixed = Step(seq_lens=(65, 7, 1), num_contexts=2, num_cached_tokens=(0, 9, 4), state_slots=(2, 0, 1))
        yield StepCase(self.name, (mixed,), max_batch_size=64, chunk_size=64)

    def describe(self, case: StepCase) -> str:
        if not case.steps:
            return "no step"
        before = len(case.steps) - 1
        shown = "; ".join(say_step(step) for step in case.steps[-3:])
        lead = f"{plural(before - 2, 'earlier step')}, then: " if before > 2 else ""
        return f"builder for {case.max_batch_size} rows, chunk size {case.chunk_size}; {lead}{shown}"

    def coverage(self, case: StepCase) -> dict[str, list[str | int]]:
        last = case.steps[-1]
        kind = (
            "pure decode"
            if last.num_contexts == 0
            else "prefill"
            if last.num_contexts == len(last.seq_lens)
            else "mixed"
        )
        return super().coverage(case) | {"step kind": [kind], "chunk size": [case.chunk_size]}

    def live(self, function: Callable[..., Any], case: StepCase, device: torch.device) -> LiveBuilder:
        return LiveBuilder(self, function, case.max_batch_size, case.chunk_size, device)


def steps(max_rows: int) -> SearchStrategy[Step]:
    """One step: contexts first, then decodes of one token, then padding rows."""
    context = st.tuples(st.one_of(st.integers(0, 3), st.integers(0, 40)), st.integers(0, 2) | st.integers(0, 100))
    return st.builds(
        _step,
        st.lists(context, max_size=max_rows // 3),
        st.integers(0, max_rows // 3),
        st.integers(0, max_rows // 3),
        st.permutations(range(2 * max_rows)),
    )


def _step(contexts: list[tuple[int, int]], decodes: int, padding: int, slots: list[int]) -> Step:
    real = len(contexts) + decodes
    return Step(
        seq_lens=(*(length for length, _ in contexts), *([1] * (decodes + padding))),
        num_contexts=len(contexts),
        num_cached_tokens=(
            *(cached for _, cached in contexts),
            *(slots[i] + 1 for i in range(decodes)),
            *([0] * padding),
        ),
        state_slots=(*slots[:real], *([-1] * padding)),
    )


def say_step(step: Step) -> str:
    rows = []
    for i, (length, cached, slot) in enumerate(
        zip(step.seq_lens, step.num_cached_tokens, step.state_slots, strict=True)
    ):
        where = f"slot {slot}" if slot >= 0 else "padding"
        if i < step.num_contexts:
            rows.append(f"context of {length} after {cached} cached in {where}")
        else:
            rows.append(f"decode after {cached} in {where}" if slot >= 0 else "padding row")
    return (
        "["
        + (", ".join(rows[:8]) + (f", … {len(rows) - 8} more" if len(rows) > 8 else "") if rows else "no rows")
        + "]"
    )


@dataclass
class LiveBuilder:
    """A subject's builder beside the reference's, fed the same steps."""

    operator: StepMetadataOperator
    function: Callable[..., Any]
    max_batch_size: int
    chunk_size: int
    device: torch.device

    def __post_init__(self) -> None:
        self.poison = PoisonedAllocations()
        self.addresses: dict[str, int] = {}
        self.reference = step_metadata(self.max_batch_size, self.chunk_size, "cpu")
        self.builder = self._guard(lambda: self.function(self.max_batch_size, self.chunk_size, self.device))

    def _guard(self, body: Callable[[], Any]) -> Any:
        try:
            with self.poison, inflight.watched():
                return body()
        except Failure:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a subject raises is a finding about the subject
            execution.raised(error, self.operator.name)

    def prepare(self, step: Step) -> Any:
        return self._guard(lambda: self.builder.prepare(**step.arguments()))

    def snapshot(self, metadata: Any) -> dict[str, Tensor | None]:
        """Copies of every field, in stream order, so that later steps cannot change them."""
        fields: dict[str, Tensor | None] = {}
        for name in FIELDS:
            if not hasattr(metadata, name):
                fail("wrong shape", f"prepare() returned no field {name!r}; expected {', '.join(FIELDS)}", mark=name)
            value = getattr(metadata, name)
            fields[name] = None if value is None else value.clone()
        return fields

    def require_right(self, step: Step, got: dict[str, Tensor | None]) -> None:
        expected = self.reference.prepare(**step.arguments())
        for name in FIELDS:
            want, have = getattr(expected, name), got[name]
            if (want is None) != (have is None):
                given = "None" if have is None else f"{have.numel()} entries"
                wanted = "None" if want is None else f"{want.numel()} entries"
                fail("wrong metadata", f"{name}: got {given}, expected {wanted}, in {say_step(step)}", mark=name)
            if want is None or have is None:
                continue
            if have.dtype != want.dtype:
                fail("wrong dtype", f"{name} is {have.dtype}, expected {want.dtype}", mark=name)
            require_same_integers(name, have, want, f"in {say_step(step)}")

    def require_same_addresses(self, metadata: Any) -> None:
        for name in PERSISTENT:
            tensor = getattr(metadata, name)
            if tensor.numel() == 0:
                continue
            first = self.addresses.setdefault(name, tensor.data_ptr())
            if tensor.data_ptr() != first:
                fail(
                    "address moved",
                    f"{name} moved from {first:#x} to {tensor.data_ptr():#x}; CUDA graphs hold the old address",
                    mark=name,
                )
