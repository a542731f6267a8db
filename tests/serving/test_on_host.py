"""Values, dtypes and shapes are the same on the host; what is there already is not copied."""

from __future__ import annotations

import pytest
import torch

from serving.on_host import on_host, packed, unpacked


def tensors(device: str) -> list[torch.Tensor]:
    """Bytes before wide elements, nothing at all, and what is not contiguous."""
    return [
        torch.tensor([True, False, True], device=device),
        torch.arange(6, dtype=torch.int32, device=device).view(2, 3).T,
        torch.empty(0, dtype=torch.int64, device=device),
        torch.tensor([[1.5, float("nan")]], dtype=torch.float64, device=device),
        torch.tensor(7, dtype=torch.int64, device=device),
        torch.tensor([0.5], dtype=torch.bfloat16, device=device),
    ]


def test_what_is_on_the_host_is_handed_back() -> None:
    given = tensors("cpu")
    assert all(got is one for got, one in zip(on_host(given), given, strict=True))


def test_what_was_packed_is_unpacked() -> None:
    given = tensors("cpu")
    content = packed(given)
    assert (content.dtype, len(content)) == (torch.uint8, 3 + 24 + 0 + 16 + 8 + 2)
    for got, expected in zip(unpacked(content, given), given, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_what_is_on_a_gpu_is_the_same_on_the_host() -> None:
    some = [
        there if place % 2 else here
        for place, (there, here) in enumerate(zip(tensors("cuda"), tensors("cpu"), strict=True))
    ]
    for given in (tensors("cuda"), some):
        for got, expected in zip(on_host(given), tensors("cpu"), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
