"""What must hold of ``conv_prefill``: causal depthwise convolution over packed sequences (spec section 2)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from harness import arguments, guards, relations, strategies
from harness.batch import Result
from harness.case import Case, Segment
from harness.context import Context, Property
from harness.operators.convolution import conv_cases
from harness.pytest_plugin import CheckedCell
from harness.strategies import Scale

OPERATOR = "conv_prefill"


def max_seqlen_hint_body(context: Context, case: Case) -> None:
    """A hint about the longest sequence may change the launch, never the result."""
    batch = context.batch(case)
    longest = max(batch.lengths)

    def hinted(*args: object, **kwargs: object) -> object:
        return context.function(*args, **kwargs, max_seqlen=longest)

    operator = context.sequences
    context.require_same(
        operator.run(hinted, batch, device=context.device, check_memory=context.check_memory),
        context.run(batch),
        f"max_seqlen={longest} must not change the result",
        batch=batch,
    )


def takes_no_hint(_: str, function: Callable[..., Any]) -> str:
    return "" if "max_seqlen" in inspect.signature(function).parameters else "it takes no max_seqlen"


def single_tokens_body(context: Context, case: Case) -> None:
    """A sequence fed one token a call, each resuming the last, equals one call: bitwise, each output is its own sum."""
    batch = context.batch(case)
    i = case.choice % batch.size
    segment = batch.segments[i]
    if not segment.active or segment.length > 12:
        return
    whole = context.run(batch.select([i]))
    rest, outputs, state = batch.select([i]), [], batch.states[i]
    kind = segment.kind
    for t in range(segment.length):
        one = rest.replaced(
            0, segment=Segment(1, kind, segment.slot), tokens={"x": rest.tokens[0]["x"][t : t + 1]}, state=state
        )
        step = context.run(one)
        outputs.append(step.outputs[0])
        state, kind = step.states[0], "resumed"
    if outputs:
        context.require_same(
            Result((torch.cat(outputs),), (state,)),
            whole,
            f"sequence {i} token by token must equal one call",
            batch=batch.select([i]),
        )


def trailing_tokens_body(context: Context, case: Case) -> None:
    """Tokens behind the last sequence belong to nobody (a graph's padding): zero rows, and nothing else changes."""
    batch = context.batch(case)
    extra = case.choice % 4 + 1
    behind = Segment(extra, "inactive", -1)
    padded = batch.select([*range(batch.size), case.choice % batch.size])
    padded = padded.replaced(
        batch.size,
        segment=behind,
        tokens={
            "x": torch.full(
                (extra, case.dims["D"]), float("nan"), dtype=batch.tokens[0]["x"].dtype, device=batch.device
            )
        },
    )
    operator = context.sequences

    def one_sequence_less(*args: Any, **kwargs: Any) -> Any:
        """The padding is in x, but no entry of cu_seqlens, slots or flags tells of it."""
        shorter = {name: kwargs[name][:-1] for name in ("cu_seqlens", "state_indices", "has_initial_state")}
        return context.function(*args, **{**kwargs, **shorter})

    got = operator.run(one_sequence_less, padded, device=context.device, check_memory=context.check_memory)
    context.require_same(
        got.select(list(range(batch.size))),
        context.run(batch),
        f"{extra} tokens behind the last sequence must change no other row",
        batch=batch,
    )


def block_crossings(scale: Scale, dtype: str) -> Any:
    """Sequences one to three tokens longer than a block: the window of a later block reaches back into the one before."""
    lengths = st.sampled_from([65, 17, 33, 66, 67, 129])
    return conv_cases(OPERATOR, scale, dtype, strategies.segments(scale, length=lengths, max_tokens=200))


block_crossing = Property(
    "block_crossing", "equivalence", relations.equivalence_body, weight=0.5, strategy=block_crossings
)
trailing_tokens = Property("trailing_tokens", "relations", trailing_tokens_body, weight=0.5)
max_seqlen_hint = Property(
    "max_seqlen_hint", "relations", max_seqlen_hint_body, weight=0.5, nothing_to_check=takes_no_hint
)
single_tokens = Property("token_by_token", "relations", single_tokens_body, weight=0.5)

PROPERTIES = (
    relations.equivalence,
    block_crossing,
    relations.alone,
    relations.permuted,
    relations.slots_renamed,
    relations.inactive_rows_added,
    relations.split_and_resume,
    single_tokens,
    max_seqlen_hint,
    trailing_tokens,
    relations.strided,
    relations.repeated,
    relations.cold_equals_warm,
    relations.neighbour_perturbed,
    relations.future_perturbed,
    relations.baseline_agrees,
    relations.memory,
    relations.poison_independent,
    relations.high_slot,
    arguments.bad_arguments,
    guards.host_sync,
    guards.launch_count,
    guards.copied_bytes,
    guards.variants,
    guards.graph_replay,
)


def test_property(cell: CheckedCell) -> None:
    cell.check()
