"""What must hold of ``moe_routing``: which experts a token goes to, and with which weights (spec 5.2, P11)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from harness import arguments, equivalence, guards, moe_batches, moe_routing_relations, placement, relations, views
from harness.batch import Result
from harness.case import Case, Segment
from harness.context import Context, Property, in_one_dtype
from harness.failure import Row, fail
from harness.operators import expert_choice
from harness.operators.moe_routing import MoeRouting
from harness.pytest_plugin import CheckedCell
from harness.strategies import Scale
from references.moe import moe_routing

OPERATOR = "moe_routing"
ROUTER = MoeRouting()


def sums_body(context: Context, case: Case) -> None:
    """Weights that are divided by their sum add up to the scaling; those of a softmax over all to no more than one."""
    got = context.run(context.batch(case.with_(regime={**case.regime, "logits": "random", "load": "random"})))
    weights = torch.cat(got.outputs).double()
    method, scaling = case.options["method"], case.options["scaling"]
    total = weights.sum(1)
    # A rounding for each weight, for their sum and for the quotient.
    slack = scaling * (case.dims["k"] + 4) * 2.0**-23
    if method in ("renormalize", "renormalize_naive", *expert_choice.RATIOS):
        wrong = (total - scaling).abs() > slack
    elif method == "default":
        wrong = total > 1 + slack
    else:
        return
    if bool(wrong.any()):
        token = int(torch.nonzero(wrong)[0])
        row = Row(f"weights of token {token}", [], weights[token, :8].tolist())
        text = f"weights of token {token} add up to {float(total[token]):.8g}, expected {scaling:g}"
        fail("over budget", text, [row], mark="sum")


def logits_returned_body(context: Context, case: Case) -> None:
    """Of "top_k" the weights are the chosen logits, to the bit."""
    if "top_k" not in (context.capabilities.routing_methods or ("top_k",)):
        return
    batch = context.batch(moe_batches.routed(case, "top_k", bias=case.options["bias"]))
    got, oracle = context.run(batch), context.tokens.oracle(batch)
    expected = Result(tuple(weights.float() for weights in oracle.outputs), oracle.states)
    context.require_same(got, expected, "the weights must be the chosen logits", batch=batch)


def unsure_body(context: Context, case: Case) -> None:
    """Scores that rounding could swap: any of the experts that it could bring in, in any such order, with their own weights.

    Everywhere else the choice is one thing and is compared as such.
    """
    method = ("sigmoid_renorm", "minimax2", "sigmoid")[case.choice % 3]
    if method not in (context.capabilities.routing_methods or (method,)):
        return
    case = moe_batches.routed(case, method, bias="small")
    batch = context.batch(case)
    draw = torch.Generator().manual_seed(case.choice)
    # sigmoid(l) + b is nearly one number for all experts: what the sigmoid lacks, the bias has.
    logits = torch.randn(case.tokens, case.dims["E"], generator=draw).to(batch.device)
    logits = logits[:1].expand_as(logits).to(moe_batches.logits_of(batch).dtype)
    bias = torch.zeros(case.dims["E"], device=batch.device)
    if case.tokens:
        # Some experts are clearly behind.
        behind = torch.rand(case.dims["E"], generator=draw).to(batch.device) < 0.5
        bias = (1 - torch.sigmoid(logits[0].double()) - 0.5 * behind).float()
    batch = replace(moe_batches.with_logits(batch, logits), shared={"bias": bias})
    got = context.run(batch)
    ids = torch.cat([one for one in got.states if one is not None]).long()
    scores = expert_choice.scores(logits, bias, method)
    chosen = scores.gather(1, ids)
    bar = scores.sort(1, descending=True).values[:, : case.dims["k"]]
    if bool(((chosen - bar).abs() > expert_choice.TIE).any()):
        fail(
            "wrong experts",
            "expert_ids: a score that is not among the largest, by more than rounding explains",
            mark="unsure",
        )
    # The weights are right for the ids that were chosen: routed among those alone, which need no bias.
    sorted_ids, order = ids.sort(1)
    among = logits.gather(1, sorted_ids)
    reference = torch.zeros_like(chosen)
    known, weights = moe_routing(among, top_k=ids.shape[1], method=method)
    reference.scatter_(1, known.long(), weights)
    expected = torch.zeros_like(reference).scatter_(1, order, reference)
    have = torch.cat(got.outputs).double()
    if bool(((have - expected).abs() > 32 * 2.0**-24 * (1 + expected.abs())).any()):
        fail("over budget", "weights: not those of the experts that were chosen", mark="unsure")


def few_experts(scale: Scale, dtype: str) -> Any:
    """A few tokens and experts: with two of either, a stride itself would need more than 31 bits."""
    cases = ROUTER.cases(scale, dtype)
    return cases.map(
        lambda case: moe_batches.routed(case, "default").with_(sequences=(Segment(4),), dims={"E": 5, "k": 3})
    )


sums = Property("weights_add_up", "relations", sums_body, dtypes=("float16",))
logits_returned = Property("top_k_returns_logits", "relations", logits_returned_body, weight=0.5, dtypes=("bfloat16",))
unsure = Property("unsure_choices", "relations", unsure_body, dtypes=("float32",))
published = equivalence.published(ROUTER.published_cases)
far_apart = placement.far_apart(ROUTER.far_cases)
stretched_axes = replace(views.stretched_axes(OPERATOR), strategy=few_experts)
bad_arguments = replace(moe_routing_relations.bad_arguments, dtypes=("bfloat16",))

PROPERTIES = (
    equivalence.equivalence,
    published,
    *in_one_dtype(
        "bfloat16",
        relations.alone,
        relations.permuted,
        placement.strided,
        relations.neighbour_perturbed,
        moe_routing_relations.rows_apart,
        moe_routing_relations.naive,
        moe_routing_relations.equal_logits,
        equivalence.baseline_agrees,
        placement.poison_independent,
        placement.no_races,
        arguments.strict_accepts,
        views.spread_vectors,
        guards.host_sync,
        guards.copied_bytes,
        guards.variants,
    ),
    *in_one_dtype(
        "float32",
        relations.repeated,
        moe_routing_relations.appended,
        moe_routing_relations.shifted,
        moe_routing_relations.constant_bias,
        moe_routing_relations.relabelled,
        moe_routing_relations.nan_logits,
        moe_routing_relations.shut,
        guards.graph_replay,
    ),
    *in_one_dtype("float16", placement.memory, guards.launch_count),
    bad_arguments,
    sums,
    logits_returned,
    unsure,
    far_apart,
    stretched_axes,
)


def test_property(cell: CheckedCell) -> None:
    cell.check()
