"""What must hold of ``gated_rmsnorm``: norm, weight and gate of each token's heads (spec 6.2, step 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness import arguments, equivalence, guards, placement, relations, views
from harness.batch import Batch, Result
from harness.case import Case
from harness.context import Context, Property
from harness.failure import Row, fail
from harness.operators.gated_rmsnorm import SHUT, GatedRmsNorm, epsilon
from harness.pytest_plugin import CheckedCell

OPERATOR = "gated_rmsnorm"


def rounded_once_body(context: Context, case: Case) -> None:
    """Nearly every element is the float64 result rounded to its dtype: a rounding in between would move a third of them.

    The budget cannot see that: it allows what two roundings do.
    """
    batch = context.batch(case)
    got, oracle = context.run(batch), context.tokens.oracle(batch)
    have, want = (torch.cat([o.flatten() for o in r.outputs]) for r in (got, oracle))
    off = torch.nonzero(have != want.to(have.dtype)).flatten()
    allowed = 1 + have.numel() // 50
    if off.numel() > allowed:
        few = off[:6]
        row = Row("elements rounded otherwise", want[few].tolist(), have[few].double().tolist())
        text = f"{off.numel()} of {have.numel()} elements are not the nearest to the oracle, at most {allowed} expected"
        fail("over budget", f"output: {text}; is something rounded before y is?", [row], mark="rounded")


def zeros_body(context: Context, case: Case) -> None:
    """A zero row of x, a zero gate and a shut gate each give exactly zero: no NaN from 0 / 0, none from an overflow."""
    batch = context.batch(case)
    for what, name, value in (("x = 0", "x", 0.0), ("z = 0", "z", 0.0), (f"z = {SHUT:g}", "z", SHUT)):
        got = context.run(_with(batch, name, lambda t, v=value: torch.full_like(t, v)))
        for i, output in enumerate(got.outputs):
            if bool((output == 0).all()):
                continue
            bad = output.reshape(-1)[(output != 0).reshape(-1)][:6].double().tolist()
            row = Row(f"segment {i}, elements that are not zero", [0.0] * len(bad), bad)
            fail("over budget", f"output: {what} must give exactly zero", [row], mark=what)


def epsilon_scaled_body(context: Context, case: Case) -> None:
    """y(4 x, 16 eps) = y(x, eps), bit for bit: everything up to the root scales by a power of two, eps under it included."""
    batch = context.batch(case)
    options = {**case.options, "eps": 16 * epsilon(case)}
    scaled = replace(_with(batch, "x", lambda t: t * 4), case=case.with_(options=options))
    context.require_same(
        context.run(scaled), context.run(batch), "4 x with 16 eps must give the same rows", batch=scaled
    )


def scaled_body(context: Context, case: Case) -> None:
    """Where eps is negligible, so is the size of x: each budget is that of a kernel that saw the other's x."""
    batch = context.batch(
        case.with_(regime={**case.regime, "amplitude": "unit"}, options={**case.options, "eps": 1e-12})
    )
    # In a row of one element eps is not negligible beside the square of a small one.
    batch = _with(batch, "x", lambda t: torch.where(t == 0, t, torch.copysign(t.abs().clamp(min=2.0**-6), t)))
    context.require_within_budget(context.run(_with(batch, "x", lambda t: t * 64)), batch)


def weight_doubled_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    doubled = replace(batch, shared={"weight": batch.shared["weight"] * 2})
    expected = _outputs(context.run(batch), lambda y: y * 2)
    context.require_same(context.run(doubled), expected, "2 x weight must give exactly 2 x the rows", batch=doubled)


def open_gate_body(context: Context, case: Case) -> None:
    """From 64 on silu(z) is z in float32: twice the gate, twice the row."""
    batch = _with(context.batch(case), "z", lambda t: torch.full_like(t, 64.0))
    doubled = _with(batch, "z", lambda t: t * 2)
    expected = _outputs(context.run(batch), lambda y: y * 2)
    context.require_same(context.run(doubled), expected, "an open gate must let twice as much through", batch=doubled)


def heads_permuted_body(context: Context, case: Case) -> None:
    heads = max(2, case.dims["HV"])
    batch = context.batch(case.with_(dims={**case.dims, "HV": heads}))
    order = torch.tensor(relations.another_order(heads, case.choice), device=batch.device)
    permuted = batch.map_tokens(lambda _, t: t[:, order])
    context.require_same(
        context.run(permuted),
        _outputs(context.run(batch), lambda y: y[:, order]),
        f"heads in the order {order.tolist()} must give the same rows",
        batch=permuted,
    )


def one_weight_body(context: Context, case: Case) -> None:
    """The same row in every head gives the same row: no head has a weight of its own."""
    batch = context.batch(case).map_tokens(lambda _, t: t[:, :1].expand_as(t).contiguous())
    got = context.run(batch)
    expected = _outputs(got, lambda y: y[:, :1].expand_as(y).contiguous())
    context.require_same(got, expected, "all heads share the weight, so equal heads must give equal rows", batch=batch)


def rows_apart_body(context: Context, case: Case) -> None:
    """One row of NaN leaves every other row, next to it in memory and in the kernel's tile, its bits."""
    batch = context.batch(case)
    token, head = case.choice % max(case.tokens, 1), (case.choice // 7) % case.dims["HV"]
    got, expected = context.run(_poisoned(batch, token, head)), context.run(batch)
    rows = [torch.cat(r.outputs) for r in (got, expected)]
    if case.tokens:
        for row in rows:
            row[token, head] = 0
    kept = [Result(tuple(row.split(batch.lengths)), got.states) for row in rows]
    why = f"NaN in token {token}, head {head} must not reach any other row"
    if context.capabilities.bitwise:
        context.require_same(kept[0], kept[1], why, batch=batch)
    elif bool(rows[0].isnan().any()):
        fail("non-finite", why)


def _with(batch: Batch, name: str, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with one of its inputs changed."""
    return batch.map_tokens(lambda n, t: change(t) if n == name else t)


def _outputs(result: Result, change: Callable[[Tensor], Tensor]) -> Result:
    return Result(tuple(change(output) for output in result.outputs), result.states)


def _poisoned(batch: Batch, token: int, head: int) -> Batch:
    """NaN in all inputs of one row; token counts over all segments."""
    starts = [sum(batch.lengths[:i]) for i in range(batch.size)]

    def poison(rows: Tensor, start: int) -> Tensor:
        out = rows.clone()
        if start <= token < start + rows.shape[0]:
            out[token - start, head] = float("nan")
        return out

    tokens = tuple(
        {name: poison(rows, start) for name, rows in item.items()}
        for item, start in zip(batch.tokens, starts, strict=True)
    )
    return replace(batch, tokens=tokens)


rounded_once = Property("rounded_once", "equivalence", rounded_once_body, dtypes=("float16", "bfloat16"))
zeros = Property("zeros_stay_zero", "relations", zeros_body)
epsilon_scaled = Property("epsilon_scales_with_x", "relations", epsilon_scaled_body)
scaled = Property("scale_of_x_is_lost", "relations", scaled_body, weight=0.5)
# Exact only above the subnormal numbers, which float16 reaches.
weight_doubled = Property("weight_doubled", "relations", weight_doubled_body, dtypes=("float32", "bfloat16"))
open_gate = Property("open_gate_doubled", "relations", open_gate_body, weight=0.5, dtypes=("float32", "bfloat16"))
heads_permuted = Property("heads_permuted", "relations", heads_permuted_body)
one_weight = Property("heads_share_the_weight", "relations", one_weight_body, weight=0.5)
rows_apart = Property("rows_kept_apart", "relations", rows_apart_body)
far_apart = placement.far_apart(GatedRmsNorm().far_cases)
extreme_dims = equivalence.extreme_dims(GatedRmsNorm().cases, {"V": [1024, 513, 1, 2]})
stretched_axes = views.stretched_axes(OPERATOR)

PROPERTIES = (
    equivalence.equivalence,
    extreme_dims,
    rounded_once,
    relations.alone,
    relations.permuted,
    placement.strided,
    relations.repeated,
    relations.cold_equals_warm,
    relations.neighbour_perturbed,
    zeros,
    epsilon_scaled,
    scaled,
    weight_doubled,
    open_gate,
    heads_permuted,
    one_weight,
    rows_apart,
    equivalence.baseline_agrees,
    placement.memory,
    placement.poison_independent,
    placement.no_races,
    far_apart,
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
