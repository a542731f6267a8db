"""`python -m benchmarks.moe_descriptors [--model 35B 80B] [--tokens N ...]`: the grouped products on tensor descriptors.

What `optimized.moe_kernels` reads through pointers, a weight at an address of its own, Hopper can fetch a block at a time
(TMA), and programs that stay resident can fetch the next block while they write out the last. Both products that way, beside
the ones in use, from the same sorted rows: microseconds, and whether they agree. Nothing in `optimized` uses these kernels.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks import timing
from benchmarks.moe_tiles import MODELS
from optimized import functions, moe_launches, moe_sorting
from optimized.moe_kernels import grouped_down_kernel, grouped_gate_up_kernel
from optimized.moe_launches import Blocks, Launch
from optimized.moe_sorting_kernels import LINE

TOKENS = (1024, 8192)


class Persistent(NamedTuple):
    """How a product on descriptors is launched. resident: programs a multiprocessor; 0: one for each block of the result."""

    tile: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    resident: int
    flatten: bool


@triton.jit
def _tile_and_column(tiles, item, column_blocks, COLUMNS: tl.constexpr):
    """Expert, first position, end and first column of a program's item."""
    line = tiles + item // column_blocks * LINE
    return tl.load(line), tl.load(line + 1), tl.load(line + 2), (item % column_blocks) * COLUMNS


@triton.jit
def descriptor_gate_up_kernel(
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
    stride_inner,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    FLATTEN: tl.constexpr,
    PTX: tl.constexpr,
):
    """inner[position, column]; w_gate_up: descriptor of [El * 2I, Hd], blocks of [COLUMNS, DEPTH]. hidden: whole DEPTHs."""
    column_blocks = tl.cdiv(size, COLUMNS)
    k = tl.arange(0, DEPTH)
    for item in tl.range(tl.program_id(0), tl.load(num_tiles) * column_blocks, tl.num_programs(0), flatten=FLATTEN):
        expert, first, end, first_column = _tile_and_column(tiles, item, column_blocks, COLUMNS)
        position = first + tl.arange(0, TILE)
        token = tl.load(order + tl.minimum(position, end - 1)) // top_k
        tokens = x + token.to(tl.int64)[:, None] * stride_xt + k[None, :]
        row = expert * 2 * size + first_column
        gate = tl.zeros((TILE, COLUMNS), tl.float32)
        up = tl.zeros((TILE, COLUMNS), tl.float32)
        for start in range(0, hidden, DEPTH):
            a = tl.load(tokens + start)
            gate = tl.dot(a, w_gate_up.load([row, start]).T, gate)
            up = tl.dot(a, w_gate_up.load([row + size, start]).T, up)
        out = functions.silu(gate, PTX) * up
        column = first_column + tl.arange(0, COLUMNS)
        pointers = inner + position.to(tl.int64)[:, None] * stride_inner + column[None, :]
        tl.store(pointers, out.to(inner.dtype.element_ty), mask=(position[:, None] < end) & (column[None, :] < size))


@triton.jit
def descriptor_down_kernel(
    inner,
    w_down,
    weights,
    order,
    tiles,
    num_tiles,
    parts,
    hidden,
    size,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """parts[row, column]; descriptors: inner [rows, I], blocks of [TILE, DEPTH]; w_down [El * Hd, I], of [COLUMNS, DEPTH]."""
    column_blocks = tl.cdiv(hidden, COLUMNS)
    for item in tl.range(tl.program_id(0), tl.load(num_tiles) * column_blocks, tl.num_programs(0), flatten=FLATTEN):
        expert, first, end, first_column = _tile_and_column(tiles, item, column_blocks, COLUMNS)
        out = tl.zeros((TILE, COLUMNS), tl.float32)
        for start in range(0, size, DEPTH):
            # Rows behind the tile's end are the next expert's, or zeros behind the last; nobody stores what becomes of them.
            out = tl.dot(inner.load([first, start]), w_down.load([expert * hidden + first_column, start]).T, out)
        position = first + tl.arange(0, TILE)
        row = tl.load(order + tl.minimum(position, end - 1))
        out *= tl.load(weights + row)[:, None]
        column = first_column + tl.arange(0, COLUMNS)
        pointers = parts + row.to(tl.int64)[:, None] * hidden + column[None, :]
        tl.store(pointers, out.to(parts.dtype.element_ty), mask=(position[:, None] < end) & (column[None, :] < hidden))


class Sorted(NamedTuple):
    """One batch, routed and sorted into tiles of one height; buffers of both products."""

    x: Tensor
    w_gate_up: Tensor
    w_down: Tensor
    weights: Tensor
    order: Tensor
    tiles: Tensor
    num_tiles: Tensor
    inner: Tensor
    parts: Tensor
    top_k: int


def sorted_batch(
    tokens: int, experts: int, top_k: int, hidden: int, size: int, tile: int, device: str, given: tuple[Tensor, Tensor]
) -> Sorted:
    """Random tokens and experts; given: weights [El, 2I, Hd] and [El, Hd, I]."""
    rows = tokens * top_k
    ids = torch.rand(tokens, experts, device=device).topk(top_k, dim=1).indices.to(torch.int32)
    order = torch.empty(rows, dtype=torch.int32, device=device)
    tiles = torch.empty((min(rows, experts) + rows // tile, LINE.value), dtype=torch.int32, device=device)
    num_tiles = torch.empty(1, dtype=torch.int32, device=device)
    moe_sorting.sort(ids, order, tiles, num_tiles, 0, experts, tile)
    like = given[0]
    return Sorted(
        torch.randn(tokens, hidden, device=device).to(like.dtype),
        *given,
        torch.rand(tokens, top_k, device=device),
        order,
        tiles,
        num_tiles,
        torch.randn(rows, size, device=device).to(like.dtype),
        torch.empty(rows, hidden, device=device, dtype=like.dtype),
        top_k,
    )


def by_pointers(batch: Sorted, launch: Launch) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Both products as `optimized.moe` launches them."""
    (_, hidden), (_, _, size) = batch.x.shape, batch.w_down.shape

    def cut(blocks: Blocks, columns: int, depth: int) -> dict[str, Any]:
        even = {"EVEN_COLUMNS": columns % blocks.columns == 0, "EVEN_DEPTH": depth % blocks.depth == 0}
        shape = {"TILE": launch.tile, "HALVES": launch.halves, "COLUMNS": blocks.columns, "DEPTH": blocks.depth}
        warps = {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}
        return {**shape, **even, **warps, "PRODUCTS": "ieee"}

    def gate_up() -> Tensor:
        inner = torch.empty_like(batch.inner)
        grouped_gate_up_kernel[(len(batch.tiles) * triton.cdiv(size, launch.gate_up.columns),)](
            batch.x, batch.w_gate_up, batch.order, batch.tiles, batch.num_tiles, inner, hidden, size, batch.top_k,
            *batch.x.stride(), *batch.w_gate_up.stride(), inner.stride(0),
            PTX=functions.has_ptx(batch.x), **cut(launch.gate_up, size, hidden),
        )  # fmt: skip
        return inner

    def down() -> Tensor:
        parts = torch.empty_like(batch.parts)
        grouped_down_kernel[(len(batch.tiles) * triton.cdiv(hidden, launch.down.columns),)](
            batch.inner, batch.w_down, batch.weights, batch.order, batch.tiles, batch.num_tiles, parts, hidden, size,
            batch.inner.stride(0), *batch.w_down.stride(), **cut(launch.down, hidden, size),
        )  # fmt: skip
        return parts

    return gate_up, down


def by_descriptors(batch: Sorted, cut: Persistent) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Both products on descriptors."""
    (_, hidden), (_, _, size) = batch.x.shape, batch.w_down.shape

    def programs(columns: int) -> tuple[int]:
        blocks = len(batch.tiles) * triton.cdiv(columns, cut.columns)
        if cut.resident == 0 or not batch.x.is_cuda:
            return (blocks,)
        return (min(blocks, cut.resident * torch.cuda.get_device_properties(batch.x.device).multi_processor_count),)

    def described(tensor: Tensor, height: int) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(tensor.flatten(0, -2), [height, cut.depth])

    shape: dict[str, Any] = {"TILE": cut.tile, "COLUMNS": cut.columns, "DEPTH": cut.depth, "FLATTEN": cut.flatten}
    shape |= {"num_warps": cut.num_warps, "num_stages": cut.num_stages}

    def gate_up() -> Tensor:
        inner = torch.empty_like(batch.inner)
        descriptor_gate_up_kernel[programs(size)](
            batch.x, described(batch.w_gate_up, cut.columns), batch.order, batch.tiles, batch.num_tiles, inner,
            hidden, size, batch.top_k, batch.x.stride(0), inner.stride(0), PTX=functions.has_ptx(batch.x), **shape,
        )  # fmt: skip
        return inner

    def down() -> Tensor:
        parts = torch.empty_like(batch.parts)
        descriptor_down_kernel[programs(hidden)](
            described(batch.inner, cut.tile), described(batch.w_down, cut.columns), batch.weights, batch.order,
            batch.tiles, batch.num_tiles, parts, hidden, size, **shape,
        )  # fmt: skip
        return parts

    return gate_up, down


def candidates(tile: int) -> Iterator[Persistent]:
    for columns, depth, warps, stages in itertools.product((64, 128, 256), (64, 128), (4, 8), (3, 4)):
        if tile * columns <= 128 * 64 * warps and (tile + columns) * depth * 2 * stages <= 224 * 1024:
            for resident, flatten in ((0, False), (1, False), (1, True), (2, False), (2, True)):
                yield Persistent(tile, columns, depth, warps, stages, resident, flatten)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moe_descriptors", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["35B"])
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--best", type=int, default=4, help="so many of the quickest are shown")
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name())
    for model, tokens in itertools.product(arguments.model, arguments.tokens):
        experts, top_k, hidden, size = MODELS[model]
        given = (
            (torch.randn(experts, 2 * size, hidden, device="cuda") / hidden**0.5).bfloat16(),
            (torch.randn(experts, hidden, size, device="cuda") / size**0.5).bfloat16(),
        )
        device = torch.device("cuda", 0)
        launch = moe_launches.launch_for(tokens * top_k, experts, hidden, size, top_k, torch.bfloat16, device)
        for tile in sorted({launch.tile, 64, 128}):
            batches = [sorted_batch(tokens, experts, top_k, hidden, size, tile, "cuda", given) for _ in range(2)]
            table = launch if tile == launch.tile else moe_launches.LARGEST[9]._replace(tile=tile, halves=tile >= 128)
            for index, name in enumerate(("gate_up", "down")):
                now = timing.time_calls([by_pointers(batch, table)[index] for batch in batches]).median_us
                print(f"\n{model}, {tokens} tokens, {name}, tile {tile}: {now:.1f} us by pointers", flush=True)
                wanted = by_pointers(batches[0], table)[index]().float()
                found = []
                for cut in candidates(tile):
                    calls = [by_descriptors(batch, cut)[index] for batch in batches]
                    try:
                        off = ((calls[0]().float() - wanted).norm() / wanted.norm()).item()
                        found.append((timing.time_calls(calls).median_us, off, cut))
                    except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError):
                        continue
                for took, off, cut in sorted(found)[: arguments.best]:
                    print(f"  {took:9.1f} us, off by {off:.1e}: {cut}", flush=True)


if __name__ == "__main__":
    main()
