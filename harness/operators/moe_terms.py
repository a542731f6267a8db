"""Sums of |terms| of a mixture of experts, and what its roundings between the two products do: for `harness.budget`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.budget import UNIT_ROUNDOFF

#: Below its smallest normal number, float16 rounds to multiples of twice this.
LEAST = {torch.float16: 2.0**-25}


@dataclass(frozen=True)
class Terms:
    """magnitude, noise: [T, Hd], float64."""

    magnitude: Tensor
    noise: Tensor


def terms(
    x: Tensor,
    local: Tensor,
    weights: Tensor,
    weight_terms: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    operand: torch.dtype | None,
    rounded: torch.dtype | None,
    products: bool,
    parts: bool,
) -> Terms:
    """Of tokens x [T, Hd] that go to the experts ``local`` [T, k], ids among w_gate_up [El, 2I, Hd]; others do not count.

    weight_terms: |terms| of the weights [T, k]. operand: the dtype to which gated products are rounded before the second one.
    rounded: the dtype to which the weights are. products: so is every result on the way. parts: what each expert adds to a token is.
    """
    magnitude = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    squares = torch.zeros_like(magnitude)
    here = local[(local >= 0) & (local < w_gate_up.shape[0])]
    for expert in here.unique().tolist():
        token, place = torch.nonzero(local == expert, as_tuple=True)
        rows, first, second = x[token].double(), w_gate_up[expert].double(), w_down[expert].double()
        gate, up = (rows @ first.T).chunk(2, dim=-1)
        gate_terms, up_terms = (rows.abs() @ first.abs().T).chunk(2, dim=-1)
        squashed = torch.sigmoid(gate)
        silu, slope = gate * squashed, squashed * (1 + gate * (1 - squashed))
        inner = silu * up
        # The products' own errors, carried through silu and the other factor, and the exponential's in its argument.
        inner_terms = slope.abs() * gate_terms * up.abs() + silu.abs() * up_terms
        inner_terms = inner_terms + inner.abs() * (1 + gate.abs() * (1 - squashed))
        out = weight_terms[token, place, None] * (inner_terms @ second.abs().T)
        magnitude.index_add_(0, token, out)
        weight = weights[token, place, None].double().square()
        if operand is not None:
            steps = rounding(inner, operand).square()
            if products:
                steps += (slope * up * rounding(gate, operand)).square() + (silu * rounding(up, operand)).square()
                steps += (up * rounding(silu, operand)).square()
            if products or parts:
                squares.index_add_(0, token, weight * rounding(inner @ second.T, operand).square())
            squares.index_add_(0, token, weight * (steps @ second.square().T))
        if rounded is not None:
            squares.index_add_(0, token, weight * (UNIT_ROUNDOFF[rounded] * (inner @ second.T)).square())
    return Terms(magnitude, squares.sqrt())


def rounding(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The most that one rounding of each of these values to ``dtype`` does."""
    return (UNIT_ROUNDOFF[dtype] * values.abs()).clamp(min=LEAST.get(dtype, 0.0))
