"""Mixture of experts: which experts a token goes to, and what they make of it.

A token x with router logits l over E experts goes to the k of them with the largest logits, the lower id first where two
are equal. Their weights are the softmax of l, over all experts ("default") or over the chosen ones ("renormalize": the same
numbers divided by their sum). Each chosen expert is a SwiGLU MLP,

    y = sum_j w_j W_down[e_j] (silu(W_gate[e_j] x) * (W_up[e_j] x))

(Shazeer et al.: Outrageously Large Neural Networks, 2017; Shazeer: GLU Variants Improve Transformer, 2020). The shared
expert of Qwen3-Next is not part of it.
"""

import torch
from torch import Tensor

METHODS = ("renormalize", "default")


def moe_routing(
    logits: Tensor,
    *,
    top_k: int,
    method: str,
    bias: Tensor | None = None,
    compute_dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Experts and weights of each token, the largest first.

    Args:
        logits: [T, E], any float dtype.
        top_k: k, 1 to E.
        method: "renormalize" or "default", see above.
        bias: [E] or None; added to the logits for the choice alone, not for the weights.
        compute_dtype: of the comparison and of the softmax.

    Returns:
        `(expert_ids, weights)`: int32 [T, k] and float32 [T, k] (float64 if that is the compute dtype).

    Raises:
        ValueError: an unknown method, or k outside 1..E.
    """
    experts = logits.shape[1]
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k: expected 1 to {experts}, the number of experts, got {top_k}")
    wide = logits.to(compute_dtype)
    score = wide if bias is None else wide + bias.to(compute_dtype)
    # A stable sort keeps the lower of two equal experts in front; torch.topk promises no order.
    ids = torch.sort(score, dim=-1, descending=True, stable=True).indices[:, :top_k]
    if method == "renormalize":
        weights = torch.softmax(wide.gather(1, ids), dim=-1)
    else:
        weights = torch.softmax(wide, dim=-1).gather(1, ids)
    return ids.int(), weights if compute_dtype == torch.float64 else weights.float()


def moe(
    x: Tensor,
    router_logits: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    top_k: int,
    method: str,
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Send each token through its experts and add up what they return.

    Args:
        x: [T, Hd], the tokens.
        router_logits: [T, E].
        w_gate_up: [E, 2I, Hd], an expert's gate rows first, then its up rows.
        w_down: [E, Hd, I].
        top_k, method: as in `moe_routing`.
        compute_dtype: everything between the inputs and the one rounding of y.

    Returns:
        y [T, Hd] in the dtype of `x`.

    Raises:
        ValueError: as `moe_routing`.
    """
    ids, weights = moe_routing(router_logits, top_k=top_k, method=method, compute_dtype=compute_dtype)
    y = torch.zeros(x.shape, dtype=compute_dtype, device=x.device)
    for expert in ids.unique().tolist():
        token, place = torch.nonzero(ids == expert, as_tuple=True)
        gate, up = (x[token].to(compute_dtype) @ w_gate_up[expert].to(compute_dtype).T).chunk(2, dim=-1)
        out = (gate * torch.sigmoid(gate) * up) @ w_down[expert].to(compute_dtype).T
        y[token] += weights[token, place, None].to(compute_dtype) * out
    return y.to(x.dtype)
