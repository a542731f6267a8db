"""Mixture of experts in plain torch: every expert computes every token, and those not chosen are masked.

What the optimized one is measured against, and compared with. It does E / k times the arithmetic, but waits for nothing that
only the device knows, so it too can be captured in a CUDA graph. Values are trusted, as in `optimized.baselines`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor

#: Elements of the largest intermediate: tokens are taken in blocks that stay below it.
_MOST_ELEMENTS = 1 << 25
_SIGMOID_SCORES = ("deepseek_v3", "sigmoid_renorm", "minimax2", "sigmoid")


def moe_routing(
    logits: Tensor,
    *,
    top_k: int,
    method: str,
    bias: Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scaling: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Contract of ``optimized.moe_routing``: a stable sort of all scores, in float32."""
    tokens, experts = logits.shape
    wide = logits.float()
    # Without a bias the order is that of the logits: a sigmoid that rounds to 1 must not create ties.
    score = wide.sigmoid() if method in _SIGMOID_SCORES and bias is not None else wide
    if bias is not None:
        score = score + bias.float()
    score = score.masked_fill(score.isnan(), -torch.inf)
    order = score.argsort(dim=-1, descending=True, stable=True)
    if method == "deepseek_v3" and topk_group < n_group:
        size = experts // n_group
        groups = (score if bias is not None else wide.sigmoid().nan_to_num(-torch.inf)).view(tokens, n_group, size)
        group_score = groups.topk(min(2, size), dim=-1).values.sum(-1)
        best = group_score.argsort(dim=-1, descending=True, stable=True)[:, :topk_group]
        dropped = torch.ones_like(group_score, dtype=torch.bool).scatter_(1, best, False)
        order = order.gather(1, dropped.gather(1, order // size).int().argsort(dim=-1, stable=True))
    ids = order[:, :top_k]
    chosen = wide.gather(1, ids)
    if method == "top_k":
        weights = chosen
    elif method == "default":
        weights = wide.softmax(-1).gather(1, ids)
    elif method in ("renormalize", "renormalize_naive"):
        weights = chosen.softmax(-1)
    elif method in ("llama4", "sigmoid", "top_k_sigmoid"):
        weights = chosen.sigmoid()
    else:
        squashed = chosen.sigmoid()
        weights = squashed / (squashed.sum(-1, keepdim=True) + (1e-20 if method == "minimax2" else 0.0)) * scaling
    return ids.int(), weights


def moe_experts(
    x: Tensor, expert_ids: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor, *, expert_offset: int = 0
) -> Tensor:
    """Contract of ``optimized.moe_experts``. Products are rounded to the dtype of `x` as they leave the matrix units."""
    tokens, (experts, hidden, size) = x.shape[0], w_down.shape
    local = expert_ids.long() - expert_offset
    # What is computed elsewhere goes to a column that is cut off.
    local = torch.where((local >= 0) & (local < experts), local, experts)
    chosen = torch.zeros(tokens, experts + 1, dtype=torch.bool, device=x.device).scatter_(1, local, True)[:, :-1]
    dense = torch.zeros(tokens, experts + 1, dtype=torch.float32, device=x.device).scatter_add_(1, local, weights)
    block = max(1, _MOST_ELEMENTS // max(1, experts * max(hidden, 2 * size)))
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for start in range(0, tokens, block):
        rows = slice(start, start + block)
        gate, up = torch.matmul(x[rows], w_gate_up.mT).chunk(2, dim=-1)
        out = torch.matmul(F.silu(gate) * up, w_down.mT)
        # Masked, not multiplied by zero: an expert that was not asked may well return infinities.
        asked = chosen[rows].T.unsqueeze(-1)
        weighted = torch.where(asked, out.float() * dense[rows, :-1].T.unsqueeze(-1), 0.0)
        y[rows] = weighted.sum(0).to(x.dtype)
    return y


def moe(
    x: Tensor,
    router_logits: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    top_k: int,
    method: str,
    bias: Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scaling: float = 1.0,
    expert_offset: int = 0,
) -> Tensor:
    """Contract of ``optimized.moe``."""
    ids, weights = moe_routing(
        router_logits,
        top_k=top_k,
        method=method,
        bias=bias,
        n_group=n_group,
        topk_group=topk_group,
        scaling=scaling,
    )
    return moe_experts(x, ids, weights, w_gate_up, w_down, expert_offset=expert_offset)


# On a CPU, what a library's functions return depends on where in a vector register a number lies. Sigmoids are divided as they are.
moe_routing.sluicegate = {"bitwise": False, "deep_sigmoids": False}  # type: ignore[attr-defined]
# Each call of a library rounds what it returns.
moe.sluicegate = {"bitwise": False, "products_rounded": True}  # type: ignore[attr-defined]
