"""Causal depthwise convolution over packed sequences: one launch, token-major, state updated in place.

For a sequence with tokens x_0 .. x_{L-1}, per channel c, weights w[c, 0..W-1] and W - 1 previous inputs p (the slot's
content when the sequence resumes, zeros when it is fresh), with z = concat(p, x):

    y_t       = act(bias_c + sum_j w[c, j] * z_{t + j})      act = identity, or silu(u) = u / (1 + exp(-u))
    new state = last W - 1 entries of z                      (a copy, never arithmetic)

Both operators share one helper for the sum (`_convolve`), so that a token's bits depend on its own W inputs alone:
packing, splitting, permuting and token-by-token decode all give the same bits.

Work is cut so that the grid follows from T and N alone, without asking the device for lengths. Sequence n owns the
block ids [cu[n] // BLOCK_T + n, cu[n + 1] // BLOCK_T + n + 1), which is always enough for ceil(L / BLOCK_T) blocks and
is sorted in n: a program finds its sequence by searching cu_seqlens, and leaves early when its id is a spare one.
Tokens behind cu_seqlens[-1] form sequence number N, which is inactive: its output rows are zero.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import checks, functions


class Tile(NamedTuple):
    """How the work of one program is cut: `rows` places at once, `steps` tokens walked from each (decode: one)."""

    rows: int
    steps: int
    block_d: int
    num_warps: int
    max_registers: int | None = None
    search: int = 256
    """Sequences compared in one round of the search for a program's sequence."""


# One entry a device; any entry gives the same bits. Measured on an H100 (D = 8192, bf16), where one walk of 16 tokens
# by 512 channels was the best or within noise of the best from 1 x 512 tokens to 256 short sequences. A row is a walk:
# the window of the last W - 1 tokens stays in registers, and x is read about once. What limits it is latency, so
# programs per multiprocessor count: with 64 registers a thread instead of the 80 the compiler would take (none spilled)
# 8192 tokens take 100 us instead of 116. Searching 32-fold keeps the reduction inside a warp.
_PREFILL_GPU = Tile(rows=1, steps=16, block_d=512, num_warps=4, max_registers=64, search=32)
# State entries lie W - 1 apart, so no access to them is wide, and more threads beat more channels a thread.
_UPDATE_GPU = Tile(rows=1, steps=1, block_d=128, num_warps=4)
# The interpreter pays per operation: there many tokens go through every operation together.
_PREFILL_CPU = Tile(rows=16, steps=4, block_d=1024, num_warps=4)
_UPDATE_CPU = Tile(rows=16, steps=1, block_d=1024, num_warps=4)


@triton.jit
def _convolve(bias, w3, w2, w1, w0, z3, z2, z1, z0, WIDTH: tl.constexpr, SILU: tl.constexpr, PTX: tl.constexpr):
    """act(bias + sum of taps) in float32; w0/z0 belong to the current token, w3/z3 to the one three tokens earlier.

    The only arithmetic of both operators. The fused multiply-adds are explicit because the compiler may otherwise
    contract them in one kernel and not in the other, and the bits of prefill and decode would differ.
    """
    acc = bias
    if WIDTH >= 4:
        acc = tl.fma(w3, z3, acc)
    if WIDTH >= 3:
        acc = tl.fma(w2, z2, acc)
    acc = tl.fma(w1, z1, acc)
    acc = tl.fma(w0, z0, acc)
    if SILU:
        acc = functions.silu(acc, PTX)
    return acc


@triton.jit
def _load_taps(weight, bias, c, inside, stride_wd, stride_ww, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Weights of the channels `c`, newest tap first, and the bias, all float32 [BLOCK_D]."""
    base = weight + c * stride_wd
    w0 = tl.load(base + (WIDTH - 1) * stride_ww, mask=inside, other=0.0).to(tl.float32)
    w1 = tl.load(base + (WIDTH - 2) * stride_ww, mask=inside, other=0.0).to(tl.float32)
    w2 = w1
    w3 = w1
    if WIDTH >= 3:
        w2 = tl.load(base + (WIDTH - 3) * stride_ww, mask=inside, other=0.0).to(tl.float32)
    if WIDTH >= 4:
        w3 = tl.load(base, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    else:
        b = tl.zeros_like(w0)
    return w0, w1, w2, w3, b


@triton.jit
def _start_of(cu_seqlens, n, N, T, mask):
    """First token of sequence n, held inside [0, T] so that a wrong cu_seqlens cannot lead outside x or y."""
    start = tl.load(cu_seqlens + n, mask=mask, other=0).to(tl.int32)
    return tl.minimum(tl.maximum(start, 0), T)


@triton.jit
def _find_sequence(cu_seqlens, block_id, N, T, BLOCK_T: tl.constexpr, SEARCH: tl.constexpr):
    """The last n in [0, N] with cu[n] // BLOCK_T + n <= block_id: a search that narrows SEARCH-fold per round."""
    low = 0
    span = N + 1
    while span > 1:
        step = tl.cdiv(span, SEARCH)
        n = low + tl.arange(0, SEARCH) * step
        inside = n < low + span
        key = _start_of(cu_seqlens, n, N, T, inside) // BLOCK_T + n
        not_after = tl.sum((inside & (key <= block_id)).to(tl.int32), axis=0)
        found = low + (tl.maximum(not_after, 1) - 1) * step
        span = tl.minimum(step, low + span - found)
        low = found
    return low


@triton.jit
def _new_state_column(
    x, state_row, c, D, column, start, end, resumed, stride_xt, stride_xd, stride_sd, stride_sw, WIDTH: tl.constexpr
):
    """Entry `column` of the state after the sequence: a token of x, or an older state entry when L < W - 1."""
    token = end - (WIDTH - 1) + column
    in_x = c < tl.where(token >= start, D, 0)
    from_x = tl.load(x + token.to(tl.int64) * stride_xt + c * stride_xd, mask=in_x, other=0.0)
    old = column + end - start
    in_state = c < tl.where((old < WIDTH - 1) & (resumed != 0), D, 0)
    from_state = tl.load(state_row + c * stride_sd + old * stride_sw, mask=in_state, other=0.0)
    return tl.where(token >= start, from_x.to(from_state.dtype), from_state)


@triton.jit
def _store_state(entry, s0, s1, s2, mask, stride_sw, WIDTH: tl.constexpr):
    """Store W - 1 state entries, oldest first, of every channel; `entry` points to the oldest ones."""
    tl.store(entry, s0, mask=mask)
    if WIDTH >= 3:
        tl.store(entry + stride_sw, s1, mask=mask)
    if WIDTH >= 4:
        tl.store(entry + 2 * stride_sw, s2, mask=mask)


@triton.jit(do_not_specialize=["T", "N", "num_slots"])
def _prefill_kernel(
    x,
    weight,
    bias,
    state,
    cu_seqlens,
    state_indices,
    has_initial_state,
    y,
    T,
    N,
    num_slots,
    D,
    stride_xt,
    stride_xd,
    stride_wd,
    stride_ww,
    stride_ss,
    stride_sd,
    stride_sw,
    stride_index,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    PTX: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SEARCH: tl.constexpr,
):
    # Channel blocks of the same tokens are neighbours in the launch order: together they touch whole rows of x and y.
    blocks_d = tl.cdiv(D, BLOCK_D)
    block_id = tl.program_id(0) // blocks_d
    c = (tl.program_id(0) % blocks_d).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = c < D

    n = _find_sequence(cu_seqlens, block_id, N, T, ROWS * STEPS, SEARCH)
    start = _start_of(cu_seqlens, n, N, T, True)
    block = block_id - (start // (ROWS * STEPS) + n)
    end = T
    slot = tl.full((), -1, tl.int64)
    resumed = tl.full((), 0, tl.int32)
    if n < N:
        end = tl.maximum(_start_of(cu_seqlens, n + 1, N, T, True), start)
        slot = tl.load(state_indices + n * stride_index).to(tl.int64)
        resumed = tl.load(has_initial_state + n).to(tl.int32)
    active = (slot >= 0) & (slot < num_slots)
    state_row = state + slot * stride_ss

    first = start + block * (ROWS * STEPS)
    row = first + tl.arange(0, ROWS) * STEPS
    steps = tl.minimum(end - first, STEPS)
    # A spare id; before the sequence only where cu_seqlens decreases.
    if (block < 0) | ((block > 0) & (steps <= 0)):
        return
    out = y + row[:, None].to(tl.int64) * D + c[None, :]

    # The window: the W - 1 tokens before each row's first one. Only row 0 of block 0 reaches behind the sequence's
    # start. Nothing up to here has used the slot, so these loads do not wait for it.
    pitch = tl.full((), 1, tl.int64) * stride_xt
    source = x + row[:, None] * pitch + c[None, :] * stride_xd
    live = inside[None, :] & (row < end)[:, None]
    z1 = tl.load(source - pitch, mask=live & (row - 1 >= start)[:, None], other=0.0).to(tl.float32)
    z2 = z1
    z3 = z1
    if WIDTH >= 3:
        z2 = tl.load(source - 2 * pitch, mask=live & (row - 2 >= start)[:, None], other=0.0).to(tl.float32)
    if WIDTH >= 4:
        z3 = tl.load(source - 3 * pitch, mask=live & (row - 3 >= start)[:, None], other=0.0).to(tl.float32)
    w0, w1, w2, w3, b = _load_taps(weight, bias, c, inside, stride_wd, stride_ww, WIDTH, HAS_BIAS)
    w0, w1, w2, w3, b = w0[None, :], w1[None, :], w2[None, :], w3[None, :], b[None, :]

    if active == 0:
        zero = tl.zeros((ROWS, BLOCK_D), y.dtype.element_ty)
        for step in range(steps):
            tl.store(out, zero, mask=(row + step < end)[:, None] & inside[None, :])
            out += D
        return

    entry = state_row + c * stride_sd
    if block == 0:
        # Masked, not multiplied: the slot of a fresh sequence may hold NaN.
        kept = c < tl.where(resumed != 0, D, 0)
        head = (tl.arange(0, ROWS) == 0)[:, None]
        p1 = tl.load(entry + (WIDTH - 2) * stride_sw, mask=kept, other=0.0).to(tl.float32)
        z1 = tl.where(head, p1[None, :], z1)
        if WIDTH >= 3:
            p2 = tl.load(entry + (WIDTH - 3) * stride_sw, mask=kept, other=0.0).to(tl.float32)
            z2 = tl.where(head, p2[None, :], z2)
        if WIDTH >= 4:
            p3 = tl.load(entry, mask=kept, other=0.0).to(tl.float32)
            z3 = tl.where(head, p3[None, :], z3)

    for step in range(0, steps, 4):
        # Four loads before the first use: stores may alias loads as far as the compiler knows, so it cannot move a
        # load above the previous token's store by itself.
        t = row + step
        m0 = inside[None, :] & (t < end)[:, None]
        m1 = inside[None, :] & (t + 1 < end)[:, None]
        m2 = inside[None, :] & (t + 2 < end)[:, None]
        m3 = inside[None, :] & (t + 3 < end)[:, None]
        a0 = tl.load(source, mask=m0, other=0.0)
        a1 = tl.load(source + pitch, mask=m1, other=0.0)
        a2 = tl.load(source + 2 * pitch, mask=m2, other=0.0)
        a3 = tl.load(source + 3 * pitch, mask=m3, other=0.0)
        x0 = a0.to(tl.float32)
        x1 = a1.to(tl.float32)
        x2 = a2.to(tl.float32)
        x3 = a3.to(tl.float32)

        y0 = _convolve(b, w3, w2, w1, w0, z3, z2, z1, x0, WIDTH, SILU, PTX)
        tl.store(out, y0.to(y.dtype.element_ty), mask=m0)
        y1 = _convolve(b, w3, w2, w1, w0, z2, z1, x0, x1, WIDTH, SILU, PTX)
        tl.store(out + D, y1.to(y.dtype.element_ty), mask=m1)
        y2 = _convolve(b, w3, w2, w1, w0, z1, x0, x1, x2, WIDTH, SILU, PTX)
        tl.store(out + 2 * D, y2.to(y.dtype.element_ty), mask=m2)
        y3 = _convolve(b, w3, w2, w1, w0, x0, x1, x2, x3, WIDTH, SILU, PTX)
        tl.store(out + 3 * D, y3.to(y.dtype.element_ty), mask=m3)
        z3 = x1
        z2 = x2
        z1 = x3
        source += 4 * pitch
        out += 4 * D

    if block == 0:
        # The program that read the slot also replaces it, so no other program can come in between; last, when the
        # registers of weights and window are free again.
        n0 = _new_state_column(
            x, state_row, c, D, 0, start, end, resumed, stride_xt, stride_xd, stride_sd, stride_sw, WIDTH
        )
        n1 = n0
        n2 = n0
        if WIDTH >= 3:
            n1 = _new_state_column(
                x, state_row, c, D, 1, start, end, resumed, stride_xt, stride_xd, stride_sd, stride_sw, WIDTH
            )
        if WIDTH >= 4:
            n2 = _new_state_column(
                x, state_row, c, D, 2, start, end, resumed, stride_xt, stride_xd, stride_sd, stride_sw, WIDTH
            )
        # Another thread may store the entry that this one loads: every load of the slot comes before every store.
        tl.debug_barrier()
        changed = c < tl.where((end > start) | (resumed == 0), D, 0)
        _store_state(entry, n0, n1, n2, changed, stride_sw, WIDTH)


@triton.jit(do_not_specialize=["B", "num_slots"])
def _update_kernel(
    x,
    weight,
    bias,
    state,
    state_indices,
    y,
    B,
    num_slots,
    D,
    stride_xb,
    stride_xd,
    stride_wd,
    stride_ww,
    stride_ss,
    stride_sd,
    stride_sw,
    stride_index,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    PTX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks_d = tl.cdiv(D, BLOCK_D)
    row = (tl.program_id(0) // blocks_d).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = (tl.program_id(0) % blocks_d).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = c < D
    in_row = row < B
    slot = tl.load(state_indices + row * stride_index, mask=in_row, other=-1).to(tl.int64)
    active = (slot >= 0) & (slot < num_slots)
    live = active[:, None] & inside[None, :]
    valid = in_row[:, None] & inside[None, :]

    # Nothing below branches on the slot: an inactive row's loads and state stores are masked away and its output is
    # zero, so the loads that do not need the slot are already under way while it arrives.
    w0, w1, w2, w3, b = _load_taps(weight, bias, c, inside, stride_wd, stride_ww, WIDTH, HAS_BIAS)
    new = tl.load(x + row[:, None] * stride_xb + c[None, :] * stride_xd, mask=valid, other=0.0)
    entry = state + slot[:, None] * stride_ss + c[None, :] * stride_sd
    s1 = tl.load(entry + (WIDTH - 2) * stride_sw, mask=live, other=0.0)
    s2 = s1
    s3 = s1
    if WIDTH >= 3:
        s2 = tl.load(entry + (WIDTH - 3) * stride_sw, mask=live, other=0.0)
    if WIDTH >= 4:
        s3 = tl.load(entry, mask=live, other=0.0)
    # Another thread may store the entry that this one loads: every load of the slot comes before every store.
    tl.debug_barrier()
    newest = new.to(s1.dtype)
    if WIDTH == 4:
        _store_state(entry, s2, s1, newest, live, stride_sw, WIDTH)
    elif WIDTH == 3:
        _store_state(entry, s1, newest, newest, live, stride_sw, WIDTH)
    else:
        _store_state(entry, newest, newest, newest, live, stride_sw, WIDTH)

    u = _convolve(
        b[None, :],
        w3[None, :],
        w2[None, :],
        w1[None, :],
        w0[None, :],
        s3.to(tl.float32),
        s2.to(tl.float32),
        s1.to(tl.float32),
        new.to(tl.float32),
        WIDTH,
        SILU,
        PTX,
    )
    u = tl.where(active[:, None], u, 0.0)
    tl.store(y + row[:, None] * D + c[None, :], u.to(y.dtype.element_ty), mask=valid)


def conv_prefill(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    conv_state: torch.Tensor,
    cu_seqlens: torch.Tensor,
    state_indices: torch.Tensor,
    has_initial_state: torch.Tensor,
    activation: str | None = None,
    max_seqlen: int | None = None,
) -> torch.Tensor:
    """Convolve N packed sequences and leave each one's last W - 1 inputs in its slot. One kernel launch, no host sync.

    Args:
        x: [T, D] float32, float16 or bfloat16; any strides. Tokens at and after cu_seqlens[-1] belong to no sequence.
        weight: [D, W], W in {2, 3, 4}, any strides (the taps of a channel within 2^31 elements); tap W - 1 meets the newest
            token.
        bias: [D] contiguous, or None.
        conv_state: [slots, D, W-1], oldest input first, any strides (likewise); updated in place.
        cu_seqlens: int32 or int64 [N+1], contiguous, never decreasing from 0.
        state_indices: int32 or int64 [N], any stride; distinct where not negative. A negative slot makes a sequence
            inactive: its slot is neither read nor written and its output rows are zero.
        has_initial_state: bool [N], contiguous; false ignores the slot's content. An empty sequence leaves its slot
            alone when true and zeroes it when false.
        activation: "silu" or None.
        max_seqlen: a hint that callers may have; it changes nothing (the grid needs only T and N) and is checked in
            strict mode.

    Returns:
        y [T, D], contiguous, dtype of `x`; computed in float32 and rounded once.

    Raises:
        ValueError: wrong shape, dtype, device or activation, before anything is written; with SLUICEGATE_STRICT=1 also
            wrong values.
    """
    dims: dict[str, int] = {}
    checks.check_tensor("x", x, shape=("T", "D"), dtypes=_ACTIVATION_DTYPES, dims=dims)
    _check_layer(x, weight, bias, conv_state, activation, dims)
    index: dict[str, Any] = {"dtypes": _INDEX_DTYPES, "device": x.device, "dims": dims}
    checks.check_tensor("state_indices", state_indices, shape=("N",), **index)
    tokens, channels = x.shape
    sequences = state_indices.shape[0]
    checks.check_tensor("cu_seqlens", cu_seqlens, shape=(sequences + 1,), **index)
    checks.check_tensor(
        "has_initial_state", has_initial_state, shape=("N",), dtypes=(torch.bool,), device=x.device, dims=dims
    )
    checks.check_contiguous("cu_seqlens", cu_seqlens)
    checks.check_contiguous("has_initial_state", has_initial_state)
    if max_seqlen is not None:
        checks.check_int("max_seqlen", max_seqlen, 0)
    _check_values(cu_seqlens, state_indices, conv_state.shape[0], tokens, max_seqlen)

    y = torch.empty((tokens, channels), dtype=x.dtype, device=x.device)
    if channels == 0 or (tokens == 0 and sequences == 0):
        return y
    tile = _PREFILL_CPU if x.device.type == "cpu" else _PREFILL_GPU
    block_d = min(tile.block_d, triton.next_power_of_2(channels))
    blocks = tokens // (tile.rows * tile.steps) + sequences + 1
    with torch.cuda.device_of(x):
        _prefill_kernel[(blocks * triton.cdiv(channels, block_d),)](
            x,
            weight,
            x if bias is None else bias,
            conv_state,
            cu_seqlens,
            state_indices,
            has_initial_state,
            y,
            tokens,
            sequences,
            conv_state.shape[0],
            channels,
            *x.stride(),
            *weight.stride(),
            *conv_state.stride(),
            state_indices.stride(0),
            WIDTH=weight.shape[1],
            HAS_BIAS=bias is not None,
            SILU=activation == "silu",
            PTX=functions.has_ptx(x),
            ROWS=tile.rows,
            STEPS=tile.steps,
            BLOCK_D=block_d,
            SEARCH=tile.search,
            num_warps=tile.num_warps,
            maxnreg=tile.max_registers if functions.has_ptx(x) else None,
        )
    return y


def conv_update(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    conv_state: torch.Tensor,
    state_indices: torch.Tensor,
    activation: str | None = None,
) -> torch.Tensor:
    """Convolve one more token of B sequences, each continuing the state in its slot. One kernel launch, no host sync.

    Args:
        x: [B, D], one token a row; any strides.
        weight, bias, conv_state, activation: as in `conv_prefill`.
        state_indices: int32 or int64 [B], any stride; a negative slot gives a zero row and touches no state.

    Returns:
        y [B, D], contiguous, dtype of `x`: bitwise what `conv_prefill` returns for the same token.

    Raises:
        ValueError: as `conv_prefill`.
    """
    dims: dict[str, int] = {}
    checks.check_tensor("x", x, shape=("B", "D"), dtypes=_ACTIVATION_DTYPES, dims=dims)
    _check_layer(x, weight, bias, conv_state, activation, dims)
    checks.check_tensor("state_indices", state_indices, shape=("B",), dtypes=_INDEX_DTYPES, device=x.device, dims=dims)
    checks.check_slots(state_indices, conv_state.shape[0])

    rows, channels = x.shape
    y = torch.empty((rows, channels), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    tile = _UPDATE_CPU if x.device.type == "cpu" else _UPDATE_GPU
    block_d = min(tile.block_d, triton.next_power_of_2(channels))
    with torch.cuda.device_of(x):
        _update_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(channels, block_d),)](
            x,
            weight,
            x if bias is None else bias,
            conv_state,
            state_indices,
            y,
            rows,
            conv_state.shape[0],
            channels,
            *x.stride(),
            *weight.stride(),
            *conv_state.stride(),
            state_indices.stride(0),
            WIDTH=weight.shape[1],
            HAS_BIAS=bias is not None,
            SILU=activation == "silu",
            PTX=functions.has_ptx(x),
            ROWS=tile.rows,
            BLOCK_D=block_d,
            num_warps=tile.num_warps,
        )
    return y


_ACTIVATION_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_INDEX_DTYPES = (torch.int32, torch.int64)


def _check_layer(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_state: torch.Tensor,
    activation: str | None,
    dims: dict[str, int],
) -> None:
    """What both operators ask of x's device, the weights, the pool and the activation."""
    checks.check_tensor("weight", weight, shape=("D", "W"), dtypes=_ACTIVATION_DTYPES, device=x.device, dims=dims)
    if not 2 <= dims["W"] <= 4:
        raise checks.fail("weight", f"{dims['W']} taps", "2, 3 or 4 taps", "this kernel has no wider window")
    if bias is not None:
        checks.check_tensor("bias", bias, shape=("D",), dtypes=_ACTIVATION_DTYPES, device=x.device, dims=dims)
        checks.check_contiguous("bias", bias)
    state_shape = (None, dims["D"], dims["W"] - 1)
    checks.check_tensor("conv_state", conv_state, shape=state_shape, dtypes=_ACTIVATION_DTYPES, device=x.device)
    for name, taps in (("weight", weight), ("conv_state", conv_state)):
        checks.check_span(name, taps, (taps.shape[-1] - 1) * taps.stride(-1), "taps")
    if activation not in ("silu", None):
        raise checks.fail("activation", repr(activation), '"silu" or None', "apply other activations afterwards")
    checks.check_runnable("x", x)


def _check_values(
    cu_seqlens: torch.Tensor, state_indices: torch.Tensor, slots: int, tokens: int, max_seqlen: int | None
) -> None:
    """Strict mode only, because it reads the device."""
    if not checks.check_strict():
        return
    checks.check_cu_seqlens(cu_seqlens, tokens, tokens_in="x")
    checks.check_slots(state_indices, slots)
    longest = max((end - start for start, end in pairwise(cu_seqlens.tolist())), default=0)
    if max_seqlen is not None and max_seqlen < longest:
        raise checks.fail("max_seqlen", max_seqlen, f"at least {longest}", "pass the longest length, or None")
