"""Sorting rows by expert: which launches it takes. `moe_sorting_kernels` says what a row, a position and a tile are."""

from __future__ import annotations

import torch
import triton

from .moe_sorting_kernels import add_up_kernel, count_kernel, place_kernel, sort_kernel

Tensor = torch.Tensor

#: Up to so many rows every program of the sort counts them all; more are counted block by block, in a launch before.
_ROWS_COUNTED_BY_ALL = 2048
# Small enough for small batches to take both ways.
_ROWS_COUNTED_BY_ALL_INTERPRETED = 64
#: Of more rows: so many a block, and so many blocks that a program adds up at once.
ROWS_A_BLOCK = 128
BLOCKS_A_ROUND = 256


def sort(
    expert_ids: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    expert_offset: int,
    experts: int,
    tile: int,
    tail: int,
) -> None:
    """Write which rows make up which tile, in one launch while every program can count all rows, else in three.

    tile, tail: see `moe_launches.Launch`.
    """
    rows, bins = expert_ids.numel(), triton.next_power_of_2(experts)
    interpreted = expert_ids.device.type == "cpu"
    if rows <= (_ROWS_COUNTED_BY_ALL_INTERPRETED if interpreted else _ROWS_COUNTED_BY_ALL):
        block = 32  # a program compares its rows with each other
        sort_kernel[(triton.cdiv(rows, block),)](
            expert_ids,
            order,
            tiles,
            num_tiles,
            rows,
            expert_offset,
            experts,
            TILE=tile,
            TAIL=tail,
            BLOCK=block,
            CHUNK=1024,
            BINS=bins,
            num_warps=8,
        )
        return
    block, at_once, columns = (32, 2, min(128, bins)) if interpreted else (ROWS_A_BLOCK, BLOCKS_A_ROUND, min(8, bins))
    blocks = triton.cdiv(rows, block)
    counts = torch.empty((blocks, bins), dtype=torch.int32, device=expert_ids.device)
    totals = torch.empty(bins, dtype=torch.int32, device=expert_ids.device)
    count_kernel[(blocks,)](expert_ids, counts, rows, expert_offset, experts, BLOCK=block, BINS=bins, num_warps=2)
    add_up_kernel[(bins // columns,)](counts, totals, blocks, BLOCKS=at_once, BINS=bins, COLUMNS=columns, num_warps=4)
    place_kernel[(blocks,)](
        expert_ids,
        counts,
        totals,
        order,
        tiles,
        num_tiles,
        rows,
        expert_offset,
        experts,
        TILE=tile,
        TAIL=tail,
        BLOCK=block,
        BINS=bins,
        num_warps=2,
    )
