"""Rows by expert: which rows of the batch make up which tile of the grouped products, found on the device.

A *row* is a token at one of its k places, t * k + j. Rows of an expert that is here get neighbouring *positions*, experts in
order and rows in order within an expert; each expert's positions are cut into tiles of at most TILE, of which a line of
`tiles` names the expert (its number here), the first position and the end. Where not one program sorts all rows, an expert's
last tile takes up to TAIL rows more that would be left over. Counting does it: no atomics, so the same ids give the same
positions always, and a sum over a tile's rows meets them in one order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .moe_routing_kernels import choose, expert_keys, weigh

#: Numbers of a tile's line: expert, first position, end, and one that is not used.
LINE = tl.constexpr(4)


@triton.jit
def _local(ids, row, rows, expert_offset, experts):
    """The number here of each row's expert; `experts` where it is elsewhere, or there is no such row."""
    local = tl.load(ids + row, mask=row < rows, other=-1) - expert_offset
    return tl.where((row < rows) & (local >= 0) & (local < experts), local, experts)


@triton.jit
def _write_tile(tiles, tile, expert, first, end, mask):
    line = tiles + tile * LINE
    tl.store(line, expert, mask=mask)
    tl.store(line + 1, first, mask=mask)
    tl.store(line + 2, end, mask=mask)


@triton.jit
def _place(expert_ids, order, begins, first, rows, expert_offset, experts, BLOCK: tl.constexpr):
    """Give the rows from `first` on their positions; those of expert e begin at begins[e]."""
    i = tl.arange(0, BLOCK)
    local = _local(expert_ids, first + i, rows, expert_offset, experts)
    earlier = (local[:, None] == local[None, :]) & (i[None, :] < i[:, None])
    here = local < experts
    position = tl.gather(begins, tl.where(here, local, 0), 0) + tl.sum(earlier.to(tl.int32), axis=1)
    tl.store(order + position, first + i, mask=here)


@triton.jit
def _write_tiles(tiles, num_tiles, starts, total, TILE: tl.constexpr, TAIL: tl.constexpr):
    """Cut each expert's positions, total[e] from starts[e] on, into tiles; up to TAIL that are left are the last tile's, too."""
    count = (total + (TILE - 1)) // TILE
    count -= ((count > 1) & (total - (count - 1) * TILE <= TAIL)).to(tl.int32)
    tile = tl.cumsum(count, 0) - count
    tl.store(num_tiles, tl.max(tile + count, axis=0))
    for n in range(tl.max(count, axis=0)):
        begin = starts + n * TILE
        end = tl.where(n == count - 1, starts + total, begin + TILE)
        _write_tile(tiles, tile + n, tl.arange(0, total.shape[0]), begin, end, n < count)


@triton.jit(do_not_specialize=["rows", "expert_offset", "experts"])
def sort_kernel(
    expert_ids,
    order,
    tiles,
    num_tiles,
    rows,
    expert_offset,
    experts,
    TILE: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    BINS: tl.constexpr,
):
    """Place BLOCK rows a program; the first also writes the tiles. Each counts all rows itself: that costs less than a launch."""
    first = tl.program_id(0) * BLOCK
    total = tl.zeros((BINS,), tl.int32)
    before = tl.zeros((BINS,), tl.int32)
    for start in range(0, rows, CHUNK):
        row = start + tl.arange(0, CHUNK)
        local = _local(expert_ids, row, rows, expert_offset, experts)
        here = local < experts
        total += tl.histogram(local, BINS, mask=here)
        if start < first:
            before += tl.histogram(local, BINS, mask=here & (row < first))
    starts = tl.cumsum(total, 0) - total
    _place(expert_ids, order, starts + before, first, rows, expert_offset, experts, BLOCK)
    if first == 0:
        _write_tiles(tiles, num_tiles, starts, total, TILE, TAIL)


@triton.jit(do_not_specialize=["rows", "expert_offset", "experts"])
def count_kernel(
    expert_ids,
    counts,
    rows,
    expert_offset,
    experts,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
):
    """counts[block, expert] of BLOCK rows a program."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    local = _local(expert_ids, row, rows, expert_offset, experts)
    tl.store(counts + tl.program_id(0) * BINS + tl.arange(0, BINS), tl.histogram(local, BINS, mask=local < experts))


@triton.jit(do_not_specialize=["blocks"])
def add_up_kernel(counts, totals, blocks, BLOCKS: tl.constexpr, BINS: tl.constexpr, COLUMNS: tl.constexpr):
    """counts[block, expert] becomes what the blocks before have, totals[expert] what all have; COLUMNS experts a program."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.int32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        pointers = counts + block[:, None] * BINS + column[None, :]
        count = tl.load(pointers, mask=block[:, None] < blocks, other=0)
        tl.store(pointers, total[None, :] + tl.cumsum(count, 0) - count, mask=block[:, None] < blocks)
        total += tl.sum(count, axis=0)
    tl.store(totals + column, total)


@triton.jit(do_not_specialize=["rows", "expert_offset", "experts"])
def place_kernel(
    expert_ids,
    counts,
    totals,
    order,
    tiles,
    num_tiles,
    rows,
    expert_offset,
    experts,
    TILE: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
):
    """Place BLOCK rows a program behind those that `add_up_kernel` has found before them; the first also writes the tiles."""
    bins = tl.arange(0, BINS)
    total = tl.load(totals + bins)
    before = tl.load(counts + tl.program_id(0) * BINS + bins)
    expert_begins = tl.cumsum(total, 0) - total
    _place(expert_ids, order, expert_begins + before, tl.program_id(0) * BLOCK, rows, expert_offset, experts, BLOCK)
    if tl.program_id(0) == 0:
        _write_tiles(tiles, num_tiles, expert_begins, total, TILE, TAIL)


@triton.jit(do_not_specialize=["tokens", "expert_offset", "experts"])
def route_and_sort_kernel(
    logits,
    bias,
    expert_ids,
    weights,
    order,
    tiles,
    num_tiles,
    tokens,
    expert_offset,
    experts,
    group_size,
    n_group,
    topk_group,
    top_k,
    scaling,
    stride_lt,
    stride_le,
    stride_b,
    ROUTE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    PLACES: tl.constexpr,
    SQUASH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GROUPED: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """All of it in one program, for a few tokens: route (or take the ids as they are), place the rows, write the tiles."""
    token = tl.arange(0, BLOCK_T)
    inside = token < tokens
    place = tl.arange(0, PLACES)[None, :]
    used = inside[:, None] & (place < top_k)
    row = token[:, None] * top_k + place
    if ROUTE:
        keys, wide, real = expert_keys(
            logits, bias, token, inside, group_size, n_group, topk_group, stride_lt, stride_le, stride_b,
            GROUPS, SIZE, SQUASH, HAS_BIAS, GROUPED,
        )  # fmt: skip
        ids = choose(keys, top_k, PLACES)
        found = weigh(logits, ids, token, used, wide, real, scaling, stride_lt, stride_le, WEIGHTS)
        tl.store(expert_ids + row, ids, mask=used)
        tl.store(weights + row, found, mask=used)
    else:
        ids = tl.load(expert_ids + row, mask=used, other=-1)

    N: tl.constexpr = BLOCK_T * PLACES
    local = ids - expert_offset
    here = used & (local >= 0) & (local < experts)
    local = tl.reshape(tl.where(here, local, experts), (N,))
    row = tl.reshape(row, (N,))
    i = tl.arange(0, N)
    # Rows elsewhere come last, as those of an expert after all that are here.
    key = local * N + i
    sooner = key[None, :] < key[:, None]
    same = local[None, :] == local[:, None]
    # Three numbers of at most N in one sum: reductions are what takes the time here.
    sums = tl.sum(sooner.to(tl.int32) + ((same & sooner).to(tl.int32) << 10) + (same.to(tl.int32) << 20), axis=1)
    position = sums & 1023
    among = (sums >> 10) & 1023
    count = sums >> 20
    begins = (local < experts) & (among % TILE == 0)
    # How many tiles there are, each row counts for itself: Triton 3.6 loses some of a vector of this layout when it is reduced
    # to one number.
    tile_sums = tl.sum((sooner & begins[None, :]).to(tl.int32) + (begins[None, :].to(tl.int32) << 10), axis=1)
    tile = tile_sums & 1023
    tl.store(order + position, row, mask=local < experts)
    _write_tile(tiles, tile, local, position, position + tl.minimum(count - among, TILE), begins)
    tl.store(num_tiles + tl.zeros_like(i), tile_sums >> 10, mask=i == 0)
