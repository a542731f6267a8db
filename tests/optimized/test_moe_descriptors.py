"""The benchmark's products on tensor descriptors compute what those in use do: a figure of another result says nothing."""

from __future__ import annotations

import pytest
import torch

from benchmarks import moe_descriptors
from benchmarks.moe_descriptors import Persistent
from harness import interpreter
from optimized.moe_launches import Blocks, Launch

pytestmark = pytest.mark.skipif(
    not interpreter.requested(),
    reason="Triton compiles for an NVIDIA GPU here; ci runs the interpreter's tests on a CPU",
)


@pytest.mark.parametrize("columns", [16, 32])
@pytest.mark.parametrize("size", [32, 48])
def test_both_products_agree_with_those_in_use(columns: int, size: int) -> None:
    interpreter.repair()
    experts, hidden, tile = 5, 64, 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        given = torch.randn(experts, 2 * size, hidden), torch.randn(experts, hidden, size)
        batch = moe_descriptors.sorted_batch(60, experts, 2, hidden, size, tile, "cpu", given)
    assert int(batch.num_tiles) > experts  # one expert at least has rows for two
    blocks = Blocks(32, 32, 4, 1)
    wanted = moe_descriptors.by_pointers(batch, Launch(tile, blocks, blocks))
    got = moe_descriptors.by_descriptors(batch, Persistent(tile, columns, 32, 4, 1, 0, True))
    for product, other in zip(wanted, got, strict=True):
        # Sums of at most 64 float32 numbers in another order; a wrong row would be off by about all of it.
        assert (other() - product()).norm() < 1e-6 * product().norm()
