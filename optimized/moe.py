"""Mixture of experts: route each token, send it through its experts, add up what they return. No host sync anywhere.

With r = t * k + j for the token t at its place j, and e its expert there,

    inner[r] = silu(W_gate[e] x[t]) * (W_up[e] x[t])           rounded to the dtype of x, as the operand of a product is
    y[t]     = sum_j weight[r] (W_down[e] inner[r])            in float32, in the order of the places

How, depends on the numbers of rows and experts alone, and each way reads the weights of experts that have rows, and no others:

- A few rows: products of a matrix and a vector. Two launches: the first routes, too.
- A few tokens: one program routes them and sorts the rows by expert into tiles; products of a tile and an expert's weights; a
  sum over each token's parts. Four launches.
- More: the same, with a launch for routing and one for sorting, or three where every program counting all rows would take long.

Launch grids are sized for the most tiles that so many rows can have. Which of them there are is known on the device; programs
of the others return at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from . import checks, functions, moe_launches, moe_routing
from .moe_kernels import (
    add_parts_kernel,
    few_down_kernel,
    few_gate_up_kernel,
    grouped_down_kernel,
    grouped_gate_up_kernel,
)
from .moe_launches import Launch
from .moe_sorting import sort
from .moe_sorting_kernels import LINE, route_and_sort_kernel

Tensor = torch.Tensor

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def moe_experts(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    expert_offset: int = 0,
) -> Tensor:
    """Send each token through the experts that it was given and add up what they return.

    The weights may be those of some of all experts, as under expert parallelism: with `El` of them here, ids from
    `expert_offset` up to and without `expert_offset + El` are computed, and all others, -1 among them, contribute nothing.

    Args:
        x: [T, Hd], the tokens; float32, float16 or bfloat16, any strides.
        expert_ids: int32 [T, k], ids among all experts.
        weights: float32 [T, k].
        w_gate_up: [El, 2I, Hd], an expert's gate rows first, then its up rows; dtype of `x`. Where rows are not dense, or
            lie at other multiples of 16 bytes than in a contiguous tensor, a copy is made: that costs what reading all
            experts costs.
        w_down: [El, Hd, I]; as `w_gate_up`.
        expert_offset: the id of the first of these experts.

    Returns:
        y [T, Hd], contiguous, in the dtype of `x`; zero where no expert contributes. From 24 rows an expert on, what each
        expert adds to a token is rounded to bfloat16 before it is added, if `x` is; otherwise it is float32. Working memory beside
        it: T k (I + Hd) numbers.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    dims = _check(x, w_gate_up, w_down)
    checks.check_int("expert_offset", expert_offset, 0)
    same: dict[str, Any] = {"device": x.device, "dims": dims}
    checks.check_tensor("expert_ids", expert_ids, shape=("T", "k"), dtypes=(torch.int32,), **same)
    checks.check_tensor("weights", weights, shape=("T", "k"), dtypes=(torch.float32,), **same)
    top_k = expert_ids.shape[1]
    arguments = {
        "logits": x,
        "bias": x,
        **dict.fromkeys(("group_size", "n_group", "topk_group", "stride_lt", "stride_le", "stride_b"), 1),
        "top_k": top_k,
        "scaling": 1.0,
        **dict.fromkeys(("GROUPS", "SIZE"), 1),
        "PLACES": triton.next_power_of_2(max(1, top_k)),
        **dict.fromkeys(("SQUASH", "HAS_BIAS", "GROUPED"), False),
        "WEIGHTS": "logits",
    }
    return _compute(
        x, expert_ids.contiguous(), weights.contiguous(), w_gate_up, w_down, expert_offset, False, arguments
    )


def moe(
    x: Tensor,
    router_logits: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    top_k: int,
    method: str,
    bias: Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scaling: float = 1.0,
    expert_offset: int = 0,
) -> Tensor:
    """`moe_routing` of `router_logits` [T, E] and `moe_experts` in a row: their arguments, result and errors."""
    dims = _check(x, w_gate_up, w_down)
    moe_routing.check(router_logits, top_k, method, bias, n_group, topk_group, scaling, name="router_logits")
    checks.check_tensor("router_logits", router_logits, shape=("T", None), device=x.device, dims=dims)
    checks.check_experts_here(expert_offset, dims["El"], router_logits.shape[1])
    chosen: dict[str, Any] = {
        "top_k": top_k,
        "method": method,
        "bias": bias,
        "n_group": n_group,
        "topk_group": topk_group,
        "scaling": scaling,
    }
    arguments = moe_routing.kernel_arguments(router_logits, **chosen)
    tokens = x.shape[0]
    few = tokens * top_k <= moe_launches.few_rows(dims["El"], x.device) or moe_launches.routed_by_one_program(
        tokens, arguments["PLACES"], arguments["GROUPS"] * arguments["SIZE"]
    )
    if few:
        ids = torch.empty((tokens, top_k), dtype=torch.int32, device=x.device)
        weights = torch.empty((tokens, top_k), dtype=torch.float32, device=x.device)
    else:
        ids, weights = moe_routing.moe_routing(router_logits, **chosen)
    return _compute(x, ids, weights, w_gate_up, w_down, expert_offset, few, arguments)


def _compute(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    expert_offset: int,
    route: bool,
    arguments: dict[str, Any],
) -> Tensor:
    """y [T, Hd] of ids and weights, which are there already, or (`route`) are written on the way as `arguments` say."""
    (tokens, hidden), (experts, _, size) = x.shape, w_down.shape
    rows = expert_ids.numel()
    y = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    if rows == 0 or experts == 0 or size == 0:
        return y.zero_()
    w_gate_up, w_down = _as_contiguous(w_gate_up), _as_contiguous(w_down)
    launch = moe_launches.launch_for(rows, experts, hidden, size, expert_ids.shape[1], x.dtype, x.device)
    # Rows of whole 16-byte pieces, for copies that are made of them.
    inner = torch.empty((rows, triton.cdiv(size, 16) * 16), dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        if launch.tile:
            _tiled(launch, x, inner, expert_ids, weights, w_gate_up, w_down, y, expert_offset, route, arguments)
        else:
            _by_rows(launch, x, inner, expert_ids, weights, w_gate_up, w_down, y, expert_offset, route, arguments)
    return y


def _as_contiguous(weights: Tensor) -> Tensor:
    """The weights, if kernels read them as they read a contiguous tensor, in pieces as large; otherwise a copy."""
    dense = (weights.shape[1] * weights.shape[2], weights.shape[2])
    same = all((s % 16 == 0) == (d % 16 == 0) for s, d in zip(weights.stride(), dense, strict=False))
    if weights.is_contiguous() or (same and weights.stride(2) == 1):
        return weights if weights.data_ptr() % 16 == 0 else weights.clone(memory_format=torch.contiguous_format)
    return weights.contiguous()


def _by_rows(
    launch: Launch,
    x: Tensor,
    inner: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    y: Tensor,
    expert_offset: int,
    route: bool,
    arguments: dict[str, Any],
) -> None:
    """Write y with a program for each row and block of columns, then one for each token and block of columns."""
    (tokens, hidden), (experts, _, size) = x.shape, w_down.shape
    rows = expert_ids.numel()
    gate_up, down = launch.gate_up, launch.down
    few_gate_up_kernel[(rows * triton.cdiv(size, gate_up.columns),)](
        x,
        w_gate_up,
        inner,
        expert_ids,
        weights,
        rows=rows,
        hidden=hidden,
        size=size,
        expert_offset=expert_offset,
        experts=experts,
        stride_xt=x.stride(0),
        stride_xd=x.stride(1),
        stride_we=w_gate_up.stride(0),
        stride_wn=w_gate_up.stride(1),
        stride_wk=w_gate_up.stride(2),
        stride_inner=inner.stride(0),
        ROUTE=route,
        COLUMNS=gate_up.columns,
        DEPTH=gate_up.depth,
        EVEN_DEPTH=hidden % gate_up.depth == 0,
        PTX=functions.has_ptx(x),
        num_warps=gate_up.num_warps,
        num_stages=gate_up.num_stages,
        **arguments,
    )
    few_down_kernel[(tokens * triton.cdiv(hidden, down.columns),)](
        inner,
        w_down,
        expert_ids,
        weights,
        y,
        hidden,
        size,
        arguments["top_k"],
        expert_offset,
        experts,
        inner.stride(0),
        *w_down.stride(),
        PLACES=arguments["PLACES"],
        COLUMNS=down.columns,
        DEPTH=down.depth,
        EVEN_DEPTH=size % down.depth == 0,
        num_warps=down.num_warps,
        num_stages=down.num_stages,
    )


def _tiled(
    launch: Launch,
    x: Tensor,
    inner: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    y: Tensor,
    expert_offset: int,
    route: bool,
    arguments: dict[str, Any],
) -> None:
    """Write y by sorting the rows into tiles, two grouped products and a sum."""
    (tokens, hidden), (experts, _, size) = x.shape, w_down.shape
    rows, top_k = expert_ids.numel(), arguments["top_k"]
    # An expert's last tile may be short; an expert without rows has none.
    most_tiles = min(rows, min(rows, experts) + rows // launch.tile)
    order = torch.empty(rows, dtype=torch.int32, device=x.device)
    tiles = torch.empty((most_tiles, LINE.value), dtype=torch.int32, device=x.device)
    num_tiles = torch.empty(1, dtype=torch.int32, device=x.device)
    block_t = moe_launches.few_tokens(arguments["PLACES"])
    if tokens <= block_t:
        route_and_sort_kernel[(1,)](
            expert_ids=expert_ids,
            weights=weights,
            order=order,
            tiles=tiles,
            num_tiles=num_tiles,
            tokens=tokens,
            expert_offset=expert_offset,
            experts=experts,
            ROUTE=route,
            TILE=launch.tile,
            BLOCK_T=block_t,
            num_warps=8,
            **arguments,
        )
    else:
        sort(expert_ids, order, tiles, num_tiles, expert_offset, experts, launch.tile, launch.tail)
    products = "ieee"  # of float32; numbers of 16 bits go to the matrix units as they are
    gate_up, down = launch.gate_up, launch.down
    grouped_gate_up_kernel[(most_tiles * triton.cdiv(size, gate_up.columns),)](
        x,
        w_gate_up,
        order,
        tiles,
        num_tiles,
        inner,
        hidden,
        size,
        top_k,
        *x.stride(),
        *w_gate_up.stride(),
        inner.stride(0),
        TILE=launch.tile,
        TAIL=launch.tail,
        COLUMNS=gate_up.columns,
        DEPTH=gate_up.depth,
        EVEN_COLUMNS=size % gate_up.columns == 0,
        EVEN_DEPTH=hidden % gate_up.depth == 0,
        PRODUCTS=products,
        PTX=functions.has_ptx(x),
        num_warps=gate_up.num_warps,
        num_stages=gate_up.num_stages,
    )
    parts = torch.empty((rows, hidden), dtype=launch.parts or torch.float32, device=x.device)
    grouped_down_kernel[(most_tiles * triton.cdiv(hidden, down.columns),)](
        inner,
        w_down,
        weights,
        order,
        tiles,
        num_tiles,
        parts,
        hidden,
        size,
        inner.stride(0),
        *w_down.stride(),
        TILE=launch.tile,
        TAIL=launch.tail,
        COLUMNS=down.columns,
        DEPTH=down.depth,
        EVEN_COLUMNS=hidden % down.columns == 0,
        EVEN_DEPTH=size % down.depth == 0,
        PRODUCTS=products,
        num_warps=down.num_warps,
        num_stages=down.num_stages,
    )
    at_once = 32 if x.device.type == "cpu" else 1
    columns = min(512, triton.next_power_of_2(hidden))
    add_parts_kernel[(triton.cdiv(tokens, at_once) * triton.cdiv(hidden, columns),)](
        parts, expert_ids, y, tokens, hidden, top_k, expert_offset, experts, BLOCK_T=at_once, COLUMNS=columns
    )


def _check(x: Tensor, w_gate_up: Tensor, w_down: Tensor) -> dict[str, int]:
    """Raise a ValueError for tokens or weights that cannot be; the sizes of those that can."""
    dims: dict[str, int] = {}
    checks.check_tensor("x", x, shape=("T", "Hd"), dtypes=_FLOATS, dims=dims)
    same: dict[str, Any] = {"dtypes": (x.dtype,), "device": x.device, "dims": dims}
    checks.check_tensor("w_down", w_down, shape=("El", "Hd", "I"), **same)
    checks.check_tensor("w_gate_up", w_gate_up, shape=("El", 2 * dims["I"], "Hd"), **same)
    for name, view, what in (
        ("x", x, "a token"),
        ("w_gate_up", w_gate_up, "an expert"),
        ("w_down", w_down, "an expert"),
    ):
        # Offsets inside a token or an expert are 32-bit in the kernels.
        span = sum((n - 1) * s for n, s in zip(view.shape[1:], view.stride()[1:], strict=True))
        checks.check_span(name, view, span, what)
    checks.check_runnable("x", x)
    return dims


# Few rows are added up in another order than many, and what many experts add to a token is rounded on its way.
moe.sluicegate = {"batch_invariant": False, "parts_rounded": True}  # type: ignore[attr-defined]
