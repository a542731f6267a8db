"""Relations of the router, which hold of router and experts together just as well: one body for both operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import references
from harness import arguments
from harness.batch import Batch, Result
from harness.case import Case
from harness.context import Context, Property
from harness.failure import Row, fail
from harness.moe_batches import (
    claims,
    distinct,
    logits_name,
    logits_of,
    one_of_claimed,
    routed,
    whole,
    with_logits,
)
from harness.operators import expert_choice
from harness.relations import another_order
from harness.subjects import Capabilities


def bad_arguments_body(context: Context, case: Case) -> None:
    """Every case without a bias and with one: without it, nothing but the logits says how many experts there are."""
    for bias in (None, "small"):
        arguments.arguments_body(context, case.with_(options={**case.options, "bias": bias}))


#: Added to all logits; whole numbers of this size have room in bfloat16.
SHIFT = 24.0


def shifted_body(context: Context, case: Case) -> None:
    """Softmax weights, and every order of logits, are blind to what is added to all of them."""
    method = one_of_claimed(context, case, expert_choice.SOFTMAXES)
    if method is None:
        return
    bias = case.options["bias"]
    # Whole numbers, so that the sum is exact in any dtype.
    batch = context.batch(routed(case.with_(regime={**case.regime, "logits": "ties"}), method, bias=bias))
    sign = 1 if case.choice & 8 else -1
    context.require_within_budget(context.run(with_logits(batch, logits_of(batch) + sign * SHIFT)), batch)


def naive_body(context: Context, case: Case) -> None:
    """Softmax over all and then over the chosen is softmax over the chosen: the same experts, the same weights."""
    if not (claims(context, "renormalize") and claims(context, "renormalize_naive")):
        return
    bias = case.options["bias"]
    regime = {**case.regime, "logits": "random" if case.regime["logits"] == "wide" else case.regime["logits"]}
    batch = context.batch(routed(case.with_(regime=regime), "renormalize", bias=bias))
    naive = replace(batch, case=routed(batch.case, "renormalize_naive", bias=bias))
    for one, other in ((batch, naive), (naive, batch)):
        context.require_within_budget(context.run(one), other)


def constant_bias_body(context: Context, case: Case) -> None:
    """The same bias for all experts changes neither the choice nor, as no bias does, the weights."""
    plain = case.with_(options={**case.options, "bias": None})
    batch = context.batch(plain)
    bias = torch.full((case.dims["E"],), (1 + case.choice % 7) / 4, device=batch.device)
    biased = case.with_(options={**case.options, "bias": "small"})
    batch = with_logits(batch, expert_choice.settled(logits_of(batch), bias, biased))
    # Settled for scores with a bias; of groups it must be without one, too.
    unsure = expert_choice.ambiguous(logits_of(batch), None, plain)
    # Sigmoids that float64 rounds to 1 are equal beside a bias, where without one the logits still tell them apart.
    choices = [
        references.moe_routing(logits_of(batch), bias=each, **expert_choice.keywords(plain))[0] for each in (None, bias)
    ]
    unsure |= (choices[0] != choices[1]).any(1)
    batch = with_logits(batch, torch.where(unsure[:, None], 0.0, logits_of(batch).float()))
    given = replace(batch, case=biased, shared={**batch.shared, "bias": bias})
    context.require_within_budget(context.run(given), batch)


def relabelled_body(context: Context, case: Case) -> None:
    """Experts in another order, their logits and weights with them: the same sum, chosen by other ids."""
    method = case.options["method"]
    scaling = case.options["scaling"]
    # With all experts here: otherwise those that are here would be others.
    case = routed(case if case.operator == "moe_routing" else whole(case), method, scaling=scaling)
    batch = distinct(context.batch(case), case)
    ordered = logits_of(batch).sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return  # more experts than bfloat16 has numbers there
    order = torch.tensor(another_order(case.dims["E"], case.choice), device=batch.device)
    relabelled = with_logits(batch, logits_of(batch)[:, order])
    if batch.case.operator == "moe_routing":
        got = context.run(relabelled)
        named = tuple(order[ids.long()].int() if ids is not None else None for ids in got.states)
        context.require_within_budget(Result(got.outputs, named), batch)
        return
    shared = {**batch.shared, **{name: batch.shared[name][order] for name in ("w_gate_up", "w_down")}}
    context.require_within_budget(context.run(replace(relabelled, shared=shared)), batch)


def equal_body(context: Context, case: Case) -> None:
    """Equal logits: the first experts, in their order, and one weight for all of them."""
    options = {**case.options, "bias": None}
    batch = context.batch(case.with_(options=options, regime={**case.regime, "logits": "equal", "load": "random"}))
    got, chosen = context.run(batch), case.dims["k"]
    first = torch.arange(chosen, dtype=torch.int32, device=batch.device)
    for ids, weights in zip(got.states, got.outputs, strict=True):
        assert ids is not None
        if not torch.equal(ids, first.expand_as(ids)):
            row = Row("expert_ids", first[:8].tolist(), ids[(ids != first).any(1)][0, :8].tolist())
            fail(
                "wrong experts", f"all logits are equal, so experts 0 to {chosen - 1} are chosen, in this order", [row]
            )
        if not torch.equal(weights, weights[:, :1].expand_as(weights)):
            text = "weights: all logits of a token are equal, and so must its weights be"
            fail("over budget", text, [Row("weights", [], weights[0, :8].tolist())], mark="equal")


def nan_body(context: Context, case: Case) -> None:
    """A NaN counts as the least of scores: the reference's ids, its weights where they are numbers, NaN where they are none.

    One token has nothing but NaN (a graph's padding), another nothing but -inf, as where all experts are masked.
    """
    batch = context.batch(case)
    logits, bias = logits_of(batch).clone(), batch.shared.get("bias")
    draw = torch.Generator().manual_seed(case.choice)
    holes = torch.rand(logits.shape, generator=draw).to(batch.device) < 0.3
    logits = logits.masked_fill(holes, float("nan"))
    logits = expert_choice.settled(logits, bias, case)
    if case.tokens:
        logits[case.choice % case.tokens] = float("nan")
    if case.tokens > 1:
        logits[(case.choice + 1) % case.tokens] = -torch.inf
    batch = with_logits(batch, logits)
    got, oracle = context.run(batch), context.tokens.oracle(batch)
    weights, truth = torch.cat(got.outputs), torch.cat(oracle.outputs)
    if not torch.equal(weights.isnan(), truth.isnan()):
        token = int(torch.nonzero((weights.isnan() != truth.isnan()).any(1))[0])
        row = Row(f"weights of token {token}", truth[token, :8].tolist(), weights[token, :8].tolist())
        fail("non-finite", "weights: NaN where the reference has a number, or a number where it has none", [row])
    # The budget skips rows that are no numbers; ids are compared in all of them.
    numbers = ~truth.isnan().any(1)
    known = [replace_nan(part, numbers.split(batch.lengths)[i]) for i, part in enumerate(got.outputs)]
    context.require_within_budget(Result(tuple(known), got.states), batch)


def replace_nan(rows: Tensor, known: Tensor) -> Tensor:
    return torch.where(known[:, None], rows, 0.0)


def shut_body(context: Context, case: Case) -> None:
    """Logits so low that of their sigmoids float32 has none left, or next to nothing, chosen by a bias: shares of what is left.

    No 0 / 0, and no epsilon that outweighs the sum but the method's own.
    """
    for method in (name for name in expert_choice.RATIOS if claims(context, name)):
        batch = context.batch(routed(case, method, bias="large"))
        # Multiples of 1/4, exact in every dtype, and all sigmoids nothing beside the bias.
        near = (logits_of(batch).float() * 4).round().clamp(-16, 16) / 4
        # The second is low enough for float64, too, to lose the sigmoids beside any bias but zero: a tie for everybody.
        for level in (-200, -48):
            _require_shares(context, with_logits(batch, near + level))


def _require_shares(context: Context, batch: Batch) -> None:
    got, oracle = context.run(batch), context.tokens.oracle(batch)
    have, want = torch.cat(got.outputs).double(), torch.cat(oracle.outputs)
    # Not the usual budget: the float32 model kernel has 0 / 0 there.
    wrong = ~((have - want).abs() <= 64 * 2.0**-24)
    if bool(wrong.any()):
        token = int(torch.nonzero(wrong)[0, 0])
        row = Row(f"weights of token {token}", want[token, :8].tolist(), have[token, :8].tolist())
        fail("over budget", "weights: not the shares of sigmoids that are next to nothing", [row], mark="shut")


def divides_as_they_are(_: str, function: Callable[..., Any]) -> str:
    return "" if Capabilities.of(function).deep_sigmoids else "it divides sigmoids as float32 has them"


def rows_apart_body(context: Context, case: Case) -> None:
    """A token of NaN, in whatever tile it lies, leaves every other token its bits; so does one whose logits are NaN."""
    batch = context.batch(case)
    if not case.tokens:
        return
    names = [logits_name(batch)] if case.operator == "moe_routing" else ["x", logits_name(batch)]
    # Each in a token of its own, if there are two.
    poisoned, hurt = batch, [(case.choice + place) % case.tokens for place in range(len(names))]
    for name, token in zip(names, hurt, strict=True):
        rows = batch.packed(name).clone()
        rows[token] = float("nan")
        parts = rows.split(batch.lengths)
        poisoned = replace(
            poisoned, tokens=tuple({**item, name: one} for item, one in zip(poisoned.tokens, parts, strict=True))
        )
    got, expected = context.run(poisoned), context.run(batch)
    why = f"NaN in token {' and '.join(map(str, hurt))} must not reach any other"
    rows_of = [torch.cat(result.outputs) for result in (got, expected)]
    for rows in rows_of:
        rows[hurt] = 0
    if not context.capabilities.bitwise:
        if bool(rows_of[0].isnan().any()):
            fail("non-finite", why)
        return
    kept = [Result(tuple(rows.split(batch.lengths)), (None,) * batch.size) for rows in rows_of]
    context.require_same(kept[0], kept[1], why, batch=batch)


def appended_body(context: Context, case: Case) -> None:
    """More tokens behind them change no row."""
    batch = context.batch(case)
    more = batch.select([*range(batch.size), *[case.choice % batch.size] * (1 + case.choice % 3)])
    context.require_invariant(
        context.run(more).select(list(range(batch.size))),
        context.run(batch),
        "tokens appended to the batch must change no row before them",
        batch=batch,
    )


bad_arguments = replace(arguments.bad_arguments, body=bad_arguments_body)
shifted = Property("logits_shifted", "relations", shifted_body)
naive = Property("renormalize_equals_naive", "relations", naive_body)
constant_bias = Property("constant_bias", "relations", constant_bias_body, weight=0.5)
relabelled = Property("experts_relabelled", "relations", relabelled_body)
equal_logits = Property("equal_logits_go_to_the_first", "relations", equal_body)
nan_logits = Property("nan_logits", "relations", nan_body)
shut = Property("shut_sigmoids", "relations", shut_body, weight=0.5, nothing_to_check=divides_as_they_are)
rows_apart = Property("rows_kept_apart", "relations", rows_apart_body)
appended = Property("tokens_appended", "relations", appended_body)
