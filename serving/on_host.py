"""Many small tensors of a device on the host, in one transfer: each one that is waited for costs more than what it brings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values on the host, of any dtypes. What is there already is handed back itself, not copied."""
    out: list[Tensor] = list(tensors)
    places = [place for place, tensor in enumerate(tensors) if tensor.device.type != "cpu"]
    if not places:
        return out
    elsewhere = [tensors[place] for place in places]
    for place, tensor in zip(places, unpacked(packed(elsewhere).cpu(), elsewhere), strict=True):
        out[place] = tensor
    return out


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """uint8: all bytes of these, where they are."""
    return torch.cat([tensors[place].contiguous().view(-1).view(torch.uint8) for place in _places(tensors)])


def unpacked(content: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of `content` that have the dtypes and shapes of those that were packed."""
    out: list[Tensor] = list(tensors)
    start = 0
    for place in _places(tensors):
        tensor = tensors[place]
        end = start + tensor.numel() * tensor.element_size()
        out[place] = content[start:end].view(tensor.dtype).view(tensor.shape)
        start = end
    return out


def _places(tensors: Sequence[Tensor]) -> list[int]:
    """Wide elements first: a view as wider elements must begin at a multiple of their size."""
    return sorted(range(len(tensors)), key=lambda place: -tensors[place].element_size())
