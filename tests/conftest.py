"""Without a GPU, kernels run under Triton's interpreter, which has to be asked for before Triton is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# pytest-xdist gives every core a process; threads of theirs would only wait for each other.
torch.set_num_threads(1)
