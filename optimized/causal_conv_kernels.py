"""The two kernels of the causal convolution; `optimized.causal_conv` has the mathematics and launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from . import functions


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
def prefill_kernel(
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
def update_kernel(
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
