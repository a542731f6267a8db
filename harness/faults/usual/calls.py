"""One call of a subject for a comparison of numbers: what it gives, and what it should have given.

Nothing is looked at here but the result: not the memory around it, not syncs, not launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness import inflight, operators
from harness.batch import Batch
from harness.case import AnyCase, Case, StepCase
from harness.faults.usual.inputs import Kind
from harness.faults.usual.rules import Part
from harness.memory import Arena, EagerMode, PoisonedAllocations
from harness.operators.base import SequenceOperator, TokenOperator, generator, torch_dtype
from harness.operators.chunk_metadata import ChunkMetadata
from harness.operators.step_metadata import FIELDS
from references.step_metadata import step_metadata

CPU = torch.device("cpu")
Got = list[Tensor | None]


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(tuple(shape), dtype=dtype, device=device)


class PlainArena(Arena):
    """Dense copies without fences; memory that nobody wrote holds zeros, as it comes from the system."""

    def __init__(self) -> None:
        super().__init__(CPU, _zeros)

    def place(
        self,
        name: str,
        content: Tensor,
        *,
        strides: Sequence[int] | None = None,
        offset: int = 0,
        writable_rows: Sequence[int] = (),
    ) -> Tensor:
        return content.contiguous().clone()


class ZeroedAllocations(EagerMode):
    """What the subject allocates uninitialised holds zeros: a test's memory is seldom poisoned, and so a run repeats."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.zero_() if func in PoisonedAllocations._ALLOCATORS else out


def _memory(kind: Kind) -> AbstractContextManager[Any]:
    return PoisonedAllocations() if kind == "ours" else ZeroedAllocations()


def contents(kind: Kind, case: Case) -> Batch:
    """The case's batch. Gates of the usual kinds take turns, by the case's ``choice``, between those of public tests:
    a published model's at its start, flash-linear-attention's logsigmoid(U(0, 1)) and FlashInfer's log U(0, 1)."""
    operator = operators.get(case.operator)
    assert isinstance(operator, TokenOperator)
    batch = operator.batch(case, CPU)
    if kind == "ours" or case.choice == 0 or case.operator not in ("gdn_prefill", "gdn_decode"):
        return batch
    draw = generator(case.with_(seed=case.seed + 1000), CPU)
    if case.operator == "gdn_prefill":

        def gates(name: str, tensor: Tensor) -> Tensor:
            if name != "g":
                return tensor
            uniform = torch.rand(tensor.shape, generator=draw)
            return functional.logsigmoid(uniform) if case.choice == 1 else uniform.clamp(min=1e-6).log()

        return batch.map_tokens(gates)
    # FlashInfer's test of decode: all parameters of the gates are small.
    small = {name: (0.1 * torch.randn(t.shape, generator=draw)).to(t.dtype) for name, t in batch.shared.items()}
    batch = replace(batch, shared=small)
    return batch.map_tokens(
        lambda name, t: (0.1 * torch.randn(t.shape, generator=draw)).to(t.dtype) if name == "a" else t
    )


# -- what should come -------------------------------------------------------------------------------------------------


def truth(kind: Kind, case: AnyCase) -> tuple[Part, ...]:
    """The parts of a right result, in the order of `call`."""
    operator = operators.get(case.operator)
    if isinstance(case, StepCase):
        return tuple(_step_parts(case))
    assert isinstance(case, Case)
    if isinstance(operator, ChunkMetadata):
        names = ("chunk_indices", "chunk_offsets")
        return tuple(Part(name, tensor) for name, tensor in zip(names, operator.oracle(case), strict=True))
    assert isinstance(operator, TokenOperator)
    return tuple(_token_parts(operator, contents(kind, case)))


def _step_parts(case: StepCase) -> list[Part]:
    reference = step_metadata(case.max_batch_size, case.chunk_size, "cpu")
    parts = []
    for number, step in enumerate(case.steps):
        metadata = reference.prepare(**step.arguments())
        for name in FIELDS:
            value = getattr(metadata, name)
            parts.append(Part(f"{name} of step {number}", None if value is None else value.clone()))
    return parts


def _token_parts(operator: TokenOperator, batch: Batch) -> list[Part]:
    oracle, model, magnitude = operator.oracle(batch), operator.model(batch), operator.magnitude(batch)
    noise = operator.operand_noise(batch)
    wide = torch.cat(oracle.outputs)
    parts = [
        Part(
            "output",
            wide.to(operator.output_dtype(batch)),
            exact=False,
            oracle=wide,
            model=torch.cat(model.outputs),
            magnitude=torch.cat(magnitude.outputs),
            noise=None if noise is None else torch.cat(noise.outputs),
        )
    ]
    if operator.chooses:
        parts.append(Part("choice", torch.cat([ids for ids in oracle.states if ids is not None])))
    if not (isinstance(operator, SequenceOperator) and batch.active):
        return parts

    def rows(states: Sequence[Tensor | None]) -> Tensor:
        return torch.stack([t.flatten(1) for t in (states[i] for i in batch.active) if t is not None])

    dtype = torch_dtype(batch.case.state_dtype)
    zeros = torch.zeros(operator.state_shape(batch), dtype=dtype)
    wide = rows(oracle.states)
    parts.append(
        Part(
            "state",
            wide.to(dtype),
            exact=operator.state_is_copy,
            oracle=wide,
            model=rows(model.states),
            magnitude=rows(magnitude.states),
            noise=None if noise is None else rows(noise.states),
            before=rows([zeros if state is None else state for state in batch.states]),
        )
    )
    return parts


# -- what comes -------------------------------------------------------------------------------------------------------


def call(function: Callable[..., Any], kind: Kind, case: AnyCase) -> Got:
    """What the subject gives: copies of the tensors, in the order of `truth`. Raises what the subject raises."""
    operator = operators.get(case.operator)
    if isinstance(case, StepCase):
        return _step_call(function, kind, case)
    assert isinstance(case, Case)
    if isinstance(operator, ChunkMetadata):
        packed = operator.pack(case, CPU)
        with inflight.watched(), torch.no_grad(), _memory(kind):
            out = function(*packed.arguments, **packed.keywords)
        return [tensor.clone() for tensor in out]
    assert isinstance(operator, TokenOperator)
    batch = contents(kind, case)
    packed = operator.pack(batch, Arena(CPU) if kind == "ours" else PlainArena())
    with inflight.watched(), torch.no_grad(), _memory(kind):
        out = function(*packed.arguments, **packed.keywords)
    got: Got = [part.clone() for part in operator.parts(out)]
    if isinstance(operator, SequenceOperator) and batch.active:
        pool = packed.keywords[operator.state_name]
        slots = torch.tensor([batch.segments[i].slot for i in batch.active])
        got.append(pool[slots].flatten(2))
    return got


def _step_call(function: Callable[..., Any], kind: Kind, case: StepCase) -> Got:
    got: Got = []
    with inflight.watched(), _memory(kind):
        builder = function(case.max_batch_size, case.chunk_size, CPU)
        for step in case.steps:
            metadata = builder.prepare(**step.arguments())
            for name in FIELDS:
                value = getattr(metadata, name)
                got.append(None if value is None else value.clone())
    return got
