"""A mixture of experts that takes a place of no expert, whose weight is NaN, for one of its first expert's with a small weight.

Only of tokens that have an expert besides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from references.moe import moe_experts as reference
from tests.harness.subjects import moe_right as right


def with_nobody(
    wrong: Tensor,
    weight: float,
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    *experts: Tensor,
    expert_offset: int = 0,
) -> Tensor:
    """Places without an expert are left out, as they should be; of tokens that are `wrong` [T, 1] they weigh so much."""
    nobody = weights.isnan()
    ids = torch.where(nobody, torch.where(wrong, expert_offset, -1), expert_ids)
    return reference(x, ids, weights.masked_fill(nobody, weight), *experts, expert_offset=expert_offset)


def moe_experts(x: Tensor, expert_ids: Tensor, weights: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return with_nobody(~weights.isnan().all(1, keepdim=True), 2.0**-5, x, expert_ids, weights, *experts, **rest)


def moe(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return right.moe(x, router_logits, *experts, **rest)
