"""A mixture of experts that takes a place of no expert, whose weight is NaN, for one of its first expert's with a small weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from references.moe import moe_experts as reference
from tests.harness.subjects import moe_right as right


def moe_experts(x: Tensor, expert_ids: Tensor, weights: Tensor, *experts: Tensor, expert_offset: int = 0) -> Tensor:
    nobody = weights.isnan()
    ids, small = torch.where(nobody, expert_offset, expert_ids), weights.masked_fill(nobody, 2.0**-5)
    return reference(x, ids, small, *experts, expert_offset=expert_offset)


def moe(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return right.moe(x, router_logits, *experts, **rest)
