"""torch's grouped matrix product as a mixture of experts (`torch.nn.functional.grouped_mm` of 2.10 and newer).

Pairs of token and expert are sorted by expert; one product a matrix takes every expert's rows. Read in torch 2.11 and 2.13:

- ends of groups are int32; rows after the last end are left as they were allocated, so pairs of experts that are not here are
  sorted to the end and cut out of the sum by a select;
- rows are multiples of 16 bytes, so other sizes are filled up with zeros, once;
- every product is rounded to the inputs' dtype as it leaves: the halves before silu, and what an expert returns before the
  weighted sum, which is in float32 and in the order of the choice.

Nothing here waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from . import experts, trtllm_layout
from .prepared import Preparations

#: Elements of bfloat16 in 16 bytes.
STEP = 8

PREPARED = Preparations()


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
    (tokens, hidden), top_k = x.shape, ids.shape[1]
    if tokens == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    local = w_down.shape[0]
    first, second = sized(w_gate_up, w_down)
    pairs, order = torch.sort(experts.local_ids(ids, expert_offset, local, local).flatten(), stable=True)
    ends = torch.searchsorted(pairs, torch.arange(local, dtype=torch.int32, device=x.device), right=True).int()
    rows = experts.padded_tokens(x, first.shape[2])[order // top_k]
    gate, up = F.grouped_mm(rows, first.mT, offs=ends).chunk(2, dim=-1)
    out = F.grouped_mm(F.silu(gate) * up, second.mT, offs=ends)[:, :hidden]
    weighted = torch.where((pairs < local).unsqueeze(1), out.float() * weights.flatten()[order].unsqueeze(1), 0.0)
    # Back into the order of the pairs: a sum of each token's own, not atomics.
    of_pair = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    return weighted[of_pair].view(tokens, top_k, hidden).sum(1).to(x.dtype)


_TAKES: dict[str, Any] = {
    "dtypes": ("bfloat16",),
    "bitwise": False,
    "min_capability": (8, 0),
    "library": "torch>=2.10",
    "products_rounded": True,
    "keeps_weights": True,
}
moe.sluicegate = _TAKES  # type: ignore[attr-defined]


def sized(w_gate_up: torch.Tensor, w_down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights, dense, with sizes of whole 16 bytes; remembered where that is a copy."""

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        return trtllm_layout.padded(w_gate_up, w_down, STEP, STEP)

    _, hidden, intermediate = w_down.shape
    if hidden % STEP == intermediate % STEP == 0 and w_gate_up.is_contiguous() and w_down.is_contiguous():
        return w_gate_up, w_down
    return PREPARED.get(make, (w_gate_up, w_down), ("sized", STEP))
