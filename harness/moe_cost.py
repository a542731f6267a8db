"""What a mixture of experts may cost: no bytes of experts without tokens, working memory for routed rows and no more."""

from __future__ import annotations

from typing import Any

import torch

from harness import execution
from harness.batch import Batch
from harness.case import Case, Layout, Segment
from harness.context import Context, Property
from harness.failure import fail
from harness.memory import Arena, PoisonedAllocations
from harness.moe_batches import APART, logits_of, routed, with_logits
from harness.operators import get
from harness.strategies import Scale


def unread_body(context: Context, case: Case) -> None:
    """No byte is read of experts that no token goes to: their weights are most of what there is to read.

    Tokens go to experts of a stretch of ids; what lies before and behind it counts as outside of the buffers.
    """
    experts, chosen = case.dims["E"], case.dims["k"]
    if experts < chosen + 2:
        return  # a smaller case, tried while shrinking
    # One expert before the stretch and one behind it at least.
    first = 1 + case.choice % (experts - chosen - 1)
    end = first + chosen + (case.choice // 16) % (experts - first - chosen)
    batch = context.batch(case)
    ids = torch.arange(experts, device=batch.device)
    logits = torch.where((ids >= first) & (ids < end), logits_of(batch).float().clamp(-8, 8), -APART)
    batch = with_logits(batch, logits)
    # Few rows and many are computed in different ways.
    for part in (batch, batch.select([0])) if batch.size > 1 else (batch,):
        _require_unread(context, part, range(first, end))


def _require_unread(context: Context, batch: Batch, experts: range) -> None:
    """No other experts than these may be read."""
    operator, arena = context.tokens, Arena(context.device)
    call = operator.pack(batch, arena)
    for buffer in arena.buffers:
        if buffer.name in ("w_gate_up", "w_down"):
            start, size = buffer.first, buffer.view.stride(0)
            buffer.first, buffer.last = start + experts.start * size, start + experts.stop * size
    out = execution.invoke(context.function, call, check_memory=context.check_memory, what=operator.name)
    context.require_within_budget(operator.unpack(out, call, batch), batch)


def some_idle(scale: Scale, dtype: str) -> Any:
    """Cases for `unread`: two experts more than a token has, all of them here, and more rows than a few behind the drawn ones."""

    def fit(case: Case) -> Case:
        experts = max(case.dims["E"], case.dims["k"] + 2)
        sequences = (Segment(1 + case.tokens % 4), Segment(9 + case.tokens))
        plain = routed(case, case.options["method"], scaling=case.options["scaling"], first=0)
        return plain.with_(layout=Layout(), sequences=sequences, dims={**case.dims, "E": experts, "El": experts})

    return get("moe").cases(scale, dtype).map(fit)


#: Bytes that a call may allocate for each byte of its routed rows (their inner activations and what they return) and of y.
MOST_TIMES = 4


def working_memory_body(context: Context, case: Case) -> None:
    """Working memory follows the routed rows, not all pairs of tokens and experts."""
    batch = context.batch(case)
    call = context.tokens.pack(batch, Arena(context.device))
    dims, size = case.dims, batch.tokens[0]["x"].element_size()
    rows = case.tokens * dims["k"]
    # Rows of a multiple of 16 columns; an index or two for each row, expert and tile.
    columns = dims["I"] + 16 + dims["Hd"]
    fair = rows * (columns * max(size, 4) + 64) + dims["El"] * 64 + 4096 + case.tokens * dims["Hd"] * size
    with PoisonedAllocations() as allocations:
        context.function(*call.arguments, **call.keywords)
    context.note("bytes allocated", allocations.bytes)
    if allocations.bytes > MOST_TIMES * fair:
        text = f"moe allocated {allocations.bytes} bytes for {rows} rows, at most {MOST_TIMES * fair} expected"
        fail("copies state", text, mark="working memory")


# Only the interpreter knows what is read.
unread = Property(
    "unchosen_experts_are_not_read",
    "cost",
    unread_body,
    weight=1.5,
    devices=("cpu",),
    dtypes=("bfloat16",),
    strategy=some_idle,
)
