"""The operators that a model computes with, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class KernelSet:
    """One implementation of each operator, with the signatures of the operators' contracts (ARCHITECTURE.md).

    chunk_size: of the logical chunks that `step_metadata` builds, and where a prefix may be cut without changing a bit.
    """

    step_metadata: Callable[..., Any]
    conv_prefill: Callable[..., Any]
    conv_update: Callable[..., Any]
    gdn_prefill: Callable[..., Any]
    gdn_decode: Callable[..., Any]
    gated_rmsnorm: Callable[..., Any]
    moe: Callable[..., Any]
    chunk_size: int = 64

    def replaced(self, **operators: Any) -> KernelSet:
        """The same set with other implementations of the named operators."""
        return replace(self, **operators)
