"""Subjects whose kernels are wrong in one way each, all of them of `conv_update` or `chunk_metadata`."""

from __future__ import annotations

import os
import signal

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _copy_kernel(x, y, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < size), mask=i < size)


@triton.jit
def _spilling_kernel(x, y, SIZE: tl.constexpr):
    """Sixty-four live values a thread, twice, where 32 registers are allowed."""
    i = tl.arange(0, SIZE)
    a, b = tl.load(x + i).to(tl.float32), tl.load(x + SIZE + i).to(tl.float32)
    a = a * b + tl.sum(a)
    b = b + tl.max(a) * a
    tl.store(y + i, a)
    tl.store(y + SIZE + i, b)


@triton.jit
def _shared_kernel(x, y, SIZE: tl.constexpr):
    """A gather across warps goes through shared memory: 4 bytes for each of 2^16 elements."""
    i = tl.arange(0, SIZE)
    tl.store(y + i, tl.gather(tl.load(x + i).to(tl.float32), i ^ 1, 0))


@triton.jit
def _broken_kernel(x, y):
    tl.store(y, tl.load(x) + tl.arange(0, 3))


def right(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    y = torch.empty_like(x)
    _copy_kernel[(triton.cdiv(x.numel(), 64),)](x, y, x.numel(), BLOCK=64)
    return y


def spilling(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    y = torch.empty_like(x)
    _spilling_kernel[(1,)](x, y, SIZE=1024, num_warps=1, maxnreg=32)
    return y


def too_much_shared_memory(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    y = torch.empty_like(x)
    _shared_kernel[(1,)](x, y, SIZE=1 << 16, num_warps=32)
    return y


def broken(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    y = torch.empty_like(x)
    _broken_kernel[(1,)](x, y)
    return y


def reads(x: Tensor, weight: Tensor, *, state_indices: Tensor, **_: object) -> Tensor:
    return x[: int(state_indices.max().item())]


def plain_torch(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    return x * 2


def dies(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    """Only when it is called: the process that imports it to read what it claims lives on."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return x


class _Deadly(int):
    """A size that ends the process of a compiler that calculates with it."""

    def __mul__(self, other: object) -> int:
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0


@triton.jit
def _deadly_kernel(x, y, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE * 2)
    tl.store(y + i, tl.load(x + i))


def crashes_the_compiler(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    _deadly_kernel[(1,)](x, x, SIZE=_Deadly(16))
    return x


def _forbidden(size: int) -> int:
    return size


@triton.jit
def _forbidding_kernel(x, y, SIZE: tl.constexpr):
    i = tl.arange(0, _forbidden(SIZE))
    tl.store(y + i, tl.load(x + i))


def calls_plain_python(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    """Which Triton refuses already when it works out what the kernel depends on."""
    _forbidding_kernel[(1,)](x, x, SIZE=16)
    return x


@triton.autotune([triton.Config({"BLOCK": 64}, num_warps=2), triton.Config({"BLOCK": 128}, num_warps=4)], key=["size"])
@triton.jit
def _tuned_kernel(x, y, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < size), mask=i < size)


def tuned(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    """Also does to its tensors what launchers do: slices, copies, asks for the device."""
    held = x[:, ::2].t().contiguous()
    y = torch.zeros(held.shape, dtype=x.dtype, device=x.device)
    assert y.device == x.device
    assert y.is_cuda
    with torch.cuda.device(x.device):
        _tuned_kernel[lambda meta: (triton.cdiv(held.numel(), meta["BLOCK"]),)](held, y, held.numel())
    return x


def chosen_by_architecture(x: Tensor, weight: Tensor, **_: object) -> Tensor:
    """The block is the compute capability's, rounded: 64 on sm_80 and sm_90, 128 on sm_120."""
    y = torch.empty_like(x)
    block = 128 if torch.cuda.get_device_capability(x.device) >= (12, 0) else 64
    _copy_kernel[(1,)](x, y, x.numel(), BLOCK=block)
    return y
