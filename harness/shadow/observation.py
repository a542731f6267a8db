"""A call in the terms of an operator's contract, and its judgement by the budgets of ``sluicegate verify``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness import operators
from harness.batch import Batch, Result
from harness.case import Case, Layout, Segment, Step
from harness.context import Context
from harness.failure import Failure, Row, fail
from harness.operators.base import SequenceOperator, TokenOperator
from harness.operators.chunk_metadata import ChunkMetadata
from harness.operators.step_metadata import StepMetadataOperator
from harness.shadow.seen import NotJudged
from references.chunk_metadata import chunk_metadata
from references.step_metadata import step_metadata


@dataclass(frozen=True)
class Observation:
    """One call.

    tokens: the operator's token inputs, packed [T, ...]. output: [T, ...]; of metadata, the fields by name. shared: weights.
    starts: int [N+1], None where every token is a sequence of its own. slots: int [N], negative where a sequence is inactive;
    None: all are active and no two share a state. states: [N, ...] before the call, None where all sequences are fresh.
    flags: bool [N], which sequences resume; None: all of them, where there are states. after: [N, ...] afterwards, None
    where the call gives none. options: of the operator's cases, or a metadata operator's arguments. contract: the host's
    function has our contract, so that its words on inactive rows, empty sequences and dtypes bind it too.
    """

    operator: str
    output: Any
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    starts: Tensor | None = None
    slots: Tensor | None = None
    flags: Tensor | None = None
    states: Tensor | None = None
    after: Tensor | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    contract: bool = False


def judge(seen: Observation) -> float:
    """The largest share of its allowance that a row used, 0 for integers.

    Raises:
        Failure: the call is wrong.
        NotJudged: the contract says nothing about such a call.
    """
    operator = operators.get(seen.operator)
    with torch.no_grad():
        if isinstance(operator, ChunkMetadata):
            return _judge_chunks(operator, seen)
        if isinstance(operator, StepMetadataOperator):
            return _judge_step(operator, seen)
        if not isinstance(operator, TokenOperator):
            raise NotJudged(f"{seen.operator} is not judged outside of its own suite")
        return _judge_tokens(operator, seen)


def _judge_chunks(operator: ChunkMetadata, seen: Observation) -> float:
    starts, size = seen.options["cu_seqlens"], int(seen.options["chunk_size"])
    if not seen.contract and bool((starts.diff() == 0).any()):
        raise NotJudged("empty sequences, which own no chunk in the contract and have no agreed meaning elsewhere")
    got = tuple(seen.output)
    if len(got) != 2 or not all(isinstance(part, Tensor) for part in got):
        fail("wrong shape", f"{operator.name} returned {len(got)} parts, expected (chunk_indices, chunk_offsets)")
    for name, part in zip(("chunk_indices", "chunk_offsets"), got, strict=True):
        if part.dtype != torch.int32:
            fail("wrong dtype", f"{name} is {part.dtype}, expected torch.int32")
    lengths = starts.diff().tolist()
    operator.require_equal(
        (got[0], got[1]), chunk_metadata(starts, size), f"sequences of {lengths[:12]} tokens, chunks of {size}"
    )
    return 0.0


def _judge_step(operator: StepMetadataOperator, seen: Observation) -> float:
    words = ("seq_lens", "num_cached_tokens", "state_slots")
    lists = {name: tuple(map(int, _plain(seen.options[name]))) for name in words}
    step = Step(num_contexts=int(seen.options["num_contexts"]), **lists)
    rows = max(len(step.seq_lens), 1)
    live = operator.live(
        step_metadata, operator.case_type(operator.name, (), rows, int(seen.options["chunk_size"])), torch.device("cpu")
    )
    live.require_right(step, dict(seen.output))
    return 0.0


def _plain(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, Tensor) else list(values)


def _judge_tokens(operator: TokenOperator, seen: Observation) -> float:
    batch, got = _batch(operator, seen)
    if not batch.active:
        return 0.0
    context = Context(operator, judge, batch.device)
    judged = isinstance(operator, SequenceOperator) and seen.after is not None
    try:
        context.require_within_budget(got, batch, states=judged)
    except Failure as failure:
        if failure.symptom == "not written":
            # Nobody poisoned the host's memory, which is what the sentence of a run of ours would say.
            fail("non-finite", failure.message.partition(" (the buffer")[0], failure.rows)
        raise
    return context.worst_share


def _batch(operator: TokenOperator, seen: Observation) -> tuple[Batch, Result]:
    """The sequences that can be judged, and what the host made of them."""
    packed = {name: seen.tokens[name] for name in operator.token_inputs}
    first = next(iter(packed.values()))
    starts = list(range(first.shape[0] + 1)) if seen.starts is None else seen.starts.tolist()
    count = len(starts) - 1
    slots = list(range(count)) if seen.slots is None else seen.slots.tolist()
    flags = [seen.states is not None] * count if seen.flags is None else seen.flags.tolist()
    _require_shapes(seen, first, starts, slots, flags)

    shared_by = Counter(slot for slot in slots if slot >= 0)
    kept = [n for n in range(count) if not (slots[n] >= 0 and shared_by[slots[n]] > 1)]
    if not seen.contract:
        # What others do with an empty sequence, and with the output of an inactive one, is their convention.
        kept = [n for n in kept if slots[n] >= 0 and starts[n] < starts[n + 1]]
    if not kept:
        raise NotJudged("no sequence is active, not empty and alone in its slot")
    parts = [{name: part[starts[n] : starts[n + 1]] for name, part in packed.items()} for n in kept]
    kinds = ["inactive" if slots[n] < 0 else "resumed" if flags[n] else "fresh" for n in kept]
    segments = tuple(
        Segment(starts[n + 1] - starts[n], kind, index)  # type: ignore[arg-type]
        for index, (n, kind) in enumerate(zip(kept, kinds, strict=True))
    )
    before, after = seen.states, seen.after
    state_dtype = after.dtype if after is not None else before.dtype if before is not None else torch.float32
    if before is not None and torch.promote_types(before.dtype, state_dtype) != state_dtype:
        raise NotJudged(f"states go in as {before.dtype} and come out as {state_dtype}")
    case = Case(
        operator=operator.name,
        sequences=segments,
        dims=_dims(packed, seen.shared, seen.options),
        dtype=_name(first.dtype),
        state_dtype=_name(state_dtype),
        options={"scale": None, "activation": None, "eps": None, **seen.options},
        pool_slots=len(kept),
    )
    states = tuple(
        before[n].to(state_dtype) if kind == "resumed" and before is not None else None
        for n, kind in zip(kept, kinds, strict=True)
    )
    batch = Batch(case, segments, tuple(parts), states, seen.shared, Layout(), len(kept))
    outputs = tuple(seen.output[starts[n] : starts[n + 1]] for n in kept)
    _require_contract(operator, seen, batch, outputs)
    leaves = tuple(
        None if after is None or kind == "inactive" else after[n] for n, kind in zip(kept, kinds, strict=True)
    )
    return batch, Result(outputs, leaves)


def _require_shapes(seen: Observation, first: Tensor, starts: list[int], slots: list[int], flags: list[bool]) -> None:
    """What the translation promised; a breach is an error of the translation, not of the host."""
    if starts[-1] > first.shape[0] or len(slots) < len(starts) - 1 or len(flags) < len(starts) - 1:
        raise ValueError(
            f"{seen.operator}: got {len(starts) - 1} sequences of {starts[-1]} tokens, with {len(slots)} slots, {len(flags)} flags"
            f" and {first.shape[0]} tokens; the translation of this call is wrong, or its arguments are"
        )


def _require_contract(operator: TokenOperator, seen: Observation, batch: Batch, outputs: tuple[Tensor, ...]) -> None:
    """Shapes always; dtype and inactive rows where the host's function has our contract."""
    wanted = operator.output_shape(batch, sum(batch.lengths))[1:]
    got = seen.output
    if not isinstance(got, Tensor) or tuple(got.shape[1:]) != wanted:
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        fail("wrong shape", f"output is {shape}, expected {wanted} for each token")
    if seen.after is not None and isinstance(operator, SequenceOperator):
        shape = operator.state_shape(batch)
        if tuple(seen.after.shape[1:]) != shape:
            fail("wrong shape", f"a state is {tuple(seen.after.shape[1:])}, expected {shape}")
    if not seen.contract:
        return
    if got.dtype != operator.output_dtype(batch):
        fail("wrong dtype", f"output is {got.dtype}, expected {operator.output_dtype(batch)}, the dtype of its inputs")
    for i, (segment, rows) in enumerate(zip(batch.segments, outputs, strict=True)):
        if not segment.active and not bool((rows == 0).all()):
            values = rows.reshape(-1)[:6].double().tolist()
            fail(
                "inactive row not zero",
                f"sequence {i} has a negative slot, so its output rows must be zero",
                [Row(f"sequence {i}", [0.0] * len(values), values)],
            )


def _dims(packed: Mapping[str, Tensor], shared: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, int]:
    if "router_logits" in packed:
        here, hidden, size = shared["w_down"].shape
        return {"E": packed["router_logits"].shape[1], "El": here, "k": options["top_k"], "Hd": hidden, "I": size}
    if "q" in packed:
        (_, heads, key_dim), (_, value_heads, value_dim) = packed["q"].shape, packed["v"].shape
        return {"H": heads, "HV": value_heads, "K": key_dim, "V": value_dim}
    if "z" in packed:
        return {"HV": packed["x"].shape[1], "V": packed["x"].shape[2]}
    return {"D": packed["x"].shape[1], "W": shared["weight"].shape[1]}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
