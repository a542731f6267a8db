"""Functions of one float32 number that kernels share, or that need care: for speed, or for their last digits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def has_ptx(tensor: torch.Tensor) -> bool:
    """Whether a kernel on this tensor's device is compiled to PTX; what kernels take as their flag PTX."""
    return tensor.device.type == "cuda" and torch.version.hip is None and not triton.knobs.runtime.interpret


@triton.jit
def exp(x, PTX: tl.constexpr):
    """exp(x) in float32. On NVIDIA by the instruction, without the range checks in which Triton's exp wraps it.

    Those are for subnormal results, which become zero here.
    """
    if PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * 1.4426950408889634], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp(x)


@triton.jit
def unbiased_exp(x):
    """exp(x) of a scalar x <= 0. Near zero, where a state goes through many such factors, by its series.

    The instruction's error of an ulp or two lies on one side for a stretch of x, and would add up.
    """
    series = 1.0 + x / 9.0
    for n in tl.static_range(8, 0, -1):
        series = 1.0 + x * series / n
    return tl.where(x > -0.5, series, tl.exp(x))


@triton.jit
def silu(u, PTX: tl.constexpr):
    """u * sigmoid(u) in float32.

    On NVIDIA the two special functions are named directly: Triton's exp and division wrap them in range checks for
    subnormal results, which cost more than the convolution and change nothing here (a sigmoid below 2^-126 becomes zero
    either way).
    """
    e = exp(-u, PTX)
    if PTX:
        return u * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + e], dtype=tl.float32, is_pure=True, pack=1
        )
    return u / (1.0 + e)


@triton.jit
def log1p(e):
    """log(1 + e), exact for small e too: the rounding of 1 + e is divided out again."""
    u = 1.0 + e
    near = u == 1.0
    return tl.where(near, e, tl.log(u) * (e / tl.where(near, 1.0, u - 1.0)))
