"""Relations of the gated delta rule's algebra, written once for prefill and decode."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness import budget
from harness.batch import Batch, Result
from harness.case import Case
from harness.context import Context, Property
from harness.relations import another_order


def linear_body(context: Context, case: Case) -> None:
    """For fixed q, k and gates, output and state are jointly linear in (v, state): no oracle, no reference involved."""
    case = case.with_(state_dtype="float32")
    batch = context.batch(case)
    drawn = context.batch(case.with_(seed=case.seed ^ 0x5EED))
    other = replace(
        batch,
        tokens=tuple({**mine, "v": theirs["v"]} for mine, theirs in zip(batch.tokens, drawn.tokens, strict=True)),
        states=drawn.states,
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
                flat[1].float(), flat[0], flat[0], flat[2], f"{name[:-1]} of sequence {i} for (v1 + v2, S1 + S2)"
            )


def heads_permuted_body(context: Context, case: Case) -> None:
    """Renaming key heads, each with its group of value heads, renames the results: heads do not talk to each other."""
    heads, ratio = max(2, case.dims["H"]), case.dims["HV"] // case.dims["H"]
    case = case.with_(dims={**case.dims, "H": heads, "HV": heads * ratio})
    batch = context.batch(case)
    order = torch.tensor(another_order(heads, case.choice), device=batch.device)
    values = (order[:, None] * ratio + torch.arange(ratio, device=batch.device)).flatten()
    permuted = permute_heads(batch, order, values)
    plain, got = context.run(batch), context.run(permuted)
    expected = Result(
        tuple(o[:, values] for o in plain.outputs), tuple(None if s is None else s[values] for s in plain.states)
    )
    context.require_same(
        got, expected, f"key heads in the order {order.tolist()} must permute the results", batch=permuted
    )


def permute_heads(batch: Batch, order: Tensor, values: Tensor) -> Batch:
    """Key heads in this order; ``values``: the order of the value heads that follows from it."""

    def permuted(name: str, tensor: Tensor) -> Tensor:
        return tensor[:, order if name in ("q", "k") else values]

    return replace(
        batch.map_tokens(permuted).map_states(lambda s: s[values]),
        shared={name: tensor[values] for name, tensor in batch.shared.items()},
    )


linear = Property("linear_in_v_and_state", "relations", linear_body, dtypes=("float32",))
heads_permuted = Property("heads_permuted", "relations", heads_permuted_body, weight=0.5)
