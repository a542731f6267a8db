"""Planted faults run kernels, and without a GPU that means the interpreter, chosen before Triton is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def _few_draws() -> Iterator[None]:
    """Pages of tests are content with fewer cases to compare with."""
    from harness.faults import reverse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reverse, "DRAWN", 60)
        yield
