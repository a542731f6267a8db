"""How the kernels of the mixture of experts are launched: one table for all, by rows, experts and sizes; no tuning."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton


class Blocks(NamedTuple):
    """How one product is cut: output columns a program, and how many numbers of a sum it has in hand at once.

    Of the first product, so many columns of `inner`, each of a gate and an up row of the weights.
    """

    columns: int
    depth: int
    num_warps: int
    num_stages: int


class Launch(NamedTuple):
    """How the kernels are launched.

    tile: rows of a tile; 0: row by row. gate_up, down: of the two products. parts: the dtype in which a token's parts wait to
    be added up; None: float32. tail: so many rows of an expert at most that no tile is left for are computed with its last tile,
    whose weights then serve them, too; 0: they have a tile of their own.
    """

    tile: int
    gate_up: Blocks
    down: Blocks
    parts: torch.dtype | None = None
    tail: int = 0


#: Up to so many rows are computed one by one: then hardly two of them have an expert in common. The interpreter pays per
#: program, and has fewer that way.
FEW_ROWS = 32
_FEW_ROWS_OF_MANY_EXPERTS = 64
_MANY_EXPERTS = 256
_FEW_ROWS_INTERPRETED = 8
#: So many tokens at most, places and scores of theirs are routed and sorted by one program, which compares every place with
#: every other in registers.
_FEW_TOKENS = 16
_FEW_PLACES = 128
_FEW_SCORES = 8192

# Tiles by rows an expert, for 16-bit numbers. A product with few rows waits for memory and wants many loads under way; one
# with many wants large tiles.
TILED = (
    (12, Launch(16, Blocks(64, 128, 4, 5), Blocks(64, 128, 4, 3))),
    (24, Launch(32, Blocks(64, 128, 4, 3), Blocks(128, 128, 4, 3))),
    (48, Launch(64, Blocks(64, 128, 4, 4), Blocks(128, 64, 4, 3))),
)
# The same where a block has less shared memory than on Hopper and data-center Blackwell: all of these fit 99 KiB.
TILED_ELSEWHERE = (
    (12, Launch(16, Blocks(32, 128, 4, 4), Blocks(64, 128, 4, 3))),
    (24, Launch(32, Blocks(32, 128, 4, 4), Blocks(64, 128, 4, 3))),
    (48, Launch(64, Blocks(64, 64, 4, 4), Blocks(128, 64, 8, 4))),
)
LARGEST = {
    9: Launch(128, Blocks(128, 64, 8, 3), Blocks(256, 64, 8, 4), tail=64),
    10: Launch(128, Blocks(128, 64, 8, 3), Blocks(256, 64, 8, 4), tail=64),
}
# From so many rows an expert on, reading and writing the parts in float32 would take up to a fifth of the time.
MANY_ROWS_AN_EXPERT = 24
LARGEST_ELSEWHERE = Launch(128, Blocks(64, 64, 8, 2), Blocks(128, 64, 8, 3))
# IEEE products of float32 keep their operands in registers.
EXACT = Launch(16, Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 2))
EXACT_MANY = Launch(32, Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 2))


def launch_for(
    rows: int, experts: int, hidden: int, size: int, top_k: int, dtype: torch.dtype, device: torch.device
) -> Launch:
    """The fixed table: no tuning, so that the same batch has the same bits on the same device."""
    exact = dtype == torch.float32
    if rows <= few_rows(experts, device):
        return row_by_row(hidden, size, top_k, exact, interpreted=device.type == "cpu")
    if device.type == "cpu":
        # The interpreter pays per operation.
        wide = [min(128, max(16, triton.next_power_of_2(n))) for n in (size, hidden)]
        return Launch(32, Blocks(wide[0], wide[1], 4, 1), Blocks(wide[1], wide[0], 4, 1), tail=16)
    each = rows / max(1, experts)
    if exact:
        return EXACT if each <= 16 else EXACT_MANY
    major = torch.cuda.get_device_properties(device).major
    table = TILED if major in LARGEST else TILED_ELSEWHERE
    launch = next((launch for most, launch in table if each <= most), LARGEST.get(major, LARGEST_ELSEWHERE))
    # float16 has no room for small parts; bfloat16 has float32's.
    rounded = each > MANY_ROWS_AN_EXPERT and dtype == torch.bfloat16
    return launch._replace(parts=dtype if rounded else None)


def row_by_row(hidden: int, size: int, top_k: int, exact: bool, interpreted: bool) -> Launch:
    """Programs with 16 KiB of weights under way at once, so few that all of one token's run together."""
    numbers = 4096 if exact else 8192
    if hidden % 16 or size % 16:
        numbers //= 4  # each number has an address of its own
    depth = min(512, triton.next_power_of_2(hidden))
    columns = 64 if interpreted else min(64, max(1, numbers // (2 * depth)))
    places = triton.next_power_of_2(max(1, top_k))
    inner = max(16, min(256, 2048 // places, triton.next_power_of_2(size)))
    outer = 64 if interpreted else min(64, max(1, numbers // (inner * places)))
    return Launch(0, Blocks(columns, depth, 4, 1), Blocks(outer, inner, 8 if places > 8 else 4, 1))


def few_rows(experts: int, device: torch.device) -> int:
    """Up to how many rows are computed one by one, of so many experts that are here."""
    if device.type == "cpu":
        return _FEW_ROWS_INTERPRETED
    return _FEW_ROWS_OF_MANY_EXPERTS if experts >= _MANY_EXPERTS else FEW_ROWS


def few_tokens(places: int) -> int:
    """How many tokens one program can sort; how many there are does not matter, lest kernels be compiled for each.

    places: a token's, rounded up to a power of two.
    """
    return min(_FEW_TOKENS, _FEW_PLACES // places)


def routed_by_one_program(tokens: int, places: int, scores: int) -> bool:
    """Whether one program can route all these tokens and sort their rows; scores: a token's."""
    return tokens <= few_tokens(places) and few_tokens(places) * scores <= _FEW_SCORES
