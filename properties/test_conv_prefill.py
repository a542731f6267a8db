"""What must hold of ``conv_prefill``: causal depthwise convolution over packed sequences (spec section 2)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from harness import arguments, equivalence, guards, operators, placement, relations, splitting, strategies, views
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


def block_crossings(scale: Scale, dtype: str) -> Any:
    """Sequences one to three tokens longer than a block: the window of a later block reaches back into the one before."""
    lengths = st.sampled_from([65, 17, 33, 66, 67, 129])
    return conv_cases(OPERATOR, scale, dtype, strategies.segments(scale, length=lengths, max_tokens=200))


block_crossing = Property(
    "block_crossing", "equivalence", equivalence.equivalence_body, weight=0.5, strategy=block_crossings
)
#: Two short sequences: what is looked for is the way to them.
empties_added = Property(
    "empty_sequences_added",
    "relations",
    relations.empties_added_body,
    examples=2,
    strategy=lambda scale, dtype: conv_cases(
        OPERATOR, scale, dtype, st.just((Segment(3, "fresh", 0), Segment(2, "resumed", 1)))
    ),
)
max_seqlen_hint = Property(
    "max_seqlen_hint", "relations", max_seqlen_hint_body, weight=0.5, nothing_to_check=takes_no_hint
)
extreme_dims = equivalence.extreme_dims(operators.get(OPERATOR).cases, {"D": [1025, 1024]})
# Of more tokens than a block: the first start then leads behind it.
false_starts = arguments.false_starts(block_crossings, negative=True)
# Several programs a sequence: one reads the state before it, one writes the state behind it.
no_races = replace(placement.no_races, strategy=block_crossings)
stretched_axes = views.stretched_axes(OPERATOR)

PROPERTIES = (
    equivalence.equivalence,
    extreme_dims,
    block_crossing,
    relations.alone,
    relations.permuted,
    relations.slots_renamed,
    relations.inactive_rows_added,
    empties_added,
    splitting.split_and_resume,
    splitting.single_tokens,
    max_seqlen_hint,
    relations.trailing_tokens,
    placement.strided,
    relations.repeated,
    relations.cold_equals_warm,
    relations.neighbour_perturbed,
    relations.future_perturbed,
    equivalence.baseline_agrees,
    placement.memory,
    placement.poison_independent,
    no_races,
    placement.high_slot,
    arguments.bad_arguments,
    arguments.strict_accepts,
    false_starts,
    views.spread_vectors,
    stretched_axes,
    guards.host_sync,
    guards.launch_count,
    guards.copied_bytes,
    guards.variants,
    guards.graph_replay,
)


def test_property(cell: CheckedCell) -> None:
    cell.check()
