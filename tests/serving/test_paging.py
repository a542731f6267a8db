"""Where keys go: a padding row must not undo what a real row writes, not even at the first place of the first page."""

from __future__ import annotations

import pytest
import torch

from serving.blocks.paging import Paging, writes


@pytest.mark.parametrize("slots", [[0, -1], [-1, 0, -1], [5, 0, -1, -1], [-1, -1], [3, 1], []])
def test_only_real_rows_write(slots: list[int]) -> None:
    pool = torch.full((3, 2, 1, 1), torch.nan)
    source, target, written = writes(torch.tensor(slots, dtype=torch.int64))
    paging = Paging(source, target, written, [], target, written)
    paging.store(pool, torch.arange(10.0, 10.0 + len(slots))[:, None, None])
    expected = torch.full((6,), torch.nan)
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[slot] = 10.0 + row
    assert torch.equal(pool.flatten().nan_to_num(nan=-1.0), expected.nan_to_num(nan=-1.0))
