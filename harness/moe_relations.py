"""Relations of the experts of a mixture: which of them count, how their rows add up, and in what parts they may be."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import references
from harness.case import Case, Segment
from harness.context import Context, Property
from harness.failure import Row, fail
from harness.moe_batches import APART, added, dense, exactly_held, logits_of, one_of_claimed, routed, whole, with_logits
from harness.operators import expert_choice, get
from harness.operators.base import torch_dtype
from harness.strategies import Scale
from harness.subjects import Capabilities


def one_hot_body(context: Context, case: Case) -> None:
    """One logit far above all others: the token's row is what that one expert returns, whatever k is."""
    method = one_of_claimed(context, case, ("renormalize", "default", "renormalize_naive"))
    if method is None:
        return
    batch = context.batch(routed(whole(case), method))
    draw = torch.Generator().manual_seed(case.choice)
    wanted = torch.randint(0, case.dims["E"], (case.tokens,), generator=draw).to(batch.device)
    logits = torch.full_like(logits_of(batch), -APART).scatter(1, wanted[:, None], APART)
    batch = with_logits(batch, logits)
    context.require_within_budget(context.run(batch), batch, oracle=dense(batch, wanted, 1.0))


def identical_body(context: Context, case: Case) -> None:
    """All experts are the same MLP: what is left of routing is the sum of the weights."""
    batch = context.batch(whole(case))
    shared = {
        name: batch.shared[name][:1].expand_as(batch.shared[name]).contiguous() for name in ("w_gate_up", "w_down")
    }
    batch = replace(batch, shared={**batch.shared, **shared})
    oracle = dense(batch, torch.zeros(case.tokens, dtype=torch.int64, device=batch.device), None)
    context.require_within_budget(context.run(batch), batch, oracle=oracle)


def exact_body(context: Context, case: Case) -> None:
    """Contents of few small whole numbers, weights that are powers of two: the float64 result, rounded once."""
    # Weights are 1 or 1 / k: the logits of k experts are alike, and the others' far below.
    chosen = 1 << (case.dims["k"].bit_length() - 1)
    regime = {**case.regime, "contents": "exact", "amplitude": "unit", "logits": "random", "load": "random"}
    options = {**case.options, "bias": None, "scaling": 1.0, "n_group": 1, "topk_group": 1}
    batch = context.batch(case.with_(dims={**case.dims, "k": chosen}, options=options, regime=regime))
    draw = torch.Generator().manual_seed(case.choice)
    wanted = torch.rand(case.tokens, case.dims["E"], generator=draw).argsort(1)[:, :chosen].to(batch.device)
    on = 1.0 if options["method"] == "top_k" else APART
    batch = with_logits(batch, torch.full_like(logits_of(batch), -APART).scatter(1, wanted, on))
    got, oracle = context.run(batch), context.tokens.oracle(batch)
    expected = tuple(rows.to(torch_dtype(case.dtype)) for rows in oracle.outputs)
    # Where a number on the way is too large for the dtype, the budget has to do.
    if exactly_held(batch, every=bool(context.capabilities.roundings)):
        require_exact(torch.cat(got.outputs), torch.cat(expected))
    context.require_within_budget(got, batch)


def require_exact(have: Tensor, want: Tensor, expected: str = "the exact sum, rounded once") -> None:
    """Rows [T, Hd] of the same dtype, equal in every element; ``expected``: what they ought to be, in words."""
    if torch.equal(have, want):
        return
    token = int(torch.nonzero((have != want).any(1))[0])
    place = max(0, int(torch.nonzero(have[token] != want[token])[0]) - 2)
    cut = slice(place, place + 6)
    row = Row(f"token {token}, elements from {place}", want[token, cut].tolist(), have[token, cut].tolist())
    text = f"output: {int((have != want).any(1).sum())} of {have.shape[0]} rows are not {expected}"
    fail("over budget", text, [row], mark="exact")


#: So many times what the others return, in which bfloat16 has no digit left for those.
LOUD = 1024.0


def cancelled_body(context: Context, case: Case) -> None:
    """The first and the last of a token's experts cancel each other, and what those between return is left, to the last digit.

    The budget allows for the roundings of the loud ones, in which the others are lost; but these are whole numbers.
    """
    chosen, regime = case.dims["k"], {**case.regime, "contents": "exact", "logits": "equal", "load": "random"}
    batch = context.batch(case.with_(regime=regime))
    # Weights of 1 or 1 / k, as in `exact_body`.
    on = 1.0 if case.options["method"] == "top_k" else APART
    batch = with_logits(batch, torch.full_like(logits_of(batch), on))
    if not exactly_held(batch, every=True):
        return
    gate_up, down = (batch.shared[name].clone() for name in ("w_gate_up", "w_down"))
    gate_up[chosen - 1] = gate_up[0]
    down[0] *= LOUD
    down[chosen - 1] = -down[0]
    batch = replace(batch, shared={**batch.shared, "w_gate_up": gate_up, "w_down": down})
    got, oracle = context.run(batch), context.tokens.oracle(batch)
    require_exact(torch.cat(got.outputs), torch.cat(oracle.outputs).to(torch_dtype(case.dtype)))


def loud_and_quiet(scale: Scale, dtype: str) -> Any:
    """Cases for `cancelled`: all of four experts, few rows and many."""
    sizes = {"E": 4, "El": 4, "k": 4}

    def fit(case: Case) -> Case:
        method = "renormalize" if case.options["method"] == "llama4" else case.options["method"]
        sequences = (Segment(9 + case.tokens),) if case.choice % 3 < 2 else (Segment(1 + case.tokens % 2),)
        return routed(case, method, first=0).with_(sequences=sequences, dims={**case.dims, **sizes})

    return get("moe").cases(scale, dtype).map(fit)


def rounds_on_the_way(_: str, function: Callable[..., Any]) -> str:
    return "it rounds what experts return" if Capabilities.of(function).products_rounded else ""


def experts_split_body(context: Context, case: Case) -> None:
    """What the experts of two or three GPUs return adds up to what all return."""
    batch = context.batch(whole(case))
    experts = case.dims["E"]
    # The first cut leaves experts on both sides, where there are two.
    cuts = sorted({0, experts, 1 + case.choice % max(1, experts - 1), (case.choice // 7) % (experts + 1)})
    parts = []
    for first, end in itertools.pairwise(cuts):
        shared = {**batch.shared, **{name: batch.shared[name][first:end] for name in ("w_gate_up", "w_down")}}
        here = batch.case.with_(dims={**case.dims, "El": end - first}, options={**batch.case.options, "first": first})
        parts.append(context.run(replace(batch, case=here, shared=shared)))
    context.require_within_budget(added(parts), batch)


def columns_split_body(context: Context, case: Case) -> None:
    """What slices of the intermediate return adds up to what all of it returns."""
    size = max(2, case.dims["I"])
    batch = context.batch(case.with_(dims={**case.dims, "I": size}))
    cut = 1 + case.choice % (size - 1)
    gate, up = batch.shared["w_gate_up"].chunk(2, dim=1)
    parts = []
    for columns in (slice(0, cut), slice(cut, size)):
        slices = torch.cat([gate[:, columns], up[:, columns]], dim=1), batch.shared["w_down"][:, :, columns]
        shared = {**batch.shared, **dict(zip(("w_gate_up", "w_down"), slices, strict=True))}
        here = batch.case.with_(dims={**batch.case.dims, "I": slices[1].shape[2]})
        parts.append(context.run(replace(batch, case=here, shared=shared)))
    context.require_within_budget(added(parts), batch)


def unchosen_body(context: Context, case: Case) -> None:
    """The weights of experts that no token goes to may hold anything: NaN in one run, zeros in the other."""
    batch = context.batch(case)
    keywords = expert_choice.keywords(case) | {"bias": batch.shared.get("bias")}
    ids, _ = references.moe_routing(logits_of(batch), **keywords)
    here = torch.arange(case.dims["El"], device=batch.device) + case.options["first"]
    idle = ~torch.isin(here, ids)
    results = []
    for value in (float("nan"), 0.0):
        shared = {name: batch.shared[name].masked_fill(idle[:, None, None], value) for name in ("w_gate_up", "w_down")}
        results.append(context.run(replace(batch, shared={**batch.shared, **shared})))
    why = "experts without tokens held NaN in one run and zeros in the other"
    if context.capabilities.bitwise:
        context.require_same(results[0], results[1], why, batch=batch)
    else:
        context.require_within_budget(results[0], batch)


one_hot = Property("one_hot_is_the_dense_expert", "relations", one_hot_body)
identical = Property("identical_experts", "relations", identical_body)
exact = Property("exact_sums", "equivalence", exact_body, weight=2)
# Of float16 the loud ones would overflow.
cancelled = Property(
    "opposite_experts_cancel",
    "equivalence",
    cancelled_body,
    examples=3,
    dtypes=("bfloat16",),
    strategy=loud_and_quiet,
    nothing_to_check=rounds_on_the_way,
)
# In half precision each part is rounded for itself, which the whole is not.
experts_split = Property("experts_over_gpus_add_up", "relations", experts_split_body, dtypes=("float32",))
columns_split = Property("columns_over_gpus_add_up", "relations", columns_split_body, dtypes=("float32",))
unchosen = Property("unchosen_experts_may_hold_nan", "relations", unchosen_body)
