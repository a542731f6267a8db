"""Implementations of `gdn_prefill` that are right, each with rounding points of its own: what the budget must let pass."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from references.gdn import L2NORM_EPS, gdn_recurrence, l2norm
from references.gdn_chunked import gdn_chunked, initial_states, inverse, rounds


def norms_as_factors(
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
    chunk_size: int = 64,
    sums: Callable[[Tensor], Tensor] = lambda g: g.cumsum(-1),
) -> Tensor:
    """float32 around operands in the dtype of v. Keys and queries enter the products as they come, their norms are factors
    of rows afterwards; what the keys recall is subtracted before the inverse is applied, not after. ``sums``: log decays
    [..., C] to their sums up to each token."""

    def operand(x: Tensor) -> Tensor:
        return x.to(v.dtype).float()

    repeats = v.shape[1] // k.shape[1]
    q, k = (x.float().repeat_interleave(repeats, dim=1) for x in (q, k))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    starts = cu_seqlens.tolist()
    chosen, owned, states = initial_states(state, starts, state_indices.tolist(), has_initial_state.tolist())
    states = states.float()
    o = torch.zeros_like(v)
    for part in rounds(starts, chosen, chunk_size, v.device):
        Q, K, V, b, S = part.take(q), part.take(k), part.take(v).float(), part.take(beta), states[part.rows]
        norm_q, norm_k = (torch.rsqrt(x.square().sum(-1, keepdim=True) + L2NORM_EPS) for x in (Q, K))
        # A kernel subtracts sums of log decays from one another.
        G = sums(part.take(g))
        eG, D = G.exp()[..., None], (G[..., :, None] - G[..., None, :]).tril().exp().tril()
        B = inverse(norm_k * K, b, D) * b[..., None, :]
        X = operand(B) @ operand(V - eG * norm_k * (K @ operand(S).mT))
        P = operand(scale * norm_q * norm_k.mT * (Q @ K.mT) * D)
        part.put(o, scale * eG * norm_q * (Q @ operand(S).mT) + P @ operand(X))
        written = operand(norm_k * D[..., -1, :, None] * K)
        states[part.rows] = eG[..., -1, :, None] * S + operand(X).mT @ written
    state[owned] = states.to(state.dtype)
    return o


def right_prefills(dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Name to implementation, for inputs of this dtype."""
    operands = None if dtype == torch.float32 else dtype
    chunked = partial(gdn_chunked, compute_dtype=torch.float32, operand_dtype=operands)
    return {
        "recurrence in float32": partial(gdn_recurrence, compute_dtype=torch.float32),
        **{f"chunks of {size}": partial(chunked, chunk_size=size) for size in (16, 32, 64)},
        **{f"norms as factors, {size}": partial(norms_as_factors, chunk_size=size) for size in (16, 64)},
    }


def published_prefills() -> dict[str, Callable[..., Any]]:
    """flash-linear-attention's naive functions, sequence by sequence."""
    pytest.importorskip("fla", reason="fla-core and einops (development dependencies) are not installed")
    naive = importlib.import_module("fla.ops.gated_delta_rule.naive")
    return {
        name: partial(_published, getattr(naive, f"naive_{name}_gated_delta_rule")) for name in ("recurrent", "chunk")
    }


def _published(
    theirs: Callable[..., tuple[Tensor, Tensor]],
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
    o, starts = torch.zeros_like(v), cu_seqlens.tolist()
    q, k = (l2norm(x.float()).repeat_interleave(v.shape[1] // k.shape[1], dim=1) for x in (q, k))
    for n, (slot, resumed) in enumerate(zip(state_indices.tolist(), has_initial_state.tolist(), strict=True)):
        own = slice(starts[n], starts[n + 1])
        if slot < 0 or own.start == own.stop:
            if slot >= 0 and not resumed:
                state[slot] = 0
            continue
        initial = state[slot].float().mT if resumed else torch.zeros_like(state[slot].float().mT)
        out, final = theirs(
            q=q[None, own], k=k[None, own], v=v[None, own], g=g[None, own], beta=beta[None, own],
            scale=scale, initial_state=initial[None], output_final_state=True,
        )  # fmt: skip
        o[own], state[slot] = out[0].to(v.dtype), final[0].mT.to(state.dtype)
    return o
