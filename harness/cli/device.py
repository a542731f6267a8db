"""Which device a command uses. Decided before anything imports Triton: the interpreter is chosen at import."""

from __future__ import annotations

import os
from typing import Literal

DeviceChoice = Literal["auto", "cpu", "cuda"]


def choose(device: str) -> str:
    """``auto`` is cuda where there is one. On a CPU, kernels run in Triton's interpreter.

    Raises ValueError for cuda on a machine without it.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError(
            "--device: got cuda, but torch sees no CUDA device; use --device cpu, or install a CUDA build of torch"
        )
    chosen = ("cuda" if available else "cpu") if device == "auto" else device
    if chosen == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        # An inherited setting would silently run every kernel on the host.
        os.environ.pop("TRITON_INTERPRET", None)
    return chosen
