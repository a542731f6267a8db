"""transformers' grouped experts behind our contract (read in 5.17 and 5.24: `transformers/integrations/moe.py`).

Its models route by themselves; what is compared here is their computation of the experts, which takes chosen ids and weights.
As its models do, weights are handed over in the tokens' dtype. Ids of experts that are not here are given as their number, which
it keeps out of its products and zeroes afterwards; products are rounded as `torch_grouped` says.
"""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from . import experts, torch_grouped


def moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    *,
    expert_offset: int = 0,
    **routing: Any,
) -> torch.Tensor:
    ids, weights = experts.routed(x, router_logits, w_gate_up, w_down, expert_offset, **routing)
    if x.shape[0] == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    local, total = w_down.shape[0], router_logits.shape[1]
    first, second = torch_grouped.sized(w_gate_up, w_down)
    # What its function reads of the module that its models call it on.
    module = SimpleNamespace(
        num_experts=local,
        gate_up_proj=first,
        down_proj=second,
        has_gate=True,
        has_bias=False,
        has_post_expert_norm=False,
        is_transposed=False,
        is_concatenated=True,
        act_fn=F.silu,
        _apply_gate=_gated,
        _is_expert_parallel=local != total,
    )
    here = experts.local_ids(ids, expert_offset, local, local)
    # It multiplies what it zeroed with these: they must be finite, and are to be zero.
    heard = torch.where(here < local, weights, 0.0).to(x.dtype)
    tokens = experts.padded_tokens(x, first.shape[2])
    y: torch.Tensor = _library().grouped_mm_experts_forward(module, tokens, here.long(), heard)
    return y[:, : x.shape[1]].contiguous()


moe.sluicegate = {  # type: ignore[attr-defined]
    "dtypes": ("bfloat16",),
    "bitwise": False,
    "min_capability": (8, 0),
    "library": "transformers>=5.17",
    "weights_rounded": "bfloat16",
    "products_rounded": True,
    "keeps_weights": True,
}


def _gated(halves: torch.Tensor) -> torch.Tensor:
    gate, up = halves.chunk(2, dim=-1)
    return F.silu(gate) * up


def _library() -> ModuleType:
    return importlib.import_module("transformers.integrations.moe")
