"""Batches of `moe_routing` and of `moe` for relations: their logits, how they are routed, and what some of them must return.

The two differ in what their logits are called; what changes logits works on both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import references
from harness.batch import Batch, Result
from harness.case import Case
from harness.context import Context
from harness.operators import expert_choice

#: A logit that leaves no weight to any other: exp(-120) is nothing beside 1 in float32.
APART = 60.0
#: Numbers of weights that `dense` has in hand at once: 512 MiB in float64, beside those of other workers on one GPU.
WEIGHTS_AT_ONCE = 1 << 26


def logits_of(batch: Batch) -> Tensor:
    """[T, E]."""
    return batch.packed(logits_name(batch))


def with_logits(batch: Batch, logits: Tensor) -> Batch:
    """The batch with other logits [T, E], in the dtype of its own."""
    name = logits_name(batch)
    rows = logits.to(logits_of(batch).dtype).split(batch.lengths)
    return replace(batch, tokens=tuple({**item, name: one} for item, one in zip(batch.tokens, rows, strict=True)))


def logits_name(batch: Batch) -> str:
    return "logits" if batch.case.operator == "moe_routing" else "router_logits"


def routed(case: Case, method: str, **options: Any) -> Case:
    """The case routed by another method, without a bias, groups or scaling unless given."""
    plain = {"method": method, "bias": None, "n_group": 1, "topk_group": 1, "scaling": 1.0}
    return case.with_(options={**case.options, **plain, **options})


def whole(case: Case) -> Case:
    """The case with all of its experts here."""
    return case.with_(dims={**case.dims, "El": case.dims["E"]}, options={**case.options, "first": 0})


def claims(context: Context, method: str) -> bool:
    return method in (context.capabilities.routing_methods or (method,))


def one_of_claimed(context: Context, case: Case, methods: tuple[str, ...]) -> str | None:
    """The method for this case among those that the subject claims; None where it claims none of them."""
    claimed = [method for method in methods if claims(context, method)]
    return claimed[case.choice % len(claimed)] if claimed else None


def distinct(batch: Batch, case: Case) -> Batch:
    """The batch with logits of which no two are alike in a token, as far as the dtype has so many numbers from -4 to 4."""
    draw = torch.Generator().manual_seed(case.seed)
    rows, experts = case.tokens, case.dims["E"]
    order = torch.rand(rows, experts, generator=draw).argsort(1).float()
    return with_logits(batch, (order * (8 / experts) - 4).to(batch.device))


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


def dense(batch: Batch, expert: Tensor, weight: float | None) -> Result:
    """[T, Hd] in float64: each token through one expert [T], times a weight; None: times the sum of its routing weights."""
    w_gate_up, w_down = (batch.shared[name] for name in ("w_gate_up", "w_down"))
    # Every token gets a copy of its expert's weights.
    tokens = max(1, WEIGHTS_AT_ONCE // max(1, w_gate_up[0].numel() + w_down[0].numel()))
    parts = []
    for x, chosen in zip(batch.packed("x").split(tokens), expert.split(tokens), strict=True):
        gate, up = torch.einsum("th,tih->ti", x.double(), w_gate_up[chosen].double()).chunk(2, dim=1)
        inner = gate / (1 + torch.exp(-gate)) * up
        parts.append(torch.einsum("ti,thi->th", inner, w_down[chosen].double()))
    out = torch.cat(parts)
    if weight is None:
        keywords = expert_choice.keywords(batch.case) | {"bias": batch.shared.get("bias")}
        out = out * references.moe_routing(logits_of(batch), **keywords)[1].sum(1, keepdim=True)
    else:
        out = out * weight
    return Result(tuple(out.split(batch.lengths)), (None,) * batch.size)


def added(parts: list[Result]) -> Result:
    """Their sum, row by row."""
    sums = [torch.stack([part.outputs[i].double() for part in parts]).sum(0) for i in range(len(parts[0].outputs))]
    return Result(tuple(rows.to(parts[0].outputs[0].dtype) for rows in sums), parts[0].states)
