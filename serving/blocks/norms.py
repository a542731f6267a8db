"""RMS norm whose weight is kept as its distance from one."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """What norms, rotations and softmaxes are computed in: float32, or float64 in a model of float64."""
    return torch.promote_types(x.dtype, torch.float32)


def zero_centred_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean x^2 + eps) * (1 + weight) over the last dimension of x [..., D], rounded once to its dtype."""
    wide = x.to(compute_dtype(x))
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normalised * (1 + weight.to(wide.dtype))).to(x.dtype)
