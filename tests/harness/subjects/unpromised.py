"""The references as subjects: right, in the inputs' dtypes, and without a promise about bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import references


def conv_prefill(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return references.conv_prefill(x, weight, **rest)


def conv_update(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return references.conv_update(x, weight, **rest)


def gdn_prefill(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    return references.gdn_prefill(q, k, v, **rest)


def gdn_decode(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    return references.gdn_decode(q, k, v, **rest)


def gated_rmsnorm(x: Tensor, z: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return references.gated_rmsnorm(x, z, weight, **rest)


def moe_routing(logits: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    return references.moe_routing(logits, **rest, compute_dtype=torch.float32)


def moe(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return references.moe(x, router_logits, *experts, **rest)


def first_row_reaches_the_last(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    """Wrong: sequences are one sequence."""
    mixed = x.clone()
    mixed[-1:] += x[:1]
    return references.conv_prefill(mixed, weight, **rest)


_calls = 0


def wobbles(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    """The last bit differs from call to call, as where atomics add up."""
    global _calls
    _calls += 1
    y = references.conv_update(x, weight, **rest)
    return torch.where(y == 0, y, y.nextafter(torch.full_like(y, torch.inf))) if _calls % 2 else y


def wobbles_openly(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return wobbles(x, weight, **rest)


_NAMES = (
    "conv_prefill",
    "conv_update",
    "gdn_prefill",
    "gdn_decode",
    "gated_rmsnorm",
    "moe_routing",
    "moe",
    "first_row_reaches_the_last",
    "wobbles",
)
for _name in _NAMES:
    globals()[_name].sluicegate = {"bitwise": False}
moe_routing.sluicegate = {"bitwise": False, "deep_sigmoids": False}  # type: ignore[attr-defined]
wobbles_openly.sluicegate = {"bitwise": False, "repeatable": False}  # type: ignore[attr-defined]
