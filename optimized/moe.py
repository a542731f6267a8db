"""Mixture of experts without a host sync, in plain torch: every expert computes every token, and those not chosen are masked.

What a token is sent to is known to the device alone, so a loop over the experts that have tokens would have to wait for
it, and could not be captured in a CUDA graph. This does E / k times the arithmetic instead; at the batch sizes of a decode
step it is the weights' way through memory that counts, and most experts are wanted by some token anyway.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import checks

#: Elements of the largest intermediate: tokens are taken in blocks that stay below it.
_MOST_ELEMENTS = 1 << 25
_METHODS = ("renormalize", "default")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def moe_routing(
    logits: torch.Tensor, *, top_k: int, method: str, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [T, E] -> (expert_ids int32 [T, k], weights float32 [T, k]), the largest first, the lower id where two are equal.

    method "renormalize": softmax over the chosen logits; "default": over all. ``bias`` [E] takes part in the choice alone.
    """
    experts = logits.shape[1]
    if method not in _METHODS:
        raise checks.fail("method", repr(method), " or ".join(_METHODS), "other ways to route are not implemented")
    checks.check_int("top_k", top_k, 1)
    if top_k > experts:
        raise checks.fail("top_k", top_k, f"at most {experts}", "there are no more experts")
    wide = logits.float()
    score = wide if bias is None else wide + bias.float()
    ids = torch.sort(score, dim=-1, descending=True, stable=True).indices[:, :top_k]
    chosen = wide.gather(1, ids)
    weights = F.softmax(chosen, -1) if method == "renormalize" else (chosen - wide.logsumexp(-1, keepdim=True)).exp()
    return ids.int(), weights


def moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    *,
    top_k: int,
    method: str,
) -> torch.Tensor:
    """x [T, Hd], router_logits [T, E], w_gate_up [E, 2I, Hd] (gate rows first), w_down [E, Hd, I] -> y [T, Hd].

    Products are rounded to the dtype of `x` as they leave the matrix units; the weighted sum over experts is in float32.

    Raises:
        ValueError: wrong shape, dtype, device, method or k.
    """
    dims: dict[str, int] = {}
    checks.check_tensor("x", x, shape=("T", "Hd"), dtypes=_FLOATS, dims=dims)
    checks.check_tensor("router_logits", router_logits, shape=("T", "E"), dtypes=_FLOATS, device=x.device, dims=dims)
    checks.check_tensor("w_down", w_down, shape=("E", "Hd", "I"), dtypes=(x.dtype,), device=x.device, dims=dims)
    gate_up_shape = ("E", 2 * dims["I"], "Hd")
    checks.check_tensor("w_gate_up", w_gate_up, shape=gate_up_shape, dtypes=(x.dtype,), device=x.device, dims=dims)
    ids, weights = moe_routing(router_logits, top_k=top_k, method=method)
    experts, hidden = dims["E"], dims["Hd"]
    chosen = torch.zeros_like(router_logits, dtype=torch.bool).scatter_(1, ids.long(), True)
    dense = torch.zeros_like(router_logits, dtype=torch.float32).scatter_(1, ids.long(), weights)
    block = max(1, _MOST_ELEMENTS // max(1, experts * max(hidden, 2 * dims["I"])))
    y = torch.empty_like(x)
    for start in range(0, x.shape[0], block):
        rows = slice(start, start + block)
        gate, up = torch.matmul(x[rows], w_gate_up.mT).chunk(2, dim=-1)
        out = torch.matmul(F.silu(gate) * up, w_down.mT)
        # Masked, not multiplied by zero: an expert that was not asked may well return infinities.
        asked = chosen[rows].T.unsqueeze(-1)
        weighted = torch.where(asked, out.float() * dense[rows].T.unsqueeze(-1), 0.0)
        y[rows] = weighted.sum(0).to(x.dtype)
    return y
