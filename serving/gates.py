"""The gates of a gated delta net, for the prefill: decode kernels compute their own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gates(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """a, b [T, HV]; A_log, dt_bias [HV] -> (log decay g, step beta), float32 [T, HV]: what engines do around their kernels."""
    softplus = F.softplus(a.float() + dt_bias.float(), beta=1.0, threshold=20.0)
    return -A_log.float().exp() * softplus, b.float().sigmoid()
