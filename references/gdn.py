"""Gated delta rule, token by token.

Each value head hv keeps a state S (V x K here, K innermost) and reads the query and key of head hv // (HV // H). A
token with unit key k, unit query q, value v, log decay g <= 0 and step beta does

    S <- exp(g) S                      forget
    S <- S + beta (v - S k) k^T        correct what the key recalls
    o  = scale * S q                   read, after the update

(Yang, Kautz, Hatamizadeh: Gated Delta Networks, 2024). Keys and queries are normalised here, with the epsilon inside
the root, and both gates stay in the compute dtype.
"""

import torch
from torch import Tensor

L2NORM_EPS = 1e-6
SOFTPLUS_LINEAR_ABOVE = 20.0


def l2norm(x: Tensor) -> Tensor:
    """x / sqrt(sum x^2 + 1e-6) over the last dimension, in the dtype of `x`. A zero vector stays zero."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + L2NORM_EPS)


def gates(
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    compute_dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Log decay and step from the layer's projections.

    Args:
        a, b: [..., HV], any float dtype.
        A_log, dt_bias: [HV], any float dtype.

    Returns:
        `(g, beta)`, both [..., HV] in `compute_dtype`: g = -exp(A_log) softplus(a + dt_bias), beta = sigmoid(b).
    """
    x = a.to(compute_dtype) + dt_bias.to(compute_dtype)
    softplus = torch.where(x > SOFTPLUS_LINEAR_ABOVE, x, torch.log1p(torch.exp(x)))
    g = -torch.exp(A_log.to(compute_dtype)) * softplus
    return g, torch.sigmoid(b.to(compute_dtype))


def gdn_recurrence(
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
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Run N packed sequences through the recurrence and leave each one's state in its slot.

    Args:
        q, k: [T, H, K], not yet normalised.
        v: [T, HV, V], HV a multiple of H.
        g: [T, HV], log decay.
        beta: [T, HV], already squashed.
        state: [slots, HV, V, K]; updated in place, rounded once to its own dtype at the end of each sequence.
        cu_seqlens: int [N+1], where each sequence starts, then the total.
        state_indices: int [N], each sequence's slot; any negative value makes the sequence inactive: its slot is
            neither read nor written and its output rows are zero.
        has_initial_state: bool [N]; false ignores what the slot holds. An empty sequence leaves its slot alone when
            true and zeroes it when false.
        scale: of the output; K^-1/2 when None.
        compute_dtype: everything between the inputs and the two roundings.

    Returns:
        o [T, HV, V] in the dtype of `v`.

    Raises:
        ValueError: HV is not a multiple of H.
    """
    q, k = heads_of_values(q, k, v.shape[1], compute_dtype)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    values, g, beta = v.to(compute_dtype), g.to(compute_dtype), beta.to(compute_dtype)
    o = torch.zeros(v.shape, dtype=v.dtype, device=v.device)
    starts = cu_seqlens.tolist()
    new_states: list[tuple[int, Tensor]] = []
    for n, (slot, resumed) in enumerate(zip(state_indices.tolist(), has_initial_state.tolist(), strict=True)):
        if slot < 0 or (resumed and starts[n] == starts[n + 1]):
            continue
        S = state[slot].to(compute_dtype) if resumed else state.new_zeros(state.shape[1:], dtype=compute_dtype)
        for t in range(starts[n], starts[n + 1]):
            S, read = _step(S, q[t], k[t], values[t], g[t], beta[t])
            o[t] = (scale * read).to(o.dtype)
        new_states.append((slot, S))
    for slot, S in new_states:
        state[slot] = S.to(state.dtype)
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
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One more token of B sequences, gates included; each row continues the state in its slot.

    Args:
        q, k: [B, H, K], not yet normalised.
        v: [B, HV, V], HV a multiple of H.
        a, b: [B, HV], the gate projections; A_log, dt_bias: [HV]. See `gates`.
        state, scale, compute_dtype: as in `gdn_recurrence`.
        state_indices: int [B]; a negative slot gives zero output rows and touches no state.

    Returns:
        o [B, HV, V] in the dtype of `v`.

    Raises:
        ValueError: HV is not a multiple of H.
    """
    q, k = heads_of_values(q, k, v.shape[1], compute_dtype)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    g, beta = gates(a, b, A_log, dt_bias, compute_dtype)
    o = torch.zeros(v.shape, dtype=v.dtype, device=v.device)
    rows = torch.nonzero(state_indices >= 0).flatten()
    slots = state_indices[rows].long()
    S, read = _step(state[slots].to(compute_dtype), q[rows], k[rows], v[rows].to(compute_dtype), g[rows], beta[rows])
    o[rows] = (scale * read).to(o.dtype)
    state[slots] = S.to(state.dtype)
    return o


def _step(S: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """One token of every head, before the output scale.

    S [..., HV, V, K]; q, k [..., HV, K], normalised; v [..., HV, V]; g, beta [..., HV] -> (new S, S q [..., HV, V]).
    Sums are written as products and sums, not as matrix products, so that they never depend on the number of rows.
    """
    S = torch.exp(g)[..., None, None] * S
    recalled = (S * k[..., None, :]).sum(-1)
    delta = beta[..., None] * (v - recalled)
    S = S + delta[..., :, None] * k[..., None, :]
    return S, (S * q[..., None, :]).sum(-1)


def heads_of_values(
    q: Tensor, k: Tensor, value_heads: int, compute_dtype: torch.dtype, *, normalise: bool = True
) -> tuple[Tensor, Tensor]:
    """Normalise q and k [T, H, K] and repeat each head for the consecutive value heads it serves: [T, HV, K]."""
    heads = q.shape[1]
    if value_heads % heads != 0:
        raise ValueError(f"v: expected a multiple of the {heads} heads of q and k, got {value_heads} value heads")
    repeats = value_heads // heads
    if not normalise:
        queries, keys = (x.to(compute_dtype).repeat_interleave(repeats, dim=1) for x in (q, k))
        return queries, keys
    q = l2norm(q.to(compute_dtype)).repeat_interleave(repeats, dim=1)
    k = l2norm(k.to(compute_dtype)).repeat_interleave(repeats, dim=1)
    return q, k
