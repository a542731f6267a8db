"""Relations of a mixture of experts: of its router, and of router and experts together where both are of one mind.

A batch of `moe_routing` and one of `moe` differ in what their logits are called; what changes logits works on both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import references
from harness import arguments, execution
from harness.batch import Batch, Result
from harness.case import Case, Layout, Segment
from harness.context import Context, Property
from harness.failure import Row, fail
from harness.memory import Arena, PoisonedAllocations
from harness.operators import expert_choice, get
from harness.operators.base import torch_dtype
from harness.strategies import Scale
from harness.subjects import Capabilities

#: Added to all logits; whole numbers of this size have room in bfloat16.
SHIFT = 24.0
#: A logit that leaves no weight to any other: exp(-120) is nothing beside 1 in float32.
APART = 60.0


# -- logits and experts of a batch --------------------------------------------------------------------------------------


def logits_of(batch: Batch) -> Tensor:
    """[T, E]."""
    return batch.packed(_logits_name(batch))


def with_logits(batch: Batch, logits: Tensor) -> Batch:
    """The batch with other logits [T, E], in the dtype of its own."""
    name = _logits_name(batch)
    rows = logits.to(logits_of(batch).dtype).split(batch.lengths)
    return replace(batch, tokens=tuple({**item, name: one} for item, one in zip(batch.tokens, rows, strict=True)))


def _logits_name(batch: Batch) -> str:
    return "logits" if batch.case.operator == "moe_routing" else "router_logits"


def routed(case: Case, method: str, **options: Any) -> Case:
    """The case routed by another method, without a bias, groups or scaling unless given."""
    plain = {"method": method, "bias": None, "n_group": 1, "topk_group": 1, "scaling": 1.0}
    return case.with_(options={**case.options, **plain, **options})


def _claims(context: Context, method: str) -> bool:
    return method in (context.capabilities.routing_methods or (method,))


def _one_of(context: Context, case: Case, methods: tuple[str, ...]) -> str | None:
    """The method for this case among those that the subject claims; None where it claims none of them."""
    claimed = [method for method in methods if _claims(context, method)]
    return claimed[case.choice % len(claimed)] if claimed else None


# -- bad arguments ------------------------------------------------------------------------------------------------------


def bad_arguments_body(context: Context, case: Case) -> None:
    """Every case without a bias and with one: without it, nothing but the logits says how many experts there are."""
    for bias in (None, "small"):
        arguments.arguments_body(context, case.with_(options={**case.options, "bias": bias}))


# -- what changes nothing ---------------------------------------------------------------------------------------------


def shifted_body(context: Context, case: Case) -> None:
    """Softmax weights, and every order of logits, are blind to what is added to all of them."""
    method = _one_of(context, case, expert_choice.SOFTMAXES)
    if method is None:
        return
    bias = case.options["bias"]
    # Whole numbers, so that the sum is exact in any dtype.
    batch = context.batch(routed(case.with_(regime={**case.regime, "logits": "ties"}), method, bias=bias))
    sign = 1 if case.choice & 8 else -1
    context.require_within_budget(context.run(with_logits(batch, logits_of(batch) + sign * SHIFT)), batch)


def naive_body(context: Context, case: Case) -> None:
    """Softmax over all and then over the chosen is softmax over the chosen: the same experts, the same weights."""
    if not (_claims(context, "renormalize") and _claims(context, "renormalize_naive")):
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
    case = routed(case, method, scaling=scaling)
    batch = distinct(context.batch(case), case)
    ordered = logits_of(batch).sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return  # more experts than bfloat16 has numbers there
    draw = torch.Generator().manual_seed(case.choice)
    order = torch.randperm(case.dims["E"], generator=draw).to(batch.device)
    relabelled = with_logits(batch, logits_of(batch)[:, order])
    if batch.case.operator == "moe_routing":
        got = context.run(relabelled)
        named = tuple(order[ids.long()].int() if ids is not None else None for ids in got.states)
        context.require_within_budget(Result(got.outputs, named), batch)
        return
    if case.dims["El"] != case.dims["E"]:
        return  # those that are here would be others
    shared = {**batch.shared, **{name: batch.shared[name][order] for name in ("w_gate_up", "w_down")}}
    context.require_within_budget(context.run(replace(relabelled, shared=shared)), batch)


def distinct(batch: Batch, case: Case) -> Batch:
    """The batch with logits of which no two are alike in a token, as far as the dtype has so many numbers from -4 to 4."""
    draw = torch.Generator().manual_seed(case.seed)
    rows, experts = case.tokens, case.dims["E"]
    order = torch.rand(rows, experts, generator=draw).argsort(1).float()
    return with_logits(batch, (order * (8 / experts) - 4).to(batch.device))


# -- ties and numbers that are none -----------------------------------------------------------------------------------


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
    for method in (name for name in expert_choice.RATIOS if _claims(context, name)):
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


def rows_apart_body(context: Context, case: Case) -> None:
    """A token of NaN, in whatever tile it lies, leaves every other token its bits; so does one whose logits are NaN."""
    batch = context.batch(case)
    if not case.tokens:
        return
    names = [_logits_name(batch)] if case.operator == "moe_routing" else ["x", _logits_name(batch)]
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


# -- one expert, and experts that are one ----------------------------------------------------------------------------


def one_hot_body(context: Context, case: Case) -> None:
    """One logit far above all others: the token's row is what that one expert returns, whatever k is."""
    method = _one_of(context, case, ("renormalize", "default", "renormalize_naive"))
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


def dense(batch: Batch, expert: Tensor, weight: float | None) -> Result:
    """[T, Hd] in float64: each token through one expert [T], times a weight; None: times the sum of its routing weights."""
    from references.moe import moe_routing

    x = batch.packed("x").double()
    first, second = (batch.shared[name].double()[expert] for name in ("w_gate_up", "w_down"))
    gate, up = torch.einsum("th,tih->ti", x, first).chunk(2, dim=1)
    out = torch.einsum("ti,thi->th", gate / (1 + torch.exp(-gate)) * up, second)
    if weight is None:
        keywords = expert_choice.keywords(batch.case) | {"bias": batch.shared.get("bias")}
        out = out * moe_routing(logits_of(batch), **keywords)[1].sum(1, keepdim=True)
    else:
        out = out * weight
    return Result(tuple(out.split(batch.lengths)), (None,) * batch.size)


def whole(case: Case) -> Case:
    """The case with all of its experts here."""
    return case.with_(dims={**case.dims, "El": case.dims["E"]}, options={**case.options, "first": 0})


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
        _require_exact(torch.cat(got.outputs), torch.cat(expected))
    context.require_within_budget(got, batch)


def _require_exact(have: Tensor, want: Tensor) -> None:
    if torch.equal(have, want):
        return
    token = int(torch.nonzero((have != want).any(1))[0])
    place = max(0, int(torch.nonzero(have[token] != want[token])[0]) - 2)
    cut = slice(place, place + 6)
    row = Row(f"token {token}, elements from {place}", want[token, cut].tolist(), have[token, cut].tolist())
    text = f"output: {int((have != want).any(1).sum())} of {have.shape[0]} rows are not the exact sum, rounded once"
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
    _require_exact(torch.cat(got.outputs), torch.cat(oracle.outputs).to(torch_dtype(case.dtype)))


def loud_and_quiet(scale: Scale, dtype: str) -> Any:
    """Cases for `cancelled`: all of four experts, few rows and many."""
    sizes = {"E": 4, "El": 4, "k": 4}

    def fit(case: Case) -> Case:
        method = "renormalize" if case.options["method"] == "llama4" else case.options["method"]
        sequences = (Segment(9 + case.tokens),) if case.choice % 3 < 2 else (Segment(1 + case.tokens % 2),)
        return routed(case, method, first=0).with_(sequences=sequences, dims={**case.dims, **sizes})

    return get("moe").cases(scale, dtype).map(fit)


def divides_as_they_are(_: str, function: Callable[..., Any]) -> str:
    return "" if Capabilities.of(function).deep_sigmoids else "it divides sigmoids as float32 has them"


def rounds_on_the_way(_: str, function: Callable[..., Any]) -> str:
    return "it rounds what experts return" if Capabilities.of(function).products_rounded else ""


def exactly_held(batch: Batch, *, every: bool) -> bool:
    """Whether every gated product is a number of the batch's dtype: a multiple of the gates' unit that has few enough digits.

    x is 0 or 1, so that a sum has at most as many terms as its row of weights has entries. ``every``: so is what an expert
    returns, which is then rounded besides.
    """
    digits = 2 / torch.finfo(batch.tokens[0]["x"].dtype).eps
    gate, up = (half.abs().ne(0).sum(2).amax(1) for half in batch.shared["w_gate_up"].chunk(2, dim=1))
    most = int((gate * up).amax()) if gate.numel() else 0
    if not every or not gate.numel():
        return most <= digits
    down = batch.shared["w_down"].abs().sum(2).amax(1)
    return int((gate * up * down).amax()) <= digits


# -- partitions -------------------------------------------------------------------------------------------------------


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


def added(parts: list[Result]) -> Result:
    """Their sum, row by row."""
    sums = [torch.stack([part.outputs[i].double() for part in parts]).sum(0) for i in range(len(parts[0].outputs))]
    return Result(tuple(rows.to(parts[0].outputs[0].dtype) for rows in sums), parts[0].states)


# -- tokens and experts beside the point --------------------------------------------------------------------------------


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


def unchosen_body(context: Context, case: Case) -> None:
    """The weights of experts that no token goes to may hold anything: NaN in one run, zeros in the other."""
    from references.moe import moe_routing

    batch = context.batch(case)
    keywords = expert_choice.keywords(case) | {"bias": batch.shared.get("bias")}
    ids, _ = moe_routing(logits_of(batch), **keywords)
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


bad_arguments = replace(arguments.bad_arguments, body=bad_arguments_body)
shifted = Property("logits_shifted", "relations", shifted_body)
naive = Property("renormalize_equals_naive", "relations", naive_body)
constant_bias = Property("constant_bias", "relations", constant_bias_body, weight=0.5)
relabelled = Property("experts_relabelled", "relations", relabelled_body)
equal_logits = Property("equal_logits_go_to_the_first", "relations", equal_body)
nan_logits = Property("nan_logits", "relations", nan_body)
shut = Property("shut_sigmoids", "relations", shut_body, weight=0.5, nothing_to_check=divides_as_they_are)
rows_apart = Property("rows_kept_apart", "relations", rows_apart_body)
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
appended = Property("tokens_appended", "relations", appended_body)
unchosen = Property("unchosen_experts_may_hold_nan", "relations", unchosen_body)
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
