"""Gated RMS norm: what a gated-delta-net layer does to the output of its heads.

A row is one token of one value head, x [V], with a gate z [V] of its own:

    y = x / sqrt(mean x^2 + eps) * w * silu(z)          silu(z) = z * sigmoid(z)

(Yang, Kautz, Hatamizadeh: Gated Delta Networks, 2024, section 3.4; the norm: Zhang, Sennrich: Root Mean Square Layer
Normalization, 2019.) The norm comes before the gate, its weight multiplies as it is (not as 1 + w) and is shared by all
heads, and the epsilon is inside the root. Published layers round the normalised row to its own dtype before the weight;
here everything stays in the compute dtype until the one rounding of y.
"""

import torch
from torch import Tensor


def gated_rmsnorm(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Normalise each row over its last dimension, weigh its elements, gate them.

    Args:
        x, z: [T, HV, V], any float dtype.
        weight: [V], any float dtype.
        eps: added to the mean of squares.
        compute_dtype: everything between the inputs and the rounding of y.

    Returns:
        y [T, HV, V] in the dtype of `x`. A zero row of x stays zero, and so does whatever a zero gate meets.
    """
    row, gate = x.to(compute_dtype), z.to(compute_dtype)
    normalised = row / torch.sqrt((row * row).mean(-1, keepdim=True) + eps)
    return (normalised * weight.to(compute_dtype) * (gate * torch.sigmoid(gate))).to(x.dtype)
