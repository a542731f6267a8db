"""Gated delta net decode: one token a row, gates, norms and recurrence fused into one launch.

For row b and value head hv (which uses q/k head hv // (HV // H)), with the slot's state S [V, K]:

    g    = -exp(A_log) * softplus(a + dt_bias)         beta = sigmoid(b)
    q, k = l2norm(q) * scale, l2norm(k)                l2norm(x) = x / sqrt(sum x^2 + 1e-6)
    S    = exp(g) * S
    S    = S + beta * (v - S k) k^T
    o    = S q

Everything is float32 between the loads and the one rounding of o and of S. The work is moving the state: each slot is
read once and written once, and a program needs little else, so tiles only decide how many bytes are in flight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import checks, functions


class Tile(NamedTuple):
    """Value rows per program, and warps. A tile always spans the whole of K."""

    block_v: int
    num_warps: int


# Measured on an H100 for K = V = 128: one entry a state element size, the best or within noise of the best from one row
# to 256. That no entry depends on the batch size has a second use: it decides how the sums over K are laid out, so a
# row's bits do not depend on how many other rows it comes with. An entry is (elements of state, warps).
_GPU_TILES = {4: (2048, 4), 2: (2048, 1)}


@triton.jit
def _gates(a, b, A_log, dt_bias):
    """Decay factor exp(g) and beta of one head, all float32. Written so that no intermediate overflows."""
    x = a + dt_bias
    softplus = tl.where(x > 20.0, x, functions.log1p(tl.exp(tl.minimum(x, 20.0))))
    decay = tl.exp(-tl.exp(A_log) * softplus)
    e = tl.exp(-tl.abs(b))
    beta = tl.where(b >= 0.0, 1.0, e) / (1.0 + e)
    return decay, beta


# q, k, v, a and b are views at any offset. Their loads are small, and not looking at their alignment keeps one compiled
# variant and one order of the sums over K for all of them: a view gives the same bits as a copy.
@triton.jit(
    do_not_specialize=["num_slots"],
    do_not_specialize_on_alignment=["q", "k", "v", "a", "b"],
)
def _decode_kernel(
    q,
    k,
    v,
    a,
    b,
    A_log,
    dt_bias,
    state,
    state_indices,
    o,
    num_slots,
    scale,
    stride_qb,
    stride_qh,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kd,
    stride_vb,
    stride_vh,
    stride_vd,
    stride_ab,
    stride_ah,
    stride_bb,
    stride_bh,
    stride_ss,
    stride_sh,
    stride_sv,
    stride_sk,
    stride_index,
    H: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    # Value tiles of one head are neighbours, then heads, then rows: the launch order walks through a slot's memory.
    tiles: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    pid = tl.program_id(0)
    head = (pid // tiles) % HV
    row = (pid // (tiles * HV)).to(tl.int64)
    iv = (pid % tiles) * BLOCK_V + tl.arange(0, BLOCK_V)
    ik = tl.arange(0, BLOCK_K)
    in_v = iv < V
    in_k = ik < K
    out = o + (row * HV + head) * V + iv

    slot = tl.load(state_indices + row * stride_index).to(tl.int64)
    if (slot < 0) | (slot >= num_slots):
        tl.store(out, tl.zeros((BLOCK_V,), o.dtype.element_ty), mask=in_v)
        return

    # The state first: it is nearly all the traffic, and the gates and norms are worked out while it is on its way. No
    # other program reads it and nothing reads it again before the next step, so it is the first to leave the cache.
    where = state + slot * stride_ss + head.to(tl.int64) * stride_sh
    where = where + iv[:, None].to(tl.int64) * stride_sv + ik[None, :].to(tl.int64) * stride_sk
    live = in_v[:, None] & in_k[None, :]
    S = tl.load(where, mask=live, other=0.0, eviction_policy="evict_first").to(tl.float32)

    qk_head = head // (HV // H)
    kk = tl.load(k + row * stride_kb + qk_head * stride_kh + ik * stride_kd, mask=in_k, other=0.0).to(tl.float32)
    qq = tl.load(q + row * stride_qb + qk_head * stride_qh + ik * stride_qd, mask=in_k, other=0.0).to(tl.float32)
    vv = tl.load(v + row * stride_vb + head * stride_vh + iv * stride_vd, mask=in_v, other=0.0).to(tl.float32)
    decay, beta = _gates(
        tl.load(a + row * stride_ab + head * stride_ah).to(tl.float32),
        tl.load(b + row * stride_bb + head * stride_bh).to(tl.float32),
        tl.load(A_log + head).to(tl.float32),
        tl.load(dt_bias + head).to(tl.float32),
    )
    kk = kk / tl.sqrt(tl.sum(kk * kk, axis=0) + 1e-6)
    qq = qq * (scale / tl.sqrt(tl.sum(qq * qq, axis=0) + 1e-6))

    S = S * decay
    delta = beta * (vv - tl.sum(S * kk[None, :], axis=1))
    S = S + delta[:, None] * kk[None, :]
    tl.store(where, S.to(state.dtype.element_ty), mask=live, eviction_policy="evict_first")
    tl.store(out, tl.sum(S * qq[None, :], axis=1).to(o.dtype.element_ty), mask=in_v)


def _tile(key_dim: int, value_dim: int, state: torch.Tensor) -> Tile:
    """The fixed table: device and state dtype. The interpreter pays per operation, so there a tile is a whole head."""
    whole = triton.next_power_of_2(value_dim)
    if state.device.type == "cpu":
        return Tile(whole, 4)
    elements, num_warps = _GPU_TILES[state.element_size()]
    return Tile(min(elements // triton.next_power_of_2(key_dim), whole), num_warps)


def gdn_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    state_indices: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """One more token of B sequences. One kernel launch, no host sync, no copy of the views it is given.

    Args:
        q, k: [B, H, K], K <= 256; v: [B, HV, V], V <= 256, HV a multiple of H; float32, float16 or bfloat16, one dtype
            for the three, any strides and offsets. Value head hv uses q/k head hv // (HV // H).
        a, b: [B, HV], gate projections; any float dtype and strides.
        A_log, dt_bias: [HV], contiguous; any float dtype.
        state: [slots, HV, V, K], float32, float16 or bfloat16, any strides; updated in place.
        state_indices: int32 or int64 [B], any stride; distinct where not negative. A negative slot is an inactive row:
            zero output, no state touched.
        scale: of the output; K^-1/2 when None.

    Returns:
        o [B, HV, V], contiguous, dtype of `v`; computed in float32 and rounded once.

    Raises:
        ValueError: wrong shape, dtype or device, before anything is written; with SLUICEGATE_STRICT=1 also wrong slots.
    """
    _check(q, k, v, a, b, A_log, dt_bias, state, state_indices)
    checks.check_scale(scale)
    if scale is None:
        scale = q.shape[2] ** -0.5

    batch, num_value_heads, value_dim = v.shape
    _, num_heads, key_dim = q.shape
    o = torch.empty((batch, num_value_heads, value_dim), dtype=v.dtype, device=v.device)
    if o.numel() == 0:
        return o
    tile = _tile(key_dim, value_dim, state)
    with torch.cuda.device_of(v):
        _decode_kernel[(batch * num_value_heads * triton.cdiv(value_dim, tile.block_v),)](
            q,
            k,
            v,
            a,
            b,
            A_log,
            dt_bias,
            state,
            state_indices,
            o,
            state.shape[0],
            float(scale),
            *q.stride(),
            *k.stride(),
            *v.stride(),
            *a.stride(),
            *b.stride(),
            *state.stride(),
            state_indices.stride(0),
            H=num_heads,
            HV=num_value_heads,
            K=key_dim,
            V=value_dim,
            BLOCK_K=triton.next_power_of_2(key_dim),
            BLOCK_V=tile.block_v,
            num_warps=tile.num_warps,
        )
    return o


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST_HEAD_DIM = 256


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    state_indices: torch.Tensor,
) -> None:
    """Shapes, dtypes and devices always; slots in strict mode."""
    dims: dict[str, int] = {}
    checks.check_tensor("q", q, shape=("B", "H", "K"), dtypes=_FLOATS, dims=dims)
    same: dict[str, Any] = {"device": q.device, "dims": dims}
    checks.check_tensor("k", k, shape=("B", "H", "K"), dtypes=(q.dtype,), **same)
    checks.check_tensor("v", v, shape=("B", "HV", "V"), dtypes=(q.dtype,), **same)
    for name, gate in (("a", a), ("b", b)):
        checks.check_tensor(name, gate, shape=("B", "HV"), dtypes=_FLOATS, **same)
    for name, parameter in (("A_log", A_log), ("dt_bias", dt_bias)):
        checks.check_tensor(name, parameter, shape=("HV",), dtypes=_FLOATS, **same)
        checks.check_contiguous(name, parameter)
    checks.check_tensor("state", state, shape=("slots", "HV", "V", "K"), dtypes=_FLOATS, **same)
    checks.check_tensor("state_indices", state_indices, shape=("B",), dtypes=(torch.int32, torch.int64), **same)
    checks.check_heads(dims, _LARGEST_HEAD_DIM)
    for name, view in (("q", q), ("k", k), ("v", v), ("a", a), ("b", b)):
        # Offsets inside a row are 32-bit in the kernel: 64-bit ones cost a single row 8 % of its time on an H100.
        span = sum((size - 1) * stride for size, stride in zip(view.shape[1:], view.stride()[1:], strict=True))
        if span >= 2**31:
            raise checks.fail(
                name, f"strides {view.stride()}", "rows within 2^31 elements", f"pass {name}.contiguous()"
            )
    checks.check_runnable("q", q)
    checks.check_slots(state_indices, dims["slots"])
