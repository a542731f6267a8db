"""A router and a mixture of experts that are right: the references in float64, as subjects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import references
from references.moe import moe_experts as reference


def moe_routing(logits: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    ids, weights = references.moe_routing(logits, **rest)
    return ids, weights.float()


def moe_experts(x: Tensor, expert_ids: Tensor, weights: Tensor, *experts: Tensor, expert_offset: int = 0) -> Tensor:
    return reference(x, expert_ids, weights, *experts, expert_offset=expert_offset)


def moe(x: Tensor, router_logits: Tensor, w_gate_up: Tensor, w_down: Tensor, **rest: Any) -> Tensor:
    return references.moe(x, router_logits, w_gate_up, w_down, **rest, compute_dtype=torch.float64)
