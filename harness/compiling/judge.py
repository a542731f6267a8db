"""What is wrong with the figures of one compiled kernel, in words that say what to do."""

from __future__ import annotations

from harness.compiling.device import Architecture
from harness.compiling.resources import Figures

#: Columns of tensor memory of a multiprocessor (PTX ISA, tcgen05); only Blackwell's data-centre parts have any.
TENSOR_MEMORY = 512


def spilled(figures: Figures) -> list[str]:
    """Registers that went to memory and back: the kernel runs, but slower than its author thinks."""
    if not figures.spills:
        return []
    return [
        f"spills {figures.spill_stores} bytes a thread ({figures.spill_loads} read back) at {figures.registers} registers;"
        " use smaller tiles or more warps"
    ]


def exceeded(figures: Figures, arch: Architecture) -> list[str]:
    """Limits of ``arch`` that do not let the kernel start."""
    found = []
    if figures.shared > arch.shared:
        found.append(
            f"needs {figures.shared:,} bytes of shared memory, {arch.name} has {arch.shared:,} a block; use smaller tiles or"
            " fewer stages"
        )
    if figures.tensor_memory > TENSOR_MEMORY:
        found.append(
            f"needs {figures.tensor_memory} columns of tensor memory, {arch.name} has {TENSOR_MEMORY}; use smaller tiles"
        )
    return found
