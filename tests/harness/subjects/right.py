"""Implementations that are right, in plain torch, as somebody outside this repository would write them.

They compute in float64: torch's exp and sigmoid give other last bits in the tail of a vector register than in its body, so that in
float32 a row's bits would depend on where it lies in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def targets(state_indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(active [B], source [B], slots [B]) without a host sync: an inactive row stands in for the first active one.

    Rows that stand in write the same values to the same slot, so the order of the writes does not matter.
    """
    active = state_indices >= 0
    rows = torch.arange(state_indices.shape[0], device=state_indices.device)
    source = torch.where(active, rows, active.int().argmax())
    return active, source, state_indices.clamp(min=0).long()[source]


def conv_update(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    conv_state: Tensor,
    state_indices: Tensor,
    activation: str | None,
) -> Tensor:
    active, source, slots = targets(state_indices)
    old = conv_state[slots]
    window = torch.cat([old.double(), x[source].double()[:, :, None]], dim=2)
    y = (window * weight.double()).sum(2)
    if bias is not None:
        y = y + bias.double()
    if activation == "silu":
        y = y * torch.sigmoid(y)
    new = torch.cat([old[:, :, 1:], x[source].to(conv_state.dtype)[:, :, None]], dim=2)
    conv_state[slots] = torch.where(active[source][:, None, None], new, old)
    return torch.where(active[:, None], y, 0.0).to(x.dtype)


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
    active, source, slots = targets(state_indices)
    repeats = v.shape[1] // q.shape[1]
    scale = q.shape[2] ** -0.5 if scale is None else scale

    def unit(t: Tensor) -> Tensor:
        wide = t[source].double()
        wide = wide / torch.sqrt((wide * wide).sum(-1, keepdim=True) + 1e-6)
        return wide.repeat_interleave(repeats, dim=1)

    keys, queries, values = unit(k), unit(q) * scale, v[source].double()
    gate = torch.nn.functional.softplus(a[source].double() + dt_bias.double())
    decay = torch.exp(-torch.exp(A_log.double()) * gate)
    beta = torch.sigmoid(b[source].double())
    old = state[slots]
    S = old.double() * decay[:, :, None, None]
    delta = beta[:, :, None] * (values - (S * keys[:, :, None]).sum(-1))
    S = S + delta[..., None] * keys[:, :, None]
    o = (S * queries[:, :, None]).sum(-1)
    state[slots] = torch.where(active[source][:, None, None, None], S.to(state.dtype), old)
    return torch.where(active[:, None, None], o, 0.0).to(v.dtype)


def gated_rmsnorm(x: Tensor, z: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    wide, gate = x.double(), z.double()
    root = torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (wide / root * weight.double() * gate * torch.sigmoid(gate)).to(x.dtype)


def conv_prefill(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    conv_state: Tensor,
    cu_seqlens: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    activation: str | None,
) -> Tensor:
    """Sequence by sequence, with all the host syncs that this takes: right, and slow."""
    y = torch.zeros_like(x)
    starts = cu_seqlens.tolist()
    for n, (slot, resumed) in enumerate(zip(state_indices.tolist(), has_initial_state.tolist(), strict=True)):
        if slot < 0:
            continue
        tokens = x[starts[n] : starts[n + 1]]
        old = conv_state[slot] if resumed else torch.zeros_like(conv_state[slot])
        y[starts[n] : starts[n + 1]] = convolve(tokens, weight, bias, old, activation)
        conv_state[slot] = history(tokens, old)
    return y


def convolve(tokens: Tensor, weight: Tensor, bias: Tensor | None, old: Tensor, activation: str | None) -> Tensor:
    """tokens [L, D] after ``old`` [D, W-1] -> [L, D]."""
    z = torch.cat([old.T.double(), tokens.double()])
    y = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    for j in range(weight.shape[1]):
        y = y + weight[:, j].double() * z[j : j + len(tokens)]
    y = y if bias is None else y + bias.double()
    return (y * torch.sigmoid(y) if activation == "silu" else y).to(tokens.dtype)


def history(tokens: Tensor, old: Tensor) -> Tensor:
    """The last W-1 of ``old`` [D, W-1] followed by tokens [L, D]."""
    return torch.cat([old, tokens.T.to(old.dtype)], dim=1)[:, len(tokens) :]


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
    """Token by token, in float64 between the inputs and the slot."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    o, starts = torch.zeros_like(v), cu_seqlens.tolist()
    for n, (slot, resumed) in enumerate(zip(state_indices.tolist(), has_initial_state.tolist(), strict=True)):
        if slot < 0:
            continue
        S = state[slot].double() if resumed else torch.zeros_like(state[slot], dtype=torch.float64)
        for t in range(starts[n], starts[n + 1]):
            S, read = step(S, q[t], k[t], v[t], g[t], beta[t])
            o[t] = (scale * read).to(v.dtype)
        state[slot] = S.to(state.dtype)
    return o


def step(S: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """S [HV, V, K] before a token -> (S after it, what its query reads [HV, V])."""

    def unit(x: Tensor) -> Tensor:
        wide = x.double() / torch.sqrt((x.double() ** 2).sum(-1, keepdim=True) + 1e-6)
        return wide.repeat_interleave(v.shape[0] // x.shape[0], dim=0)[:, None]

    S = torch.exp(g.double())[:, None, None] * S
    delta = beta.double()[:, None] * (v.double() - (S * unit(k)).sum(-1))
    S = S + delta[..., None] * unit(k)
    return S, (S * unit(q)).sum(-1)
