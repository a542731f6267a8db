"""The chunk reference against a walk over single tokens, and against the closed form over sequence boundaries."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from references.chunk_metadata import MAX_TOKENS, chunk_metadata, count_extra_chunks

chunk_sizes = st.sampled_from([1, 2, 3, 4, 7, 8, 16, 64, 128])


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], int]:
    """(lengths, chunk size), with lengths near multiples of the chunk size among them."""
    chunk_size = draw(chunk_sizes)
    near_chunk = st.builds(
        lambda multiple, delta: max(0, multiple * chunk_size + delta), st.integers(0, 3), st.integers(-2, 2)
    )
    lengths = draw(st.lists(st.integers(0, 3) | near_chunk | st.integers(0, 40), max_size=12))
    return lengths, chunk_size


def starts_of(lengths: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=dtype)


def token_walk(lengths: list[int], chunk_size: int) -> list[tuple[int, int]]:
    """(index, offset) of each logical chunk, found by looking at every token's owner and physical chunk."""
    owners = [n for n, length in enumerate(lengths) for _ in range(length)]
    runs: list[tuple[int, int]] = []
    before = None
    for token, owner in enumerate(owners):
        here = (token // chunk_size, owner)
        if here != before:
            runs.append((token // chunk_size, token % chunk_size))
        before = here
    return runs


def closed_form(lengths: list[int], chunk_size: int) -> list[tuple[int, int]]:
    """The same from boundaries alone: each misaligned one inserts a logical chunk and delays the indices after it."""
    present = [length for length in lengths if length > 0]
    total = sum(present)
    interior = list(itertools.accumulate(present))[:-1]
    inserted: dict[int, int] = {}
    for boundary in interior:
        if boundary % chunk_size:
            inserted[boundary // chunk_size + len(inserted) + 1] = boundary % chunk_size
    count = -(-total // chunk_size) + len(inserted)
    return [(j - sum(pos <= j for pos in inserted), inserted.get(j, 0)) for j in range(count)]


def as_pairs(result: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[int, int]]:
    return list(zip(result[0].tolist(), result[1].tolist(), strict=True))


@settings(deadline=None)
@given(batches(), st.sampled_from([torch.int32, torch.int64]))
@example(([1, 0], 4), torch.int32)
@example(([8, 0], 8), torch.int32)
@example(([0, 0], 8), torch.int64)
def test_chunks_equal_token_walk_and_closed_form(batch: tuple[list[int], int], dtype: torch.dtype) -> None:
    lengths, chunk_size = batch
    indices, offsets = chunk_metadata(starts_of(lengths, dtype), chunk_size)
    assert indices.dtype == offsets.dtype == torch.int32
    assert as_pairs((indices, offsets)) == token_walk(lengths, chunk_size)
    assert as_pairs((indices, offsets)) == closed_form(lengths, chunk_size)


@settings(deadline=None)
@given(batches())
@example(([5, 3], 8))
@example(([5, 0, 3], 8))
def test_count_is_whole_chunks_plus_extra(batch: tuple[list[int], int]) -> None:
    lengths, chunk_size = batch
    indices, _ = chunk_metadata(starts_of(lengths), chunk_size)
    assert len(indices) == -(-sum(lengths) // chunk_size) + count_extra_chunks(lengths, chunk_size)


@settings(deadline=None)
@given(batches(), st.data())
def test_empty_sequences_change_nothing(batch: tuple[list[int], int], data: st.DataObject) -> None:
    lengths, chunk_size = batch
    where = data.draw(st.integers(0, len(lengths)))
    with_empty = [*lengths[:where], 0, *lengths[where:]]
    without, with_ = chunk_metadata(starts_of(lengths), chunk_size), chunk_metadata(starts_of(with_empty), chunk_size)
    assert as_pairs(with_) == as_pairs(without)
    assert count_extra_chunks(with_empty, chunk_size) == count_extra_chunks(lengths, chunk_size)


@pytest.mark.parametrize(
    ("starts", "chunk_size", "indices", "offsets"),
    [
        ([0], 8, [], []),
        ([0, 0], 8, [], []),
        ([0, 16], 8, [0, 1], [0, 0]),
        ([0, 10], 8, [0, 1], [0, 0]),
        ([0, 8, 16], 8, [0, 1], [0, 0]),
        ([0, 5, 10], 8, [0, 0, 1], [0, 5, 0]),
        ([0, 1, 1], 4, [0], [0]),
        ([0, 8, 8], 8, [0], [0]),
        ([0, 1, 2, 3], 1, [0, 1, 2], [0, 0, 0]),
    ],
)
def test_known_batches(starts: list[int], chunk_size: int, indices: list[int], offsets: list[int]) -> None:
    got = chunk_metadata(torch.tensor(starts, dtype=torch.int32), chunk_size)
    assert (got[0].tolist(), got[1].tolist()) == (indices, offsets)


def test_hints_are_ignored_outside_strict_mode_and_checked_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = torch.tensor([0, 5, 10], dtype=torch.int32)
    monkeypatch.delenv("SLUICEGATE_STRICT", raising=False)
    expected = as_pairs(chunk_metadata(starts, 8))
    assert as_pairs(chunk_metadata(starts, 8, total_seqlens=99, extra_chunks=99)) == expected

    monkeypatch.setenv("SLUICEGATE_STRICT", "1")
    assert as_pairs(chunk_metadata(starts, 8, total_seqlens=10, extra_chunks=1)) == expected
    for total in (9, 11, -1):
        with pytest.raises(ValueError, match="total_seqlens"):
            chunk_metadata(starts, 8, total_seqlens=total)
    for extra in (0, 2, -1):
        with pytest.raises(ValueError, match="extra_chunks"):
            chunk_metadata(starts, 8, extra_chunks=extra)
    for bad_starts in ([1, 4], [0, 5, 4]):
        with pytest.raises(ValueError, match="cu_seqlens"):
            chunk_metadata(torch.tensor(bad_starts, dtype=torch.int32), 8)


@pytest.mark.parametrize(
    ("starts", "chunk_size", "name"),
    [
        (torch.tensor([], dtype=torch.int32), 8, "cu_seqlens"),
        (torch.tensor([[0, 4]], dtype=torch.int32), 8, "cu_seqlens"),
        (torch.tensor([0.0, 4.0]), 8, "cu_seqlens"),
        (torch.tensor([0, 4], dtype=torch.int32), 0, "chunk_size"),
        (torch.tensor([0, MAX_TOKENS + 1], dtype=torch.int32), 8, "cu_seqlens"),
    ],
)
def test_wrong_arguments_are_named(starts: torch.Tensor, chunk_size: int, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        chunk_metadata(starts, chunk_size)
