"""Where things lie must not matter: strides, slots, what lies between and around what a call reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from harness import races
from harness.batch import Result
from harness.case import Case, Layout
from harness.context import Context, Property
from harness.failure import fail
from harness.memory import Stale
from harness.operators.base import torch_dtype
from harness.subjects import Capabilities


def gathered_body(context: Context, case: Case) -> None:
    """In the pool and by slot equals: gather the slots in float32, compute, cast to the pool's dtype, scatter. Bitwise."""
    batch = context.batch(case)
    dense = batch.with_layout(Layout(wide_indices=batch.layout.wide_indices))
    compact = replace(batch.plain(None).map_states(lambda state: state.float()), case=case.with_(state_dtype="float32"))
    apart = context.run(compact)
    pool = torch_dtype(case.state_dtype)
    scattered = Result(apart.outputs, tuple(None if s is None else s.to(pool) for s in apart.states))
    context.require_same(
        context.run(dense),
        scattered,
        f"a {case.state_dtype} pool updated in place must equal float32 copies of its slots, updated and cast",
        batch=batch,
    )


def takes_no_float32_pool(_: str, function: Callable[..., Any]) -> str:
    return "" if "float32" in Capabilities.of(function).state_dtypes else "it takes no float32 pool"


def strided_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    strided = case.layout
    if strided.dense:
        strided = Layout(
            row_pad=8 * (case.choice % 3) + 1,
            base_offset=case.choice % 2,
            slot_pad=case.choice % 5,
            head_pad=8,
            fused=bool(case.choice & 4),
            strided_indices=True,
            wide_indices=strided.wide_indices,
        )
    # A slot stride of whole 64-byte lines: narrower ones force narrower loads, and with them another order of the sums
    # over K, which the budget judges elsewhere.
    strided = replace(strided, slot_pad=16 * strided.slot_pad)
    dense = batch.with_layout(Layout(wide_indices=strided.wide_indices))
    context.require_same(
        context.run(batch.with_layout(strided)),
        context.run(dense),
        "strided views must give the same bits as contiguous tensors",
        batch=batch,
    )


def poison_independent_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    context.require_same(
        context.run(batch, fill=Stale()),
        context.run(batch),
        "memory that nobody wrote (other slots, fresh slots, gaps, what the call allocates) held poison in one run and, in the"
        " other, numbers as an earlier call leaves them",
        batch=batch,
    )


def memory_body(context: Context, case: Case) -> None:
    """The memory checks of every call, in the least friendly layout and pool."""
    batch = context.batch(case)
    layout = replace(
        case.layout,
        row_pad=case.layout.row_pad or 1,
        head_pad=case.layout.head_pad or 8,
        base_offset=case.layout.base_offset or 1,
        slot_pad=case.layout.slot_pad or 3,
    )
    if not context.capabilities.strided:
        layout = Layout(wide_indices=layout.wide_indices)
    result = context.run(batch.with_layout(layout))
    for i in batch.active:
        state = result.states[i]
        if state is not None and bool(torch.isnan(state).any()):
            fail(
                "not written",
                f"slot {batch.segments[i].slot} of sequence {i} still holds poison after the call",
                mark="state",
            )
    for i, rows in enumerate(result.outputs):
        if bool(torch.isnan(rows).any()):
            why = f"the inputs are finite, and output rows of sequence {i} are NaN: poison was read, or the rows were left"
            fail("non-finite", why, mark="output")


def require_no_races(context: Context, run: Callable[[], object]) -> None:
    """The report says how many launches were watched: of a subject that is no Triton kernel, none."""
    with races.watched() as watch:
        run()
    context.note("launches watched", watch.launches)
    watch.check()


def races_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    require_no_races(context, lambda: context.run(batch))


def high_slot_body(context: Context, case: Case) -> None:
    """A slot whose offset needs more than 31 bits, in a pool of two huge strides, most of it never touched."""
    batch = context.batch(case)
    i = batch.active[0] if batch.active else 0
    if not batch.segments[i].active:
        return
    # A 2-byte pool halves the memory that a GPU really has to hold.
    one = batch.select([i]).map_states(lambda state: state.to(torch.bfloat16))
    one = replace(one, case=case.with_(state_dtype="bfloat16"))
    low = context.run(one.with_slots([0], 1).with_layout(Layout()))
    high = context.sequences.run_in_high_slot(context.function, one, device=context.device)
    context.require_same(high, low, "a slot beyond 2^31 elements must give the same rows as slot 0", batch=one)


def far_apart_body(context: Context, case: Case) -> None:
    """Tokens more than 2^31 elements apart, as rows of a huge buffer may be."""
    operator = context.tokens
    if case.tokens < operator.far_tokens:
        return  # a smaller case, tried while shrinking
    batch = context.batch(case)
    context.require_same(
        operator.run_far_apart(context.function, batch, device=context.device),
        context.run(batch),
        "tokens beyond 2^31 elements must give the same rows as packed ones",
        batch=batch,
    )


def far_apart(strategy: Callable[..., Any]) -> Property:
    # bfloat16 halves the memory that a GPU really has to hold.
    return Property("tokens_far_apart", "memory", far_apart_body, examples=2, dtypes=("bfloat16",), strategy=strategy)


gathered = Property("indexed_equals_gathered", "relations", gathered_body, nothing_to_check=takes_no_float32_pool)
strided = Property("strided_equals_contiguous", "relations", strided_body)
high_slot = Property("high_slot", "memory", high_slot_body, examples=2)
poison_independent = Property("poison_independent", "memory", poison_independent_body)
memory = Property("hostile_memory", "memory", memory_body)
#: Of Triton kernels, under its interpreter: only there every address is known.
no_races = Property("no_races", "memory", races_body, weight=0.25, devices=("cpu",))
