"""Without a GPU, kernels run under Triton's interpreter, which has to be asked for before Triton is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
