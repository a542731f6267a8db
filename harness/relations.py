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
from hypothesis import strategies as st

from harness.batch import Batch, Result
from harness.case import Case, Layout, Segment
from harness.context import Context, Property
from harness.failure import fail
from harness.operators.base import SequenceOperator, torch_dtype
from harness.subjects import Capabilities
from harness.subjects import baseline as baseline_of


def equivalence_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    context.require_within_budget(context.run(batch), batch)


def published(strategy: Callable[..., Any]) -> Property:
    """Equivalence at the shapes of published models: among any shapes they are few, and kernels have paths for them.

    A GPU's alone, since the interpreter takes seconds for one such case, and in the dtypes that models are served in.
    """
    return Property(
        "equivalence_at_published_shapes",
        "equivalence",
        equivalence_body,
        weight=3,
        devices=("cuda",),
        strategy=strategy,
    )


def extreme_dims(strategy: Callable[..., Any], sizes: dict[str, list[int]]) -> Property:
    """Equivalence at the smallest and the largest dims that a contract allows, of which few are drawn elsewhere.

    A few tokens of one or two heads: under the interpreter, what costs is the number of operations and not their width.
    """

    def fit(case: Case, chosen: dict[str, int]) -> Case:
        heads = {name: min(size, 2) for name, size in case.dims.items() if name in ("H", "HV")}
        sequences = tuple(replace(s, length=min(s.length, 5)) for s in case.sequences[:2])
        return case.with_(dims={**case.dims, **heads, **chosen}, sequences=sequences)

    def cases(scale: Any, dtype: str) -> Any:
        drawn = {name: st.sampled_from(values) for name, values in sizes.items()}
        return st.builds(fit, strategy(scale, dtype), st.fixed_dictionaries(drawn))

    return Property("equivalence_at_extreme_dims", "equivalence", equivalence_body, weight=0.5, strategy=cases)


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
    order = random.Random(case.choice).sample(range(batch.size), batch.size)
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


def split_and_resume_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    i = case.choice % batch.size
    at = (case.choice // batch.size) % (batch.lengths[i] + 1)
    whole = context.run(batch)
    joined = split_and_resumed(context, batch, i, at)
    if joined is None:
        return
    context.require_same(
        joined,
        whole.select([i]),
        f"sequence {i} cut after {at} of its {batch.lengths[i]} tokens and resumed must equal the uncut run",
        batch=batch.select([i]),
    )


def split_near_body(context: Context, case: Case) -> None:
    """Where chunks begin anew at the cut, sums are added up in another order: equal within the budget.

    The state is kept in float32: the rounding of another pool's dtype at the cut would be an error of the cut.
    """
    batch = context.batch(case.with_(state_dtype="float32"))
    i = case.choice % batch.size
    joined = split_and_resumed(context, batch, i, (case.choice // batch.size) % (batch.lengths[i] + 1))
    if joined is not None:
        context.require_within_budget(joined, batch.select([i]))


def split_at_chunk_body(context: Context, case: Case) -> None:
    """A cut between two chunks changes nothing at all, as long as the state loses nothing on its way."""
    batch = context.batch(case.with_(state_dtype="float32"))
    size = context.capabilities.chunk_size
    i = max(batch.active, key=lambda n: batch.lengths[n], default=0)
    at = size * (case.choice % (batch.lengths[i] // size + 1))
    joined = split_and_resumed(context, batch, i, at)
    if joined is None:
        return
    context.require_same(
        joined,
        context.run(batch).select([i]),
        f"sequence {i} cut after {at} of its {batch.lengths[i]} tokens, a multiple of the promised chunk of {size}, and resumed"
        " must equal the uncut run",
        batch=batch.select([i]),
    )


def promises_no_chunk(_: str, function: Callable[..., Any]) -> str:
    return "" if Capabilities.of(function).chunk_size else "it promises no chunk size"


def split_and_resumed(context: Context, batch: Batch, index: int, at: int) -> Result | None:
    """What sequence ``index`` gives when it is cut after ``at`` tokens and resumed; None when it is inactive."""
    first, second = split(batch, index, at)
    head = context.run(first)
    if not batch.segments[index].active:
        return None
    tail = context.run(resume(second, index, head))
    return Result((torch.cat([head.outputs[index], tail.outputs[0]]),), (tail.states[0],))


def split(batch: Batch, index: int, at: int) -> tuple[Batch, Batch]:
    """The batch with one sequence cut short after ``at`` tokens, and that sequence's rest alone."""
    segment = batch.segments[index]
    head = {name: tensor[:at] for name, tensor in batch.tokens[index].items()}
    rest = {name: tensor[at:] for name, tensor in batch.tokens[index].items()}
    first = batch.replaced(index, segment=replace(segment, length=at), tokens=head)
    second = batch.select([index]).replaced(0, segment=replace(segment, length=segment.length - at), tokens=rest)
    return first, second


def resume(rest: Batch, index: int, after: Result) -> Batch:
    """The rest of a split sequence, continuing the state that the first part left behind."""
    segment = replace(rest.segments[0], kind="resumed")
    return rest.replaced(0, segment=segment, state=after.states[index])


#: Tokens of a sequence that is fed token by token.
STEPS = 12


def shortened(batch: Batch, index: int) -> Batch:
    """One sequence alone, cut after so many tokens that feeding them one by one is soon done."""
    return split(batch, index, min(batch.lengths[index], STEPS))[0].select([index])


def fed_by_token(context: Context, alone: Batch) -> Result:
    """A batch of one active sequence, one call for each token, each resuming what the last one left."""
    segment, state, outputs = alone.segments[0], alone.states[0], []
    for t in range(segment.length):
        one = alone.replaced(
            0,
            segment=replace(segment, length=1),
            tokens={name: tensor[t : t + 1] for name, tensor in alone.tokens[0].items()},
            state=state,
        )
        step = context.run(one)
        outputs.append(step.outputs[0])
        state, segment = step.states[0], replace(segment, kind="resumed")
    return Result((torch.cat(outputs),), (state,))


def single_tokens_body(context: Context, case: Case) -> None:
    """A sequence fed one token a call, each resuming the last, equals one call: bitwise, each output is its own sum."""
    batch = context.batch(case)
    i = case.choice % batch.size
    alone = shortened(batch, i)
    if not alone.active or not alone.lengths[0]:
        return
    whole = context.run(alone)
    context.require_same(
        fed_by_token(context, alone), whole, f"sequence {i} token by token must equal one call", batch=alone
    )


def single_tokens_near_body(context: Context, case: Case) -> None:
    """The same where a call of many tokens adds up in another order: within the budget, the state in float32."""
    batch = context.batch(case.with_(state_dtype="float32"))
    alone = shortened(batch, case.choice % batch.size)
    if alone.active and alone.lengths[0]:
        context.require_within_budget(fed_by_token(context, alone), alone)


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
        equivalence.name,
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


def poison_independent_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    context.require_same(
        context.run(batch, poison=0.0),
        context.run(batch),
        "memory that the call must not read (other slots, fresh slots, gaps) held NaN in one run and zeros in the other",
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


def baseline_body(context: Context, case: Case) -> None:
    """The optimized way and the way it was done before: the same bits of a state that is a copy, and of the same kernel."""
    baseline = context.baseline()
    batch = context.batch(case)
    operator = context.tokens
    old = operator.run(baseline, batch, device=context.device, check_memory=False)
    new = context.run(batch)
    if getattr(baseline, "wraps", None) == context.target:
        context.require_same(new, old, "the pre-optimization path around the same kernel gives these bits", batch=batch)
    if isinstance(operator, SequenceOperator) and operator.state_is_copy:
        kept, left = (Result(tuple(o[:0] for o in r.outputs), r.states) for r in (new, old))
        context.require_same(kept, left, "the pre-optimization path leaves these bits in the slot", batch=batch)
    if declared := Capabilities.of(baseline).roundings:
        batch = replace(batch, case=batch.case.with_(options={**batch.case.options, **declared}))
    context.require_within_budget(old, batch, by="baseline")


def no_baseline(operator: str, _: Callable[..., Any]) -> str:
    return "" if baseline_of(operator) else f"no package offers a baseline of {operator}"


equivalence = Property("equivalence", "equivalence", equivalence_body, weight=6)

alone = Property("packed_equals_alone", "relations", alone_body)
permuted = Property("sequences_permuted", "relations", permuted_body)
slots_renamed = Property("slots_renamed", "relations", slots_renamed_body)
inactive_rows_added = Property("inactive_rows_added", "relations", inactive_rows_added_body)
split_and_resume = Property("split_and_resume", "relations", split_and_resume_body, weight=2)
split_near = Property("split_and_resume_within_budget", "relations", split_near_body, weight=2)
single_tokens = Property("token_by_token", "relations", single_tokens_body, weight=0.5)
single_tokens_near = Property("token_by_token_within_budget", "relations", single_tokens_near_body, weight=0.5)
trailing_tokens = Property("trailing_tokens", "relations", trailing_tokens_body, weight=0.5)
gathered = Property("indexed_equals_gathered", "relations", gathered_body, nothing_to_check=takes_no_float32_pool)
strided = Property("strided_equals_contiguous", "relations", strided_body)
repeated = Property("repeated", "relations", repeated_body, weight=0.5)
cold_equals_warm = Property("cold_equals_warm", "relations", cold_equals_warm_body, examples=2, dtypes=("float32",))
neighbour_perturbed = Property("neighbour_perturbed", "relations", neighbour_perturbed_body)
future_perturbed = Property("future_perturbed", "relations", future_perturbed_body)
scaled = Property("scaled_by_two", "relations", scaled_body, dtypes=("float32", "bfloat16"))
baseline_agrees = Property("agrees_with_baseline", "relations", baseline_body, weight=0.5, nothing_to_check=no_baseline)
high_slot = Property("high_slot", "memory", high_slot_body, examples=2)
poison_independent = Property("poison_independent", "memory", poison_independent_body)
memory = Property("hostile_memory", "memory", memory_body)
