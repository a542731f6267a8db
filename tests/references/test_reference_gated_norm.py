"""The gated norm against a second derivation, element by element in plain numbers, and against its own algebra."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from references.gated_norm import gated_rmsnorm


def by_hand(x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same from a geometric view: x / |x| is the direction of a row, and its length is sqrt(V / (1 + V eps / |x|^2))."""
    y = torch.zeros_like(x)
    width = x.shape[2]
    for t in range(x.shape[0]):
        for head in range(x.shape[1]):
            length = math.hypot(*x[t, head].tolist())
            for i in range(width):
                if length == 0:
                    continue
                cosine = x[t, head, i].item() / length
                gate = z[t, head, i].item()
                # silu as z times half of 1 + tanh(z / 2).
                silu = gate * (1 + math.tanh(gate / 2)) / 2
                y[t, head, i] = (
                    cosine * math.sqrt(width / (1 + width * eps / length**2)) * weight[i].item() * silu
                )  # fmt: skip
    return y


def draw(tokens: int, heads: int, width: int, amplitude: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shape = (tokens, heads, width)
    x = amplitude * torch.randn(shape, generator=random, dtype=torch.float64)
    z = 3 * torch.randn(shape, generator=random, dtype=torch.float64)
    return x, z, torch.randn(width, generator=random, dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([1.0, 1e-3, 1e-8, 1e6]),
    st.sampled_from([1e-6, 1e-5, 0.5]),
    st.integers(0, 2**16),
)
def test_equals_the_derivation_by_hand(
    tokens: int, heads: int, width: int, amplitude: float, eps: float, seed: int
) -> None:
    x, z, weight = draw(tokens, heads, width, amplitude, seed)
    got = gated_rmsnorm(x, z, weight, eps=eps)
    torch.testing.assert_close(got, by_hand(x, z, weight, eps), rtol=1e-11, atol=1e-14)


def test_a_row_without_a_gate_has_unit_mean_square() -> None:
    x, z, weight = draw(4, 2, 16, 5.0, 0)
    y = gated_rmsnorm(x, torch.full_like(z, 50.0), torch.ones_like(weight), eps=1e-12) / 50.0
    torch.testing.assert_close(y.square().mean(-1), torch.ones(4, 2, dtype=torch.float64))


def test_zero_rows_and_shut_gates_give_zero() -> None:
    x, z, weight = draw(3, 2, 5, 1.0, 1)
    for row, gate in ((torch.zeros_like(x), z), (x, torch.zeros_like(z)), (x, torch.full_like(z, -1e4))):
        y = gated_rmsnorm(row, gate, weight)
        assert bool((y == 0).all())


def test_the_norm_comes_before_the_gate() -> None:
    """A gate of one size for a whole row would be lost if it were normalised with it."""
    x, _, weight = draw(2, 2, 6, 1.0, 2)
    weak, strong = (gated_rmsnorm(x, torch.full_like(x, size), weight) for size in (50.0, 100.0))
    torch.testing.assert_close(strong, 2 * weak)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rounds_once_to_the_dtype_of_x(dtype: torch.dtype) -> None:
    x, z, weight = (t.to(dtype) for t in draw(5, 2, 33, 1.0, 3))
    for compute in (torch.float32, torch.float64):
        y = gated_rmsnorm(x, z, weight, compute_dtype=compute)
        exact = gated_rmsnorm(x.double(), z.double(), weight.double())
        assert (y.dtype, exact.dtype) == (dtype, torch.float64)
        # Half a unit in the last place, and float32's own error.
        unit = torch.finfo(dtype).eps / 2
        assert bool(((y.double() - exact).abs() <= (unit + 2**-20) * exact.abs() + 1e-7).all())
