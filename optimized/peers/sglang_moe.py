"""SGLang's Triton mixture of experts behind our contract (read in 0.5.23: `sglang/kernels/ops/moe`, `moe_runner/triton_utils`).

Its steps in its order: pairs of token and expert are sorted into blocks of one expert each, one kernel multiplies the blocks,
one applies silu and the product, the first multiplies again and weighs, one adds up what belongs to a token. Routing is ours.
What the library does differently:

- tiles come from files for a GPU and a shape, which it has not for these models on an H100; `default_tiles` is its rule where
  there is no file. `CANDIDATES` are what a measurement may try instead, among them its file for an H200;
- within an expert, pairs are in the order in which atomics come, which no result depends on;
- results are rounded to the inputs' dtype after each step, and weighed before they are; no float32;
- an expert that is not here is -1; tensors are to be dense.

`sglang.kernels.ops.moe.moe_align` compiles its kernel at first use; nothing here waits for the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
import triton
import triton.language as tl

from . import experts

_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_OPS = "sglang.kernels.ops.moe."

Tiles = Mapping[str, int]


def _tiles(rows: int, columns: int, depth: int, group: int, warps: int, stages: int) -> dict[str, int]:
    sizes = {"BLOCK_SIZE_M": rows, "BLOCK_SIZE_N": columns, "BLOCK_SIZE_K": depth, "GROUP_SIZE_M": group}
    return {**sizes, "num_warps": warps, "num_stages": stages}


#: Tokens up to which -> tiles worth measuring.
CANDIDATES: dict[int, tuple[Tiles, ...]] = {
    16: (_tiles(16, 32, 64, 1, 4, 3), _tiles(16, 64, 128, 1, 4, 4), _tiles(16, 128, 64, 1, 4, 4)),
    256: (_tiles(16, 64, 128, 1, 4, 4), _tiles(16, 128, 128, 1, 4, 3), _tiles(32, 128, 128, 32, 8, 3)),
    2048: (_tiles(32, 128, 128, 32, 8, 3), _tiles(64, 64, 64, 1, 4, 3), _tiles(64, 128, 64, 8, 4, 4)),
    1 << 62: (_tiles(64, 128, 64, 8, 4, 4), _tiles(128, 128, 64, 8, 8, 3), _tiles(128, 256, 64, 8, 8, 4)),
}


def candidates(tokens: int) -> tuple[Tiles, ...]:
    """Tiles worth measuring for so many tokens."""
    return next(tiles for most, tiles in CANDIDATES.items() if tokens <= most)


def default_tiles(tokens: int, local: int) -> Tiles:
    """What the library takes for so many tokens and experts where it has no file (`get_default_config`)."""
    few = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1}
    many = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32, "GROUP_SIZE_M": 8}
    return few if tokens <= local else many


def moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    *,
    expert_offset: int = 0,
    tiles: Tiles | None = None,
    **routing: Any,
) -> torch.Tensor:
    """`tiles`: of both products; None: the library's rule."""
    ids, weights = experts.routed(x, router_logits, w_gate_up, w_down, expert_offset, tuple(_DTYPES), **routing)
    (tokens, hidden), top_k = x.shape, ids.shape[1]
    y = torch.empty(tokens, hidden, dtype=x.dtype, device=x.device)
    if tokens == 0:
        return y
    local, _, intermediate = w_down.shape
    chosen = dict(tiles or default_tiles(tokens, local))
    here = ids if local == router_logits.shape[1] else experts.local_ids(ids, expert_offset, local, -1)
    blocks = aligned(here, chosen["BLOCK_SIZE_M"], local)
    kernels = _kernels()
    halves = x.new_empty(tokens * top_k, 2 * intermediate)
    _product(kernels, x.contiguous(), w_gate_up.contiguous(), halves, weights, here, blocks, chosen, False, top_k)
    inner = x.new_empty(tokens * top_k, intermediate)
    kernels.act_and_mul_triton(halves, inner, chosen, here, blocks[1], False, "silu")
    weighed = x.new_empty(tokens, top_k, hidden)
    _product(kernels, inner, w_down.contiguous(), weighed, weights, here, blocks, chosen, True, 1)
    kernels.moe_sum_reduce_triton(weighed, y, 1.0)
    return y


moe.sluicegate = {  # type: ignore[attr-defined]
    "devices": ("cuda",),
    "dtypes": ("float16", "bfloat16"),
    "bitwise": False,
    "min_capability": (8, 0),
    "library": "sglang",
    "products_rounded": True,
}


def aligned(ids: torch.Tensor, rows: int, local: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs sorted into blocks of `rows`, the expert of each block, and how many there are with what fills the blocks up.

    As `moe_runner/triton_utils/moe_align_block_size.py` calls its kernels: one block of threads for few pairs and many
    experts, two kernels otherwise.
    """
    pairs = ids.numel()
    longest = pairs * rows if pairs < local + 1 else pairs + (local + 1) * (rows - 1)
    longest = triton.cdiv(longest, 4) * 4
    order = torch.empty(longest, dtype=torch.int32, device=ids.device)
    owners = torch.empty(triton.cdiv(longest, rows), dtype=torch.int32, device=ids.device)
    count = torch.empty(1, dtype=torch.int32, device=ids.device)
    small = importlib.import_module(_OPS + "moe_align_small_numel")
    # It counts one more expert, for -1.
    if pairs <= small.SMALL_NUMEL_LIMIT and local + 1 > 64:
        small.moe_align_small_numel(ids, local + 1, rows, order, owners, count)
    else:
        sums = torch.empty(local + 2, dtype=torch.int32, device=ids.device)
        align = importlib.import_module(_OPS + "moe_align").moe_align_block_size
        align(ids, local + 1, rows, order, owners, count, sums, True)
    return order, owners, count


def _product(
    kernels: ModuleType,
    rows: torch.Tensor,
    weights: torch.Tensor,
    out: torch.Tensor,
    routing_weights: torch.Tensor,
    ids: torch.Tensor,
    blocks: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    tiles: Tiles,
    weigh: bool,
    top_k: int,
) -> None:
    """`top_k`: how many pairs a row of `rows` is for."""
    plain: dict[str, Any] = dict.fromkeys(
        ("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16", "use_int4_w4a16", "per_channel_quant"), False
    )
    kernels.invoke_fused_moe_kernel(
        rows,
        weights,
        None,
        out,
        None,
        None,
        None,
        routing_weights,
        ids,
        *blocks,
        weigh,
        top_k,
        dict(tiles),
        compute_type=_DTYPES[rows.dtype],
        **plain,
    )


def _kernels() -> ModuleType:
    return importlib.import_module(_OPS + "fused_moe_triton_kernels")
