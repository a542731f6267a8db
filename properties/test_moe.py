"""What must hold of ``moe``: tokens through the experts that they are routed to (spec section 5, 5.7, P12)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import references
from harness import (
    arguments,
    equivalence,
    guards,
    moe_batches,
    moe_cost,
    moe_relations,
    moe_routing_relations,
    moe_shapes,
    placement,
    relations,
    views,
)
from harness.batch import Batch, Result
from harness.case import Case
from harness.context import Context, Property, in_one_dtype
from harness.memory import Arena
from harness.operators import expert_choice
from harness.pytest_plugin import CheckedCell
from harness.subjects import registered, sibling

OPERATOR = "moe"


# -- the two halves ---------------------------------------------------------------------------------------------------


def no_experts_beside(_: str, function: Callable[..., Any]) -> str:
    return "" if sibling(function, "moe_experts") else "its module has no moe_experts to compare with"


def no_router(_: str, function: Callable[..., Any]) -> str:
    return no_experts_beside(_, function) or ("" if registered("moe_routing") else "no package offers a router")


def through_experts(
    context: Context, batch: Batch, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Result:
    """The batch routed by the first router that is offered, its choice changed, then through the subject's moe_experts."""
    experts, router = sibling(context.function, "moe_experts"), registered("moe_routing")[0].load()
    assert experts is not None

    def in_two_steps(x: Tensor, logits: Tensor, w_gate_up: Tensor, w_down: Tensor, **keywords: Any) -> Tensor:
        offset = keywords.pop("expert_offset")
        ids, weights = change(*router(logits, **keywords))
        out: Tensor = experts(x, ids, weights, w_gate_up, w_down, expert_offset=offset)
        return out

    operator = context.tokens
    return operator.run(in_two_steps, batch, device=context.device, check_memory=context.check_memory)


def two_steps_body(context: Context, case: Case) -> None:
    """Route, then experts: what the fused call gives, to the bit where the subject promises bits."""
    batch = context.batch(case)
    got = through_experts(context, batch, lambda ids, weights: (ids, weights))
    context.require_same(got, context.run(batch), "routed first, the same tokens give the same rows", batch=batch)


def slots_permuted_body(context: Context, case: Case) -> None:
    """The k places of a token in another order, weights with them: the same sum in another order."""
    batch = context.batch(case)
    order = torch.tensor(relations.another_order(case.dims["k"], case.choice), device=batch.device)

    def permuted(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Places of a token apart in memory, too."""
        return ids[:, order].T.contiguous().T, weights[:, order].T.contiguous().T

    got = through_experts(context, batch, permuted)
    context.require_within_budget(got, batch)


def nobody_body(context: Context, case: Case) -> None:
    """A place without an expert (-1, one of another GPU) gives nothing, though its weight be NaN; a token without any, zero.

    So do all places of a step that is nothing but padding.
    """
    batch = context.batch(case)
    draw = torch.Generator().manual_seed(case.choice)
    drawn = torch.rand(2, case.tokens, case.dims["k"], generator=draw).to(batch.device)
    names = torch.where(drawn[0] < 0.5, -1, case.dims["E"] + case.choice % 5).int()
    for gone in (drawn[1] < 0.5, torch.ones_like(drawn[1], dtype=torch.bool)):
        _require_nothing_from(context, batch, gone, names)


def _require_nothing_from(context: Context, batch: Batch, gone: Tensor, names: Tensor) -> None:
    """The places that are `gone`, of these ids and of a weight of NaN, count as places of no weight."""
    chosen: list[Tensor] = []

    def without(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        chosen[:] = ids, weights
        return torch.where(gone, names, ids), weights.masked_fill(gone, float("nan"))

    got = through_experts(context, batch, without)
    ids, weights = chosen
    truth = references.moe_experts(
        batch.packed("x").double(),
        ids,
        weights.double().masked_fill(gone, 0.0),
        batch.shared["w_gate_up"],
        batch.shared["w_down"],
        expert_offset=batch.case.options["first"],
    )
    oracle = Result(tuple(truth.split(batch.lengths)), (None,) * batch.size)
    context.require_within_budget(got, batch, oracle=oracle, by="without")
    rows = torch.cat(got.outputs)[gone.all(1)]
    moe_relations.require_exact(rows, torch.zeros_like(rows), "exactly zero, though no expert was asked")


# -- where things lie -------------------------------------------------------------------------------------------------


def far_experts_body(context: Context, case: Case) -> None:
    """Experts whose weights begin more than 2^31 elements behind the first one's: as many as large models have."""
    batch = context.batch(case).with_layout(case.layout.__class__())
    expected = context.run(batch)
    for place in (2, 3):
        got = _far_experts(context, batch, place)
        context.require_same(got, expected, "experts beyond 2^31 elements must give the same rows", batch=batch)


def _far_experts(context: Context, batch: Batch, place: int) -> Result:
    """The result with the weights that are the argument `place` far apart. They are gone when it returns: 4 GiB."""
    far = list(context.tokens.pack(batch, Arena(context.device)).arguments)
    far[place] = views.stretched(far[place], 0)

    def moved(*_: Any, **keywords: Any) -> Any:
        return context.function(*far, **keywords)

    return context.tokens.run(moved, batch, device=context.device, check_memory=False)


def variants_body(context: Context, case: Case) -> None:
    """Eight experts a token, so that nearly any number of tokens is many rows, and one, so that more numbers of them are few."""
    case = moe_batches.whole(moe_batches.routed(case, case.options["method"], bias=case.options["bias"]))
    experts = max(8, case.dims["E"])
    for chosen in (1,) if case.options["method"] == "llama4" else (8, 1):
        dims = {**case.dims, "E": experts, "El": experts, "k": chosen}
        guards.variants_body(context, case.with_(dims=dims), guards.WORKLOAD // 2)


def many_experts_body(context: Context, case: Case) -> None:
    """Every other token goes to the last experts: among so many hardly one would by chance."""
    batch = context.batch(case)
    logits = moe_batches.logits_of(batch).float()
    logits[::2, -5:] += 2 * expert_choice.WIDEST_SOFTMAX
    batch = moe_batches.with_logits(batch, expert_choice.settled(logits, None, case))
    context.require_within_budget(context.run(batch), batch)


def in_two_cases(
    name: str, group: str, body: Callable[[Context, Case], None], strategy: Callable[..., Any]
) -> Property:
    """A property that two cases of a kind of their own show, whatever the dtype."""
    return Property(name, group, body, examples=2, dtypes=("bfloat16",), strategy=strategy)


two_steps = Property(
    "routed_then_experts", "relations", two_steps_body, dtypes=("bfloat16",), nothing_to_check=no_router
)
slots_permuted = Property(
    "places_permuted", "relations", slots_permuted_body, dtypes=("float32",), nothing_to_check=no_router
)
nobody = Property(
    "places_without_an_expert", "relations", nobody_body, dtypes=("bfloat16",), nothing_to_check=no_router
)
far_experts = in_two_cases("experts_far_apart", "memory", far_experts_body, moe_shapes.few_experts_apart)
crowd = in_two_cases("equivalence_of_many_experts", "equivalence", many_experts_body, moe_shapes.many_experts)
rounds = in_two_cases(
    "equivalence_of_many_rows", "equivalence", equivalence.equivalence_body, moe_shapes.rows_in_rounds
)
tails = Property(
    "equivalence_of_tails",
    "equivalence",
    equivalence.equivalence_body,
    examples=12,
    dtypes=("float16", "bfloat16"),
    strategy=moe_shapes.edges_of_tails,
)
decode_steps = Property(
    "equivalence_of_decode_steps", "equivalence", equivalence.equivalence_body, 2.0, strategy=moe_shapes.decode_steps
)
published = equivalence.published(moe_shapes.MIXTURE.published_cases)
far_apart = placement.far_apart(moe_shapes.few_or_more_rows)
stretched_axes = replace(views.stretched_axes(OPERATOR), strategy=moe_shapes.few_experts_apart)
bad_arguments = replace(moe_routing_relations.bad_arguments, dtypes=("bfloat16",))
variants = replace(guards.variants, body=variants_body, dtypes=("bfloat16",))
launch_count = replace(guards.launch_count, dtypes=("bfloat16",), examples=2, strategy=moe_shapes.every_launch)
no_races_of_many_rows = replace(
    placement.no_races, name="no_races_of_many_rows", examples=2, dtypes=("bfloat16",), strategy=moe_shapes.every_launch
)
cold_equals_warm = replace(relations.cold_equals_warm, examples=1)
working_memory = in_two_cases("bounded_working_memory", "cost", moe_cost.working_memory_body, moe_shapes.many_rows)

PROPERTIES = (
    equivalence.equivalence,
    moe_relations.exact,
    moe_relations.cancelled,
    crowd,
    rounds,
    decode_steps,
    tails,
    published,
    moe_cost.unread,
    working_memory,
    *in_one_dtype(
        "bfloat16",
        relations.alone,
        relations.permuted,
        placement.strided,
        relations.neighbour_perturbed,
        moe_routing_relations.appended,
        moe_routing_relations.rows_apart,
        moe_relations.one_hot,
        moe_relations.unchosen,
        placement.memory,
        replace(placement.poison_independent, strategy=moe_shapes.steps_and_others),
        placement.no_races,
        views.spread_vectors,
        guards.graph_replay,
    ),
    *in_one_dtype(
        "float16",
        relations.repeated,
        moe_routing_relations.relabelled,
        moe_relations.identical,
        equivalence.baseline_agrees,
        arguments.strict_accepts,
        guards.host_sync,
    ),
    *in_one_dtype(
        "float32",
        moe_routing_relations.shifted,
        moe_routing_relations.naive,
        moe_relations.experts_split,
        moe_relations.columns_split,
    ),
    bad_arguments,
    variants,
    launch_count,
    cold_equals_warm,
    no_races_of_many_rows,
    two_steps,
    slots_permuted,
    nobody,
    far_apart,
    far_experts,
    stretched_axes,
)


def test_property(cell: CheckedCell) -> None:
    cell.check()
