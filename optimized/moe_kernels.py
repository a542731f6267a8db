"""The products of the mixture of experts: grouped by expert, or row by row where there are few; `optimized.moe` launches them.

Both ways leave the inner activations, silu(gate) * up, rounded once to the inputs' dtype, in a buffer; everything else
is summed in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import functions
from .moe_routing_kernels import choose, expert_keys, weigh
from .moe_sorting_kernels import LINE


@triton.jit
def _line(tiles, num_tiles, tile):
    """How many tiles there are, and a tile's expert, first position and end: four loads under way together.

    Behind the last tile they are what the memory held.
    """
    line = tiles + tile * LINE
    return tl.load(num_tiles), tl.load(line).to(tl.int64), tl.load(line + 1), tl.load(line + 2)


@triton.jit
def _tokens(x, order, position, end, top_k, stride_xt):
    """Where the tokens at these positions begin."""
    # A place without a row repeats the tile's last one; nobody reads what becomes of it.
    token = tl.load(order + tl.minimum(position, end - 1)) // top_k
    return x + token.to(tl.int64)[:, None] * stride_xt


@triton.jit
def _write_inner(
    both,
    inner,
    position,
    end,
    first_column,
    size,
    stride_inner,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,
    PTX: tl.constexpr,
):
    """inner[position, column] of the product of both halves, [ROWS, 2 COLUMNS]."""
    gate, up = tl.split(tl.reshape(both, (ROWS, COLUMNS, 2)))
    out = functions.silu(gate, PTX) * up
    column = first_column + tl.arange(0, COLUMNS)
    mask = position[:, None] < end
    if not EVEN_COLUMNS:
        mask &= column[None, :] < size
    pointers = inner + position.to(tl.int64)[:, None] * stride_inner + column[None, :]
    tl.store(pointers, out.to(inner.dtype.element_ty), mask=mask)


@triton.jit
def _gate_up_rows(
    x,
    weights_of_expert,
    order,
    inner,
    first,
    end,
    first_column,
    hidden,
    size,
    top_k,
    stride_xt,
    stride_xd,
    stride_wn,
    stride_wk,
    stride_inner,
    ROWS: tl.constexpr,
    TAIL: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    PRODUCTS: tl.constexpr,
    PTX: tl.constexpr,
):
    """inner[position, column] of the positions from `first` up to and without `end`, which are at most ROWS + TAIL.

    One product for both halves, an up column behind each gate column: the tokens are read once for both, and a pair of
    columns is in one thread. The weights are read once for the first ROWS and the TAIL behind them.
    """
    pair = tl.arange(0, 2 * COLUMNS)
    weight_row = first_column + pair // 2
    if not EVEN_COLUMNS:
        weight_row = tl.minimum(weight_row, size - 1)
    weight_row += pair % 2 * size
    k = tl.arange(0, DEPTH)
    weights = weights_of_expert + weight_row[:, None] * stride_wn + k[None, :] * stride_wk
    position = first + tl.arange(0, ROWS)
    tokens = _tokens(x, order, position, end, top_k, stride_xt) + k[None, :] * stride_xd
    both = tl.zeros((ROWS, 2 * COLUMNS), tl.float32)
    behind, tokens_behind, both_behind = position, tokens, both
    if TAIL:
        behind = first + ROWS + tl.arange(0, TAIL)
        tokens_behind = _tokens(x, order, behind, end, top_k, stride_xt) + k[None, :] * stride_xd
        both_behind = tl.zeros((TAIL, 2 * COLUMNS), tl.float32)
    for start in range(0, hidden, DEPTH):
        left = k[None, :] < hidden - start
        if EVEN_DEPTH:
            a = tl.load(tokens)
            w = tl.load(weights)
        else:
            a = tl.load(tokens, mask=left, other=0.0)
            w = tl.load(weights, mask=left, other=0.0)
        both = tl.dot(a, tl.trans(w), both, input_precision=PRODUCTS)
        if TAIL:
            if EVEN_DEPTH:
                a_behind = tl.load(tokens_behind)
            else:
                a_behind = tl.load(tokens_behind, mask=left, other=0.0)
            both_behind = tl.dot(a_behind, tl.trans(w), both_behind, input_precision=PRODUCTS)
            tokens_behind += DEPTH * stride_xd
        tokens += DEPTH * stride_xd
        weights += DEPTH * stride_wk
    _write_inner(both, inner, position, end, first_column, size, stride_inner, ROWS, COLUMNS, EVEN_COLUMNS, PTX)
    if TAIL:
        _write_inner(
            both_behind, inner, behind, end, first_column, size, stride_inner, TAIL, COLUMNS, EVEN_COLUMNS, PTX
        )


@triton.jit
def grouped_gate_up_kernel(
    x,
    w_gate_up,
    order,
    tiles,
    num_tiles,
    inner,
    hidden,
    size,
    top_k,
    stride_xt,
    stride_xd,
    stride_we,
    stride_wn,
    stride_wk,
    stride_inner,
    TILE: tl.constexpr,
    TAIL: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    PRODUCTS: tl.constexpr,
    PTX: tl.constexpr,
):
    """inner[position, column] of one tile's rows and COLUMNS columns. Neighbouring programs share the tile's tokens.

    An expert's last tile has up to TAIL rows more than TILE, for which its weights are not read again; if it has no more than
    TAIL in all, it is computed as a tile of so many.
    """
    column_blocks = tl.cdiv(size, COLUMNS)
    tile = tl.program_id(0) // column_blocks
    many, expert, first, end = _line(tiles, num_tiles, tile)
    if tile >= many:
        return
    column = (tl.program_id(0) % column_blocks) * COLUMNS
    weights_of_expert = w_gate_up + expert * stride_we
    if TAIL:
        if end - first <= TAIL:
            _gate_up_rows(
                x, weights_of_expert, order, inner, first, end, column, hidden, size, top_k,
                stride_xt, stride_xd, stride_wn, stride_wk, stride_inner,
                TAIL, 0, COLUMNS, DEPTH, EVEN_COLUMNS, EVEN_DEPTH, PRODUCTS, PTX,
            )  # fmt: skip
            return
        if end - first > TILE:
            _gate_up_rows(
                x, weights_of_expert, order, inner, first, end, column, hidden, size, top_k,
                stride_xt, stride_xd, stride_wn, stride_wk, stride_inner,
                TILE, TAIL, COLUMNS, DEPTH, EVEN_COLUMNS, EVEN_DEPTH, PRODUCTS, PTX,
            )  # fmt: skip
            return
    _gate_up_rows(
        x, weights_of_expert, order, inner, first, end, column, hidden, size, top_k,
        stride_xt, stride_xd, stride_wn, stride_wk, stride_inner,
        TILE, 0, COLUMNS, DEPTH, EVEN_COLUMNS, EVEN_DEPTH, PRODUCTS, PTX,
    )  # fmt: skip


@triton.jit
def _down_rows(
    inner,
    weights_of_expert,
    weights,
    order,
    parts,
    first,
    end,
    column,
    hidden,
    size,
    stride_inner,
    stride_wn,
    stride_wk,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """parts[row, column] of the positions from `first` up to and without `end`, which are at most ROWS."""
    position = first + tl.arange(0, ROWS)
    filled = tl.minimum(position, end - 1)
    # On their way while the product is computed.
    row = tl.load(order + filled)
    weight = tl.load(weights + row)
    weight_row = column
    if not EVEN_COLUMNS:
        weight_row = tl.minimum(column, hidden - 1)
    k = tl.arange(0, DEPTH)
    activations = inner + filled.to(tl.int64)[:, None] * stride_inner + k[None, :]
    downs = weights_of_expert + weight_row[:, None] * stride_wn + k[None, :] * stride_wk
    out = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, size, DEPTH):
        if EVEN_DEPTH:
            a = tl.load(activations)
            d = tl.load(downs)
        else:
            left = k[None, :] < size - start
            a = tl.load(activations, mask=left, other=0.0)
            d = tl.load(downs, mask=left, other=0.0)
        out = tl.dot(a, tl.trans(d), out, input_precision=PRODUCTS)
        activations += DEPTH
        downs += DEPTH * stride_wk
    out *= weight[:, None]
    mask = position[:, None] < end
    if not EVEN_COLUMNS:
        mask &= column[None, :] < hidden
    pointers = parts + row.to(tl.int64)[:, None] * hidden + column[None, :]
    tl.store(pointers, out.to(parts.dtype.element_ty), mask=mask)


@triton.jit
def grouped_down_kernel(
    inner,
    w_down,
    weights,
    order,
    tiles,
    num_tiles,
    parts,
    hidden,
    size,
    stride_inner,
    stride_we,
    stride_wn,
    stride_wk,
    TILE: tl.constexpr,
    TAIL: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """parts[row, column], what a token's expert adds to it, of one tile's rows and COLUMNS columns.

    TAIL: as in `grouped_gate_up_kernel`; the rows behind TILE are a product of their own here, which is no slower.
    """
    column_blocks = tl.cdiv(hidden, COLUMNS)
    tile = tl.program_id(0) // column_blocks
    many, expert, first, end = _line(tiles, num_tiles, tile)
    if tile >= many:
        return
    column = (tl.program_id(0) % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    weights_of_expert = w_down + expert * stride_we
    if TAIL:
        behind = first if end - first <= TAIL else first + TILE
        if behind < end:
            _down_rows(
                inner, weights_of_expert, weights, order, parts, behind, end, column, hidden, size,
                stride_inner, stride_wn, stride_wk, TAIL, COLUMNS, DEPTH, EVEN_COLUMNS, EVEN_DEPTH, PRODUCTS,
            )  # fmt: skip
        if behind == first:
            return
        end = tl.minimum(end, behind)
    _down_rows(
        inner, weights_of_expert, weights, order, parts, first, end, column, hidden, size,
        stride_inner, stride_wn, stride_wk, TILE, COLUMNS, DEPTH, EVEN_COLUMNS, EVEN_DEPTH, PRODUCTS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "expert_offset", "experts"])
def add_parts_kernel(
    parts,
    expert_ids,
    y,
    tokens,
    hidden,
    top_k: tl.constexpr,
    expert_offset,
    experts,
    BLOCK_T: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y[token] = the sum of its parts in the order of its places, without those that were not computed here.

    Unrolled, so that all loads are under way together.
    """
    column_blocks = tl.cdiv(hidden, COLUMNS)
    token = (tl.program_id(0) // column_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = (tl.program_id(0) % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    inside = token < tokens
    wanted = column[None, :] < hidden
    first = token.to(tl.int64) * top_k
    total = tl.zeros((BLOCK_T, COLUMNS), tl.float32)
    for place in tl.static_range(top_k):
        local = tl.load(expert_ids + first + place, mask=inside, other=-1) - expert_offset
        here = inside & (local >= 0) & (local < experts)
        pointers = parts + (first + place)[:, None] * hidden + column[None, :]
        total += tl.load(pointers, mask=here[:, None] & wanted, other=0.0).to(tl.float32)
    pointers = y + token.to(tl.int64)[:, None] * hidden + column[None, :]
    tl.store(pointers, total.to(y.dtype.element_ty), mask=inside[:, None] & wanted)


# The tokens are few. Not looking at their alignment keeps one order of the sums for all views of them.
@triton.jit(
    do_not_specialize=["rows", "expert_offset", "experts"],
    do_not_specialize_on_alignment=["x", "logits", "bias", "stride_xt"],
)
def few_gate_up_kernel(
    x,
    w_gate_up,
    inner,
    expert_ids,
    weights,
    logits,
    bias,
    rows,
    hidden,
    size,
    expert_offset,
    experts,
    group_size,
    n_group,
    topk_group,
    top_k,
    scaling,
    stride_xt,
    stride_xd,
    stride_we,
    stride_wn,
    stride_wk,
    stride_inner,
    stride_lt,
    stride_le,
    stride_b,
    ROUTE: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    PTX: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    PLACES: tl.constexpr,
    SQUASH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GROUPED: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """inner[row, column] of one row and COLUMNS columns, products of a matrix and a vector.

    Every program routes its token itself, as far as its own place; one for each token writes ids and weights. Neighbouring
    programs have the same columns of different rows: two rows of one expert then share its weights in the cache.
    """
    row = tl.program_id(0) % rows
    block = tl.program_id(0) // rows
    place = row % top_k
    if ROUTE:
        token = row // top_k + tl.arange(0, 1)
        inside = token >= 0
        keys, wide, real = expert_keys(
            logits, bias, token, inside, group_size, n_group, topk_group, stride_lt, stride_le, stride_b,
            GROUPS, SIZE, SQUASH, HAS_BIAS, GROUPED,
        )  # fmt: skip
        writes = (block == 0) & (place == 0)
        ids = choose(keys, tl.where(writes, top_k, place + 1), PLACES)
        places = tl.arange(0, PLACES)[None, :]
        if writes:
            used = places < top_k
            found = weigh(logits, ids, token, used, wide, real, scaling, stride_lt, stride_le, WEIGHTS)
            tl.store(expert_ids + row + places, ids, mask=used)
            tl.store(weights + row + places, found, mask=used)
        local = tl.max(tl.max(tl.where(places == place, ids, -1), axis=1), axis=0) - expert_offset
    else:
        local = tl.load(expert_ids + row) - expert_offset
    if (local < 0) | (local >= experts):
        return
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    weight_row = tl.minimum(column, size - 1)
    k = tl.arange(0, DEPTH)
    values = x + (row // top_k).to(tl.int64) * stride_xt + k * stride_xd
    gates = w_gate_up + local.to(tl.int64) * stride_we + weight_row[:, None] * stride_wn + k[None, :] * stride_wk
    ups = gates + size * stride_wn
    gate = tl.zeros((COLUMNS,), tl.float32)
    up = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, hidden, DEPTH):
        if EVEN_DEPTH:
            g = tl.load(gates)
            u = tl.load(ups)
            a = tl.load(values)
        else:
            left = k < hidden - start
            g = tl.load(gates, mask=left[None, :], other=0.0)
            u = tl.load(ups, mask=left[None, :], other=0.0)
            a = tl.load(values, mask=left, other=0.0)
        a = a.to(tl.float32)[None, :]
        gate += tl.sum(g.to(tl.float32) * a, axis=1)
        up += tl.sum(u.to(tl.float32) * a, axis=1)
        values += DEPTH * stride_xd
        gates += DEPTH * stride_wk
        ups += DEPTH * stride_wk
    out = functions.silu(gate, PTX) * up
    tl.store(inner + row.to(tl.int64) * stride_inner + column, out.to(inner.dtype.element_ty), mask=column < size)


@triton.jit(do_not_specialize=["expert_offset", "experts"])
def few_down_kernel(
    inner,
    w_down,
    expert_ids,
    weights,
    y,
    hidden,
    size,
    top_k,
    expert_offset,
    experts,
    stride_inner,
    stride_we,
    stride_wn,
    stride_wk,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
):
    """y[token, column] of one token and COLUMNS columns: all its experts at once, so that all loads are under way together."""
    column_blocks = tl.cdiv(hidden, COLUMNS)
    token = tl.program_id(0) // column_blocks
    column = (tl.program_id(0) % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.arange(0, PLACES)
    row = token * top_k + place
    local = tl.load(expert_ids + row, mask=place < top_k, other=-1) - expert_offset
    here = (place < top_k) & (local >= 0) & (local < experts)
    weight = tl.load(weights + row, mask=here, other=0.0)
    k = tl.arange(0, DEPTH)
    activations = inner + row.to(tl.int64)[:, None] * stride_inner + k[None, :]
    weight_row = tl.minimum(column, hidden - 1)
    # Places before depth: the warps divide them, and each needs the activations of its own alone.
    weight_rows = weight_row[:, None] * stride_wn + local.to(tl.int64)[None, :] * stride_we
    downs = w_down + weight_rows[:, :, None] + k[None, None, :] * stride_wk
    out = tl.zeros((COLUMNS, PLACES), tl.float32)
    for start in range(0, size, DEPTH):
        mask = here[:, None]
        if not EVEN_DEPTH:
            mask = mask & (k[None, :] < size - start)
        d = tl.load(downs, mask=mask[None, :, :], other=0.0)
        a = tl.load(activations, mask=mask, other=0.0)
        out += tl.sum(d.to(tl.float32) * a.to(tl.float32)[None, :, :], axis=2)
        activations += DEPTH
        downs += DEPTH * stride_wk
    # Where nothing was computed, even the weight may be NaN.
    total = tl.sum(tl.where(here[None, :], out * weight[None, :], 0.0), axis=1)
    tl.store(y + token.to(tl.int64) * hidden + column, total.to(y.dtype.element_ty), mask=column < hidden)
