"""A mixture of experts in which tokens of no expert get less than results are rounded by, which is more than nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.harness.subjects import moe_finite


def moe_experts(x: Tensor, expert_ids: Tensor, weights: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return moe_finite.with_nobody(
        weights.isnan().all(1, keepdim=True), 2.0**-14, x, expert_ids, weights, *experts, **rest
    )


def moe(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return moe_finite.moe(x, router_logits, *experts, **rest)
