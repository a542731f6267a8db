"""The two kernels of the chunked gated delta rule; `optimized.gdn_prefill` has the mathematics and launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from . import functions

# Rows of a chunk's scalings [ROWS, C]: factors of what the keys recall, of the corrections as they enter the state, of
# what the queries read; exp(G_last), repeated; powers of two by which keys are brought near length 1 beforehand, if they are.
RECALL = tl.constexpr(0)
WRITE = tl.constexpr(1)
READ = tl.constexpr(2)
DECAY = tl.constexpr(3)
NORM = tl.constexpr(4)
ROWS = tl.constexpr(5)


@triton.jit
def _chunk_of(cu_seqlens, num_sequences, tile, C: tl.constexpr, SEARCH: tl.constexpr):
    """The sequence of a tile, its first token there and its tokens (0: the tile is unused).

    Sequence n owns the tiles from cu[n] // C + n on. That is at least as many as it has chunks, nobody has to count the
    chunks of the sequences before it, and T // C + N tiles are enough for all.
    """
    count = 0
    for first in range(0, num_sequences, SEARCH):
        n = first + tl.arange(0, SEARCH)
        start = tl.load(cu_seqlens + n, mask=n < num_sequences, other=0).to(tl.int64)
        owned = (n < num_sequences) & (start // C + n <= tile)
        count += tl.sum(owned.to(tl.int32), axis=0)
    n = tl.maximum(count - 1, 0)
    start = tl.load(cu_seqlens + n).to(tl.int64)
    end = tl.load(cu_seqlens + n + 1).to(tl.int64)
    first = start + (tile - start // C - n) * C
    return n, first, tl.maximum(tl.minimum(end - first, C), 0)


@triton.jit
def _unit_lower_inverse(A, C: tl.constexpr, SOLVE: tl.constexpr, PRODUCTS: tl.constexpr):
    """(I + A)^-1 for a strictly lower triangular A [C, C], by diagonal blocks that double in size.

    Let T be the inverse of the diagonal blocks of one size. T A T then holds, between the halves of a block twice as
    large, minus what is missing in its inverse. This is exact block elimination: nothing large is formed that cancels
    afterwards, as it is in a power series of A. Blocks up to 16 wide are worked on apart, [C / 16, 16, 16].
    """
    BLOCKS: tl.constexpr = C // 16
    LEVELS: tl.constexpr = 6 if C == 64 else 5 if C == 32 else 4
    tl.static_assert(C == 1 << LEVELS)
    i = tl.arange(0, 16)[None, :, None]
    j = tl.arange(0, 16)[None, None, :]
    on_diagonal = tl.arange(0, BLOCKS)[:, None, None, None] == tl.arange(0, BLOCKS)[None, None, :, None]
    N = tl.sum(tl.where(on_diagonal, tl.reshape(A, (BLOCKS, 16, BLOCKS, 16)), 0.0), axis=2)
    T = tl.where(i == j, 1.0, 0.0) - tl.where(i // 2 == j // 2, N, 0.0)
    N = N.to(SOLVE)
    for level in tl.static_range(1, 4):
        half = T.to(SOLVE)
        product = tl.dot(tl.dot(half, N, input_precision=PRODUCTS).to(SOLVE), half, input_precision=PRODUCTS)
        # i ^ j has `level` as its highest bit where i and j lie in different halves of one block.
        T = tl.where(((i ^ j) >> level) == 1, -product, T)
    T = tl.reshape(tl.where(on_diagonal, tl.expand_dims(T, 2), 0.0), (C, C))
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    A = A.to(SOLVE)
    for level in tl.static_range(4, LEVELS):
        half = T.to(SOLVE)
        product = tl.dot(tl.dot(half, A, input_precision=PRODUCTS).to(SOLVE), half, input_precision=PRODUCTS)
        T = tl.where(((i ^ j) >> level) == 1, -product, T)
    return T


# Gates are few. Not looking at their alignment keeps one order of their sums for all views; q and k go through matrix
# products only, whose sums do not depend on how the operands were loaded.
@triton.jit(
    do_not_specialize=["num_sequences", "num_tokens", "value_heads", "heads_per_key", "key_dim"],
    do_not_specialize_on_alignment=["g", "beta"],
)
def factors_kernel(
    q,
    k,
    g,
    beta,
    cu_seqlens,
    state_indices,
    corrections,
    attention,
    scalings,
    num_sequences,
    num_tokens,
    value_heads,
    heads_per_key,
    key_dim,
    scale,
    stride_qt,
    stride_qh,
    stride_qd,
    stride_kt,
    stride_kh,
    stride_kd,
    stride_gt,
    stride_gh,
    stride_bt,
    stride_bh,
    stride_index,
    FIXED_HEADS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    SEARCH: tl.constexpr,
    FOLD_NORM: tl.constexpr,
    PRODUCTS: tl.constexpr,
    SOLVE: tl.constexpr,
    SOLVE_PRODUCTS: tl.constexpr,
    EXACT: tl.constexpr,
    PTX: tl.constexpr,
):
    if FIXED_HEADS > 0:
        value_heads = FIXED_HEADS
    # Value heads of one tile are neighbours: they share its keys and queries in the cache.
    pid = tl.program_id(0)
    value_head = pid % value_heads
    head = value_head // heads_per_key
    tile = (pid // value_heads).to(tl.int64)
    n, first, length = _chunk_of(cu_seqlens, num_sequences, tile, C, SEARCH)
    length = tl.minimum(length, num_tokens - first)
    slot = tl.load(state_indices + n * stride_index)
    if (length <= 0) | (slot < 0):
        return

    it = tl.arange(0, C)
    ik = tl.arange(0, BLOCK_K)
    in_t = it < length
    live = in_t[:, None] & ((ik < key_dim) | EVEN_K)[None, :]
    k += first * stride_kt + head * stride_kh
    q += first * stride_qt + head * stride_qh
    kk = tl.load(k + (it[:, None] * stride_kt + ik[None, :] * stride_kd), mask=live, other=0.0)
    qq = tl.load(q + (it[:, None] * stride_qt + ik[None, :] * stride_qd), mask=live, other=0.0)
    gates = tl.load(g + first * stride_gt + value_head * stride_gh + it * stride_gt, mask=in_t, other=0.0)
    steps = tl.load(beta + first * stride_bt + value_head * stride_bh + it * stride_bt, mask=in_t, other=0.0)
    gates = gates.to(tl.float32)
    steps = steps.to(tl.float32)
    G = tl.cumsum(gates, axis=0)
    last = tl.sum(tl.where(it == C - 1, G, 0.0), axis=0)

    i = it[:, None]
    j = it[None, :]
    factor = (tile * value_heads + value_head) * (C * C)
    factor_at = i * C + j
    # Squared norms stand on the diagonals. A sum of one number and zeros has the same bits in any order.
    squares = tl.where(i == j, tl.dot(qq, tl.trans(qq), input_precision=PRODUCTS), 0.0)
    rq = scale / tl.sqrt(tl.sum(squares, axis=1) + 1e-6)
    # IEEE products hold whole rows in registers: one after the other, lest the compiler load for several at once.
    if EXACT:
        tl.debug_barrier()
    key_key = tl.dot(kk, tl.trans(kk), input_precision=PRODUCTS)
    squares = tl.where(i == j, key_key, 0.0)
    rk = 1.0 / tl.sqrt(tl.sum(squares, axis=1) + 1e-6)
    rk_j = 1.0 / tl.sqrt(tl.sum(squares, axis=0) + 1e-6)
    # Log decay from token j to token i; zero above the diagonal, where the exponential could overflow.
    if EXACT:
        # A difference of sums loses the digits that a strong decay before both tokens takes up.
        between = tl.cumsum(tl.where(i > j, gates[:, None], 0.0), axis=0)
        to_end = tl.sum(tl.where(i == C - 1, between, 0.0), axis=0)
    else:
        between = tl.minimum(G[:, None] - G[None, :], 0.0)
        to_end = last - G
    decay = functions.exp(between, PTX) * rk_j[None, :]
    if EXACT:
        tl.debug_barrier()
    P = tl.dot(qq, tl.trans(kk), input_precision=PRODUCTS) * decay * rq[:, None]
    P = tl.where(i >= j, P, 0.0)
    tl.store(attention + factor + factor_at, P.to(attention.dtype.element_ty))
    A = tl.where(i > j, key_key * decay * (rk * steps)[:, None], 0.0)
    T = _unit_lower_inverse(A, C, SOLVE, SOLVE_PRODUCTS)
    tl.store(corrections + factor + factor_at, (T * steps[None, :]).to(corrections.dtype.element_ty))

    row = scalings + (tile * value_heads + value_head) * (ROWS * C) + it
    start_to_token = functions.exp(G, PTX)
    token_to_end = functions.exp(to_end, PTX)
    if not FOLD_NORM:
        # The power of two comes out of the norm and goes to the keys, which stay exact.
        near = (rk.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        tl.store(row + NORM * C, near)
        rk = rk / near
    tl.store(row + RECALL * C, start_to_token * rk)
    tl.store(row + WRITE * C, token_to_end * rk)
    tl.store(row + READ * C, start_to_token * rq)
    # A state goes through this factor once a chunk.
    whole_chunk = functions.unbiased_exp(last) if EXACT else tl.exp(last)
    tl.store(row + DECAY * C, tl.zeros((C,), tl.float32) + whole_chunk)


@triton.jit
def _zero_rows(o, first, end, stride_ot, iv, in_v, C: tl.constexpr):
    """Write zeros to the rows of one head, ``o`` its first, from token ``first`` to ``end``."""
    it = tl.arange(0, C).to(tl.int64)
    zeros = tl.zeros((C, iv.shape[0]), o.dtype.element_ty)
    for t in range(first, end, C):
        rows = t + it
        tl.store(o + rows[:, None] * stride_ot + iv[None, :], zeros, mask=(rows < end)[:, None] & in_v[None, :])


@triton.jit
def _state_at(state, ik, iv, stride_sk, stride_sv, VALUES_FIRST: tl.constexpr):
    """Pointers to a tile of one head's state, value rows first or keys first."""
    if VALUES_FIRST:
        at = iv[:, None] * stride_sv + ik[None, :] * stride_sk
    else:
        at = iv[None, :] * stride_sv + ik[:, None] * stride_sk
    return state + at


# VALUES_FIRST chooses the orientation of everything that has value columns: [V, C] and [V, K], or [C, V] and [K, V]. Value
# rows first, the state is the left operand of every product and never leaves the registers: best where programs are many.
# Otherwise it passes through shared memory but takes narrower tiles, which a few long sequences need to fill a GPU. The
# sums are the same and in the same order.
@triton.jit(
    do_not_specialize=[
        "num_sequences",
        "num_tokens",
        "num_slots",
        "value_heads",
        "heads_per_key",
        "key_dim",
        "value_dim",
        "value_tiles",
    ]
)
def recurrence_kernel(
    q,
    k,
    v,
    corrections,
    attention,
    scalings,
    state,
    cu_seqlens,
    state_indices,
    has_initial_state,
    o,
    num_sequences,
    num_tokens,
    num_slots,
    value_heads,
    heads_per_key,
    key_dim,
    value_dim,
    value_tiles,
    stride_qt,
    stride_qh,
    stride_qd,
    stride_kt,
    stride_kh,
    stride_kd,
    stride_vt,
    stride_vh,
    stride_vd,
    stride_ss,
    stride_sh,
    stride_sv,
    stride_sk,
    stride_index,
    stride_ot,
    FIXED_HEADS: tl.constexpr,
    FIXED_V: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr,
    FOLD_NORM: tl.constexpr,
    PRODUCTS: tl.constexpr,
    VALUES_FIRST: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
    STAGES: tl.constexpr,
):
    if FIXED_HEADS > 0:
        value_heads = FIXED_HEADS
        value_dim = FIXED_V
        value_tiles = FIXED_V // BLOCK_V
        stride_ot = FIXED_HEADS * FIXED_V
    # Value tiles of a head are neighbours, then heads, then sequences: they share keys and queries in the cache.
    pid = tl.program_id(0)
    head = (pid // value_tiles) % value_heads
    n = pid // (value_tiles * value_heads)
    iv = (pid % value_tiles) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_v = (iv < value_dim) | EVEN_V
    o += head.to(tl.int64) * value_dim
    if n == num_sequences:
        # Tokens behind the last sequence belong to nobody.
        _zero_rows(o, tl.load(cu_seqlens + n).to(tl.int64), num_tokens, stride_ot, iv, in_v, C)
        return

    start = tl.load(cu_seqlens + n).to(tl.int64)
    end = tl.minimum(tl.load(cu_seqlens + n + 1).to(tl.int64), num_tokens)
    slot = tl.load(state_indices + n * stride_index).to(tl.int64)
    if (slot < 0) | (slot >= num_slots):
        _zero_rows(o, start, end, stride_ot, iv, in_v, C)
        return
    resumed = tl.load(has_initial_state + n).to(tl.int32)
    if (end <= start) & (resumed != 0):
        return

    ik = tl.arange(0, BLOCK_K)
    it = tl.arange(0, C)
    in_k = (ik < key_dim) | EVEN_K
    state += slot * stride_ss + head.to(tl.int64) * stride_sh
    if VALUES_FIRST:
        S = tl.zeros((BLOCK_V, BLOCK_K), tl.float32)
        live = in_v[:, None] & in_k[None, :]
    else:
        S = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
        live = in_v[None, :] & in_k[:, None]
    # Under a condition, so that its pointers are worked out again at the end instead of being kept all the way.
    if resumed != 0:
        S = tl.load(_state_at(state, ik, iv, stride_sk, stride_sv, VALUES_FIRST), mask=live, other=0.0).to(tl.float32)

    operand = k.dtype.element_ty
    qk_head = head // heads_per_key
    length = (end - start).to(tl.int32)
    tile = (start // C + n) * value_heads + head
    # One moving scalar an operand, and offsets in it that stay: pointers to every element would fill the registers.
    corrections += tile * (C * C)
    attention += tile * (C * C)
    scalings += tile * (ROWS * C)
    k += start * stride_kt + qk_head * stride_kh
    q += start * stride_qt + qk_head * stride_qh
    v += start * stride_vt + head * stride_vh
    o += start * stride_ot
    k_at = it[:, None] * stride_kt + ik[None, :] * stride_kd
    q_at = k_at if SAME_STRIDES else it[:, None] * stride_qt + ik[None, :] * stride_qd
    v_at = it[:, None] * stride_vt + iv[None, :] * stride_vd
    o_at = it[:, None] * stride_ot + iv[None, :]
    factor_at = it[:, None] * C + it[None, :]
    for first in tl.range(0, length, C, num_stages=STAGES):
        in_t = it < length - first
        kk = tl.load(k + k_at, mask=in_t[:, None] & in_k[None, :], other=0.0)
        qq = tl.load(q + q_at, mask=in_t[:, None] & in_k[None, :], other=0.0)
        vv = tl.load(v + v_at, mask=in_t[:, None] & in_v[None, :], other=0.0)
        B = tl.load(corrections + factor_at)
        P = tl.load(attention + factor_at)
        recall_scaling = tl.load(scalings + RECALL * C + it)
        write_scaling = tl.load(scalings + WRITE * C + it)
        read_scaling = tl.load(scalings + READ * C + it)
        decay = tl.load(scalings + DECAY * C)
        if not FOLD_NORM:
            kk = (kk.to(tl.float32) * tl.load(scalings + NORM * C + it)[:, None]).to(operand)

        memory = S.to(operand)
        if VALUES_FIRST:
            recalled = tl.dot(memory, tl.trans(kk), input_precision=PRODUCTS)
            X = tl.trans(vv).to(tl.float32) - recalled * recall_scaling[None, :]
            D = tl.dot(X.to(operand), tl.trans(B), input_precision=PRODUCTS)
            S = tl.dot((D * write_scaling[None, :]).to(operand), kk, S * decay, input_precision=PRODUCTS)
            out = tl.dot(memory, tl.trans(qq), input_precision=PRODUCTS) * read_scaling[None, :]
            out = tl.trans(tl.dot(D.to(operand), tl.trans(P), out, input_precision=PRODUCTS))
        else:
            recalled = tl.dot(kk, memory, input_precision=PRODUCTS)
            X = vv.to(tl.float32) - recalled * recall_scaling[:, None]
            D = tl.dot(B, X.to(operand), input_precision=PRODUCTS)
            written = (D * write_scaling[:, None]).to(operand)
            S = tl.dot(tl.trans(kk), written, S * decay, input_precision=PRODUCTS)
            out = tl.dot(qq, memory, input_precision=PRODUCTS) * read_scaling[:, None]
            out = tl.dot(P, D.to(operand), out, input_precision=PRODUCTS)
        tl.store(o + o_at, out.to(o.dtype.element_ty), mask=in_t[:, None] & in_v[None, :])

        corrections += value_heads * (C * C)
        attention += value_heads * (C * C)
        scalings += value_heads * (ROWS * C)
        k += C * stride_kt
        q += C * stride_qt
        v += C * stride_vt
        o += C * stride_ot
    tl.store(_state_at(state, ik, iv, stride_sk, stride_sv, VALUES_FIRST), S.to(state.dtype.element_ty), mask=live)
