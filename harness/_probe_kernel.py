"""The kernel behind `harness.interpreter.probe`: conversions and an addition in the dtype itself."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _probe_kernel(values, source, stored, summed, wide, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    v = tl.load(values + i)
    s = tl.load(source + i)
    tl.store(stored + i, v.to(stored.dtype.element_ty))
    tl.store(summed + i, s + s)
    tl.store(wide + i, s.to(tl.float32))


def probe_arithmetic(values: Tensor, source: Tensor, stored: Tensor, summed: Tensor, wide: Tensor) -> None:
    _probe_kernel[(1,)](values, source, stored, summed, wide, SIZE=values.numel())
