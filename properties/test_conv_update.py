"""What must hold of ``conv_update``: one more token of causal convolution for each row (spec section 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harness import arguments, equivalence, guards, operators, placement, relations, views
from harness.case import Case
from harness.context import Context, Property
from harness.pytest_plugin import CheckedCell
from harness.subjects import sibling

OPERATOR = "conv_update"


def equals_prefill_body(context: Context, case: Case) -> None:
    """One token through the decode path equals the same token through the prefill of the same module, bit for bit.

    Between implementations of different people no such promise exists: each is held against the reference.
    """
    prefill = operators.get("conv_prefill")
    counterpart = sibling(context.function, prefill.name)
    assert counterpart is not None
    batch = context.batch(case)
    got = context.run(batch)
    as_prefill = replace(batch, case=case.with_(operator=prefill.name))
    expected = replace(context, operator=prefill, function=counterpart).run(as_prefill)
    context.require_same(got, expected, "one decode step must equal a prefill of one token", batch=batch)


def no_prefill_beside(_: str, function: Callable[..., Any]) -> str:
    return "" if sibling(function, "conv_prefill") else "its module has no conv_prefill to compare with"


equals_prefill = Property(
    "equals_prefill_of_one_token", "relations", equals_prefill_body, nothing_to_check=no_prefill_beside
)
extreme_dims = equivalence.extreme_dims(operators.get(OPERATOR).cases, {"D": [1025, 1024]})
stretched_axes = views.stretched_axes(OPERATOR)

PROPERTIES = (
    equivalence.equivalence,
    extreme_dims,
    relations.alone,
    relations.permuted,
    relations.slots_renamed,
    relations.inactive_rows_added,
    equals_prefill,
    placement.strided,
    relations.repeated,
    relations.cold_equals_warm,
    relations.neighbour_perturbed,
    equivalence.baseline_agrees,
    placement.memory,
    placement.poison_independent,
    placement.no_races,
    placement.high_slot,
    arguments.bad_arguments,
    arguments.strict_accepts,
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
