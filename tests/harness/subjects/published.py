"""flash-linear-attention's naive gated delta rule as subjects: published, right, computed in float32, no promise about bits."""

from __future__ import annotations

import torch
from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule, naive_recurrent_gated_delta_rule
from torch import Tensor

from references.gdn import gates, l2norm


def gdn_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    cu_seqlens: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    scale: float | None = None,
) -> Tensor:
    """One sequence after the other, chunks of 16 tokens; the conventions around it are ours."""
    repeats = v.shape[1] // q.shape[1]
    q, k = (l2norm(x.float()).repeat_interleave(repeats, 1) for x in (q, k))
    o = torch.zeros_like(v)
    bounds = cu_seqlens.tolist()
    for n, (slot, resumed) in enumerate(zip(state_indices.tolist(), has_initial_state.tolist(), strict=True)):
        begin, end = bounds[n], bounds[n + 1]
        if slot < 0:
            continue
        if begin == end:
            if not resumed:
                state[slot] = 0
            continue
        initial = state[slot].float().mT[None] if resumed else None
        one = (x[None, begin:end] for x in (q, k, v, g, beta))
        read, left = naive_chunk_gated_delta_rule(
            *one, chunk_size=16, scale=scale, initial_state=initial, output_final_state=True
        )
        o[begin:end], state[slot] = read[0].to(o.dtype), left[0].mT.to(state.dtype)
    return o


def gdn_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    state_indices: Tensor,
    scale: float | None = None,
) -> Tensor:
    """All rows at once, each a sequence of one token."""
    repeats = v.shape[1] // q.shape[1]
    q, k = (l2norm(x.float()).repeat_interleave(repeats, 1) for x in (q, k))
    g, beta = gates(a, b, A_log, dt_bias, torch.float32)
    rows = torch.nonzero(state_indices >= 0).flatten()
    slots = state_indices[rows].long()
    one = (x[rows, None] for x in (q, k, v, beta, g))
    initial = state[slots].float().mT
    read, left = naive_recurrent_gated_delta_rule(*one, scale=scale, initial_state=initial, output_final_state=True)
    o = torch.zeros_like(v)
    o[rows] = read[:, 0].to(o.dtype)
    state[slots] = left.mT.to(state.dtype)
    return o


for _function in (gdn_prefill, gdn_decode):
    _function.sluicegate = {"bitwise": False}
