"""Many small tensors of a device on the host, in one transfer: each one that is waited for costs more than what it brings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values on the host, of any dtypes. What is there already is handed back itself, not copied."""
    out: list[Tensor] = list(tensors)
    elsewhere = [place for place, tensor in enumerate(tensors) if tensor.device.type != "cpu"]
    if not elsewhere:
        return out
    # Wide elements first: a view as wider elements must begin at a multiple of their size.
    places = sorted(elsewhere, key=lambda place: -tensors[place].element_size())
    flat = [tensors[place].contiguous().view(-1).view(torch.uint8) for place in places]
    packed = torch.cat(flat).cpu()
    for place, part in zip(places, packed.split([len(one) for one in flat]), strict=True):
        out[place] = part.view(tensors[place].dtype).view(tensors[place].shape)
    return out
