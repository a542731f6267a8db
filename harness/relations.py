"""Relations between two calls that need no oracle, written once for every operator over sequences.

Each takes a context and a case, makes one or more batches out of it, runs them and compares. Where a relation needs a
choice (which sequence, where to split), it takes it from the case's free integer, so that a case alone replays it.
Bitwise means: the same inputs meet the same arithmetic, so nothing may change (design decision 7, spec section 9).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from harness import equivalence
from harness.batch import Result
from harness.case import Case, Segment
from harness.context import Context, Property
from harness.failure import fail


def another_order(count: int, choice: int) -> list[int]:
    """0 to count - 1 in an order that the case's free integer chooses; never as they are, where there is another."""
    order = random.Random(choice).sample(range(count), count)
    return order[1:] + order[:1] if order == sorted(order) else order


def alone_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    packed = context.run(batch)
    for i in batch.active:
        alone = context.run(batch.select([i]))
        context.require_invariant(
            alone,
            packed.select([i]),
            f"sequence {i} packed with others must equal itself alone",
            batch=batch.select([i]),
        )


def alone_published(strategy: Callable[..., Any]) -> Property:
    """Pack ↔ alone at the shapes of published models, where a launch table may well decide by the number of sequences."""
    return Property(
        "packed_equals_alone_at_published_shapes",
        "relations",
        alone_body,
        devices=("cuda",),
        strategy=strategy,
    )


def permuted_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    order = another_order(batch.size, case.choice)
    permuted = batch.select(order)
    context.require_same(
        context.run(permuted),
        context.run(batch).select(order),
        f"the sequences in the order {order} must give the same rows",
        batch=permuted,
    )


def slots_renamed_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    slots = random.Random(case.choice).sample(range(batch.pool_slots), batch.size)
    renamed = batch.with_slots(
        [s if g.active else -1 for s, g in zip(slots, batch.segments, strict=True)], batch.pool_slots
    )
    context.require_same(
        context.run(renamed), context.run(batch), f"slots {slots} instead must give the same rows", batch=renamed
    )


def inactive_rows_added_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    at = case.choice % (batch.size + 1)
    donor = case.choice % batch.size
    # The new row carries real-looking tokens: what an inactive row holds must not matter.
    widened = batch.select([*range(at), donor, *range(at, batch.size)])
    widened = widened.replaced(at, segment=Segment(batch.lengths[donor], "inactive", -1))
    kept = [i for i in range(widened.size) if i != at]
    context.require_same(
        context.run(widened).select(kept),
        context.run(batch),
        f"an inactive row inserted at {at} must change no other row",
        batch=batch,
    )


#: More sequences than a kernel may look through at once.
EMPTIES = 300


def empties_added_body(context: Context, case: Case) -> None:
    """Hundreds of sequences without tokens stand before one of the others: how many there are must not matter."""
    one_head = {name: 1 for name in ("H", "HV") if name in case.dims}
    batch = context.batch(case.with_(dims={**case.dims, **one_head}))
    at = case.choice % batch.size
    one = batch.select([case.choice % batch.size])
    none = {name: tensor[:0] for name, tensor in one.tokens[0].items()}
    one = one.replaced(0, segment=Segment(0, "inactive", -1), tokens=none)
    widened = replace(
        batch,
        segments=(*batch.segments[:at], *one.segments * EMPTIES, *batch.segments[at:]),
        tokens=(*batch.tokens[:at], *one.tokens * EMPTIES, *batch.tokens[at:]),
        states=(*batch.states[:at], *one.states * EMPTIES, *batch.states[at:]),
    )
    kept = [*range(at), *range(at + EMPTIES, widened.size)]
    context.require_same(
        context.run(widened).select(kept),
        context.run(batch),
        f"{EMPTIES} empty sequences inserted at {at} must change no other row",
        batch=batch,
    )


def trailing_tokens_body(context: Context, case: Case) -> None:
    """Tokens behind the last sequence belong to nobody (a graph's padding): zero rows, and nothing else changes."""
    batch = context.batch(case)
    extra = case.choice % 4 + 1
    padded = batch.select([*range(batch.size), case.choice % batch.size])
    padded = padded.replaced(
        batch.size,
        segment=Segment(extra, "inactive", -1),
        tokens={
            name: torch.full((extra, *tensor.shape[1:]), float("nan"), dtype=tensor.dtype, device=batch.device)
            for name, tensor in batch.tokens[0].items()
        },
    )
    operator = context.sequences

    def one_sequence_less(*args: Any, **kwargs: Any) -> Any:
        """The padding is among the tokens, but no entry of cu_seqlens, slots or flags tells of it."""
        shorter = {name: kwargs[name][:-1] for name in ("cu_seqlens", "state_indices", "has_initial_state")}
        return context.function(*args, **{**kwargs, **shorter})

    got = operator.run(one_sequence_less, padded, device=context.device, check_memory=context.check_memory)
    context.require_same(
        got.select(list(range(batch.size))),
        context.run(batch),
        f"{extra} tokens behind the last sequence must change no other row",
        batch=batch,
    )


def repeated_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    first, second = context.run(batch), context.run(batch)
    context.require_same(
        first, second, "a second call must give the same bits", batch=batch, promised=context.capabilities.repeatable
    )


def cold_equals_warm_body(context: Context, case: Case) -> None:
    """The first call of a new process and a later call of this one: in place, tuning by trial would corrupt the state."""
    from harness.cell import CellSpec
    from harness.isolation import Sandbox

    batch = context.batch(case)
    context.run(batch)
    warm = context.run(batch)
    if not context.capabilities.repeatable:
        context.require_within_budget(warm, batch)
        return
    spec = CellSpec(
        case.operator,
        context.target,
        context.target,
        equivalence.equivalence.name,
        context.device.type,
        case.dtype,
        examples=1,
        seed=0,
    )
    if Sandbox(spec, timeout=120.0).digest(case) != warm.digest():
        fail("not bitwise equal", "the first call of a new process gave other bits than a later call here", mark="cold")


def neighbour_perturbed_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    i = case.choice % batch.size
    old = batch.states[i]
    others = [n for n in range(batch.size) if n != i]
    other = context.tokens.perturbed
    changed = batch.replaced(
        i,
        tokens={name: other(name, tensor) for name, tensor in batch.tokens[i].items()},
        state=None if old is None else other("state", old),
    )
    context.require_same(
        context.run(changed),
        context.run(batch),
        f"other contents in sequence {i} must not reach its neighbours",
        batch=batch,
        only=others,
    )


def future_perturbed_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    i = case.choice % batch.size
    length = batch.lengths[i]
    at = (case.choice // batch.size) % (length + 1)

    def later(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[:at], context.tokens.perturbed(name, tensor[at:])])

    changed = batch.replaced(i, tokens={name: later(name, tensor) for name, tensor in batch.tokens[i].items()})
    before, after = context.run(batch), context.run(changed)
    if not context.capabilities.bitwise:
        # A part of a sequence leaves no state that could be judged, so all of it is.
        context.require_within_budget(after, changed)
        return
    context.require_same(
        Result((after.outputs[i][:at],), (None,)),
        Result((before.outputs[i][:at],), (None,)),
        f"tokens from {at} on must not reach the outputs before them",
        batch=batch.select([i]),
    )


def scaled_body(context: Context, case: Case) -> None:
    """Doubling v and the state doubles outputs and state: exactly, since scaling by two is exact above the subnormals."""
    regime = {**case.regime, "amplitude": "unit"}
    # Over many tokens every decay but the slow one ends among the subnormals.
    if not context.sequences.decode and regime.get("decay", "none") != "none":
        regime["decay"] = "slow"
    if regime.get("decay") == "underflow":
        regime["decay"] = "mixed"
    batch = context.batch(case.with_(regime=regime))
    doubled = batch.map_tokens(lambda name, t: t * 2 if name == "v" else t).map_states(lambda s: s * 2)
    single = context.run(batch)
    expected = Result(tuple(o * 2 for o in single.outputs), tuple(None if s is None else s * 2 for s in single.states))
    context.require_same(
        context.run(doubled), expected, "2 x (v, state) must give exactly 2 x (output, state)", batch=doubled
    )


alone = Property("packed_equals_alone", "relations", alone_body)
permuted = Property("sequences_permuted", "relations", permuted_body)
slots_renamed = Property("slots_renamed", "relations", slots_renamed_body)
inactive_rows_added = Property("inactive_rows_added", "relations", inactive_rows_added_body)
trailing_tokens = Property("trailing_tokens", "relations", trailing_tokens_body, weight=0.5)
repeated = Property("repeated", "relations", repeated_body, weight=0.5)
cold_equals_warm = Property("cold_equals_warm", "relations", cold_equals_warm_body, examples=2, dtypes=("float32",))
neighbour_perturbed = Property("neighbour_perturbed", "relations", neighbour_perturbed_body)
future_perturbed = Property("future_perturbed", "relations", future_perturbed_body)
scaled = Property("scaled_by_two", "relations", scaled_body, dtypes=("float32", "bfloat16"))
