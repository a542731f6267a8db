"""Gated RMS norm: a row is one token of one value head, normalised over V, weighed and gated.

    y = x / sqrt(mean x^2 + eps) * w * silu(z)          silu(z) = z * sigmoid(z)

Everything is float32 between the loads and the one rounding of y. The work is moving x, z and y once each, so a program
takes as many whole rows as make its loads wide and numerous, and needs little else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import checks


class Tile(NamedTuple):
    """Rows per program, and warps. A tile always spans the whole of V."""

    block_rows: int
    num_warps: int


# One entry an element size, the same for every T: the tile decides how the sum over V is laid out, so a row's bits do not
# depend on how many other rows it comes with. An entry is (elements of x, warps): two 16-byte loads of x and of z a thread.
_TILES = {4: (1024, 4), 2: (2048, 4)}

# The widest load there is.
_WIDE_BYTES = 16


# Strides are not specialised: what they have in common is told by UNIT alone, and UNIT is more than 1 only where rows of y
# are as wide. The compiler lays all three tensors out like the widest of them, which therefore always is y: how the sum
# over V is ordered follows from V and the dtype, and a view at any offset gives the same bits as a copy.
@triton.jit(do_not_specialize=["rows", "eps", "stride_xt", "stride_xh", "stride_zt", "stride_zh"])
def _gated_rmsnorm_kernel(
    x,
    z,
    weight,
    y,
    rows,
    eps,
    stride_xt,
    stride_xh,
    stride_xd,
    stride_zt,
    stride_zh,
    stride_zd,
    HV: tl.constexpr,
    V: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    i = tl.arange(0, BLOCK_V)
    in_v = i < V
    live = (row < rows)[:, None] & in_v[None, :]
    token, head = (row // HV).to(tl.int64), (row % HV).to(tl.int64)

    from_x = x + ((token * stride_xt + head * stride_xh) * UNIT)[:, None] + (i * stride_xd)[None, :]
    from_z = z + ((token * stride_zt + head * stride_zh) * UNIT)[:, None] + (i * stride_zd)[None, :]
    xx = tl.load(from_x, mask=live, other=0.0).to(tl.float32)
    zz = tl.load(from_z, mask=live, other=0.0).to(tl.float32)
    w = tl.load(weight + i, mask=in_v, other=0.0).to(tl.float32)

    mean = tl.sum(xx * xx, axis=1) / V
    inverse = 1.0 / tl.sqrt(mean + eps)
    # exp of what is never positive: neither end of the gate overflows.
    e = tl.exp(-tl.abs(zz))
    silu = zz * tl.where(zz >= 0.0, 1.0, e) / (1.0 + e)
    out = xx * inverse[:, None] * w[None, :] * silu
    to = y + row.to(tl.int64)[:, None] * V + i[None, :]
    tl.store(to, out.to(y.dtype.element_ty), mask=live)


def gated_rmsnorm(x: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """Norm, weight and gate of T x HV rows. One kernel launch, no host sync, no copy of the views it is given.

    Args:
        x, z: [T, HV, V], V <= 1024; float32, float16 or bfloat16, one dtype for the two, any strides and offsets. Views
            that are aligned to 16 bytes in every stride and offset are loaded 16 bytes at a time.
        weight: [V], contiguous; any float dtype. All heads share it.
        eps: positive; added to the mean of squares.

    Returns:
        y [T, HV, V], contiguous, dtype of `x`; computed in float32 and rounded once. A row's bits depend on that row, the
        weight and eps alone.

    Raises:
        ValueError: wrong shape, dtype or device, before anything is written.
    """
    _check(x, z, weight, eps)
    tokens, heads, value_dim = x.shape
    y = torch.empty((tokens, heads, value_dim), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    elements, num_warps = _TILES[x.element_size()]
    block_v = triton.next_power_of_2(value_dim)
    tile = Tile(elements // block_v, num_warps)
    unit = _unit(x, z)
    rows = tokens * heads
    with torch.cuda.device_of(x):
        _gated_rmsnorm_kernel[(triton.cdiv(rows, tile.block_rows),)](
            x,
            z,
            weight,
            y,
            rows,
            float(eps),
            x.stride(0) // unit,
            x.stride(1) // unit,
            x.stride(2),
            z.stride(0) // unit,
            z.stride(1) // unit,
            z.stride(2),
            HV=heads,
            V=value_dim,
            UNIT=unit,
            BLOCK_ROWS=tile.block_rows,
            BLOCK_V=block_v,
            num_warps=tile.num_warps,
        )
    return y


def _unit(x: torch.Tensor, z: torch.Tensor) -> int:
    """How many elements the kernel may take at a time: as many as fill the widest load if every row of every tensor does."""
    wide = _WIDE_BYTES // x.element_size()
    aligned = x.shape[2] % wide == 0 and x.stride(2) == z.stride(2) == 1
    return wide if aligned and all(t.stride(d) % wide == 0 for t in (x, z) for d in (0, 1)) else 1


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST_HEAD_DIM = 1024
_MOST_ROWS = 2**30


def _check(x: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """Shapes, dtypes, devices and eps; no value is read."""
    dims: dict[str, int] = {}
    checks.check_tensor("x", x, shape=("T", "HV", "V"), dtypes=_FLOATS, dims=dims)
    checks.check_tensor("z", z, shape=("T", "HV", "V"), dtypes=(x.dtype,), device=x.device, dims=dims)
    checks.check_tensor("weight", weight, shape=("V",), dtypes=_FLOATS, device=x.device, dims=dims)
    checks.check_contiguous("weight", weight)
    if not 1 <= dims["V"] <= _LARGEST_HEAD_DIM:
        advice = "this kernel keeps several rows whole"
        raise checks.fail("x", f"V = {dims['V']}", f"1 to {_LARGEST_HEAD_DIM}", advice)
    if dims["T"] * dims["HV"] > _MOST_ROWS:
        advice = "rows are numbered in 32 bits: split the tokens"
        raise checks.fail("x", f"{dims['T']} x {dims['HV']} rows", f"at most {_MOST_ROWS}", advice)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise checks.fail("eps", f"{type(eps).__name__} {eps!r}", "a float", "pass a plain Python number")
    if not 0 < eps < math.inf:
        raise checks.fail("eps", eps, "a positive number", "a zero row is divided by its root")
    for name, view in (("x", x), ("z", z)):
        # Offsets inside a row are 32-bit in the kernel.
        if (view.shape[2] - 1) * view.stride(2) >= 2**31:
            raise checks.fail(
                name, f"strides {view.stride()}", "rows within 2^31 elements", f"pass {name}.contiguous()"
            )
    checks.check_runnable("x", x)
