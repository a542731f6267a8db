"""What must hold of ``gdn_decode``: one token of the gated delta rule for each row (spec section 4)."""

from __future__ import annotations

from dataclasses import replace

import torch

from harness import arguments, budget, guards, relations
from harness.batch import Batch, Result
from harness.case import Case
from harness.context import Context, Property
from harness.pytest_plugin import CheckedCell

OPERATOR = "gdn_decode"


def linear_body(context: Context, case: Case) -> None:
    """For fixed q, k and gates, output and state are jointly linear in (v, state): no oracle, no reference involved."""
    case = case.with_(state_dtype="float32")
    batch = context.batch(case)
    other = context.batch(case.with_(seed=case.seed ^ 0x5EED))
    other = replace(
        batch,
        tokens=tuple({**mine, "v": theirs["v"]} for mine, theirs in zip(batch.tokens, other.tokens, strict=True)),
        states=other.states,
    )
    total = replace(
        batch,
        tokens=tuple(
            {**mine, "v": mine["v"] + theirs["v"]} for mine, theirs in zip(batch.tokens, other.tokens, strict=True)
        ),
        states=tuple(
            None if mine is None or theirs is None else mine + theirs
            for mine, theirs in zip(batch.states, other.states, strict=True)
        ),
    )
    first, second, joint = context.run(batch), context.run(other), context.run(total)
    magnitudes = [context.sequences.magnitude(b) for b in (batch, other, total)]
    for i in batch.active:
        for name in ("outputs", "states"):
            parts = [getattr(r, name)[i].double() for r in (first, second, joint)]
            terms = sum(getattr(m, name)[i] for m in magnitudes)
            flat = [t.reshape(-1, t.shape[-1]) for t in (parts[0] + parts[1], parts[2], terms)]
            budget.require_within(
                flat[1].float(), flat[0], flat[0], flat[2], f"{name[:-1]} of row {i} for (v1 + v2, S1 + S2)"
            )


def zero_gates_body(context: Context, case: Case) -> None:
    """No decay and no write (g = 0, beta = 0, both exactly): the state keeps its bits and the output only reads it."""
    batch = context.batch(case)
    silent = batch.map_tokens(lambda name, t: torch.full_like(t, -200.0) if name in ("a", "b") else t)
    # With float16 or bfloat16 gates the bias must not lift the softplus above zero.
    silent = replace(silent, shared={**silent.shared, "dt_bias": torch.zeros_like(silent.shared["dt_bias"])})
    got = context.run(silent)
    unchanged = Result(got.outputs, silent.states)
    context.require_same(got, unchanged, "with g = 0 and beta = 0 the state must keep its bits", batch=silent)
    context.require_within_budget(got, silent)


def recall_body(context: Context, case: Case) -> None:
    """With beta = 1 and no decay, what was just written under a key is what that key reads back: o = scale x v for q = k."""
    batch = context.batch(case)
    written = batch.map_tokens(
        lambda name, t: torch.full_like(t, -200.0) if name == "a" else torch.full_like(t, 200.0) if name == "b" else t
    )
    written = replace(
        written,
        tokens=tuple({**item, "q": item["k"].clone()} for item in written.tokens),
        shared={**written.shared, "dt_bias": torch.zeros_like(written.shared["dt_bias"])},
    )
    context.require_within_budget(context.run(written), written)


def heads_permuted_body(context: Context, case: Case) -> None:
    """Renaming key heads, each with its group of value heads, renames the results: heads do not talk to each other."""
    batch = context.batch(case)
    heads, ratio = case.dims["H"], case.dims["HV"] // case.dims["H"]
    order = torch.randperm(heads, generator=torch.Generator().manual_seed(case.choice)).to(batch.device)
    values = (order[:, None] * ratio + torch.arange(ratio, device=batch.device)).flatten()
    permuted = permute_heads(batch, order, values)
    plain, got = context.run(batch), context.run(permuted)
    expected = Result(
        tuple(o[:, values] for o in plain.outputs), tuple(None if s is None else s[values] for s in plain.states)
    )
    context.require_same(
        got, expected, f"key heads in the order {order.tolist()} must permute the results", batch=permuted
    )


def permute_heads(batch: Batch, order: torch.Tensor, values: torch.Tensor) -> Batch:
    index = {"q": order, "k": order, "v": values, "a": values, "b": values}
    return replace(
        batch.map_tokens(lambda name, t: t[:, index[name]]).map_states(lambda s: s[values]),
        shared={name: tensor[values] for name, tensor in batch.shared.items()},
    )


linear = Property("linear_in_v_and_state", "relations", linear_body, dtypes=("float32",))
zero_gates = Property("zero_gates_keep_state", "relations", zero_gates_body)
recall = Property("recalls_what_was_written", "relations", recall_body, weight=0.5)
heads_permuted = Property("heads_permuted", "relations", heads_permuted_body, weight=0.5)

PROPERTIES = (
    relations.equivalence,
    relations.alone,
    relations.permuted,
    relations.slots_renamed,
    relations.inactive_rows_added,
    relations.strided,
    relations.repeated,
    relations.cold_equals_warm,
    relations.neighbour_perturbed,
    relations.scaled,
    linear,
    zero_gates,
    recall,
    heads_permuted,
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
