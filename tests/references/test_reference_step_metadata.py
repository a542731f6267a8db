"""The step reference against a toy server that remembers every token of every request."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from references.step_metadata import StepMetadata, step_metadata


@dataclass
class Request:
    """A prompt that arrives in pieces, then decodes; `history` holds the position of each token processed so far."""

    slot: int
    pieces: list[int]
    decodes: int
    history: list[int] = field(default_factory=list)


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    shapes = draw(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=3), st.integers(0, 3)), max_size=6))
    slots = draw(st.permutations(range(10)))
    return [Request(slot, list(pieces), decodes) for slot, (pieces, decodes) in zip(slots, shapes, strict=False)]


def expected(
    contexts: list[Request], packed: list[tuple[int, int]], rows: list[Request], chunk_size: int
) -> StepMetadata:
    """From the packed tokens themselves, each a (row, position in its request's history)."""
    owners = [row for row, _ in packed]
    of_contexts = [row for row in owners if row < len(contexts)]
    first_new = [
        min((pos for r, pos in packed if r == row), default=len(rows[row].history)) for row in range(len(rows))
    ]
    chunks: dict[tuple[int, int], int] = {}
    for token, row in enumerate(of_contexts):
        chunks.setdefault((token // chunk_size, row), token)
    any_resumed = any(first > 0 for first in first_new[: len(contexts)])
    return StepMetadata(
        query_start_loc=torch.tensor([sum(o < row for o in owners) for row in range(len(rows) + 1)], dtype=torch.int32),
        has_initial_state=torch.tensor([first > 0 for first in first_new], dtype=torch.bool),
        state_indices=torch.tensor([request.slot for request in rows], dtype=torch.int32),
        seq_idx=torch.tensor(of_contexts, dtype=torch.int32),
        chunk_indices=torch.tensor([c for c, _ in chunks], dtype=torch.int32) if any_resumed else None,
        chunk_offsets=torch.tensor([t % chunk_size for t in chunks.values()], dtype=torch.int32)
        if any_resumed
        else None,
    )


def assert_same(got: StepMetadata, want: StepMetadata) -> None:
    for name, value in vars(want).items():
        other = getattr(got, name)
        if value is None:
            assert other is None, name
        else:
            assert other.dtype == value.dtype, name
            assert other.tolist() == value.tolist(), name


@settings(deadline=None)
@given(workloads(), st.sampled_from([1, 2, 3, 4, 8]), st.integers(0, 2), st.randoms(use_true_random=False))
def test_every_step_equals_the_histories(requests: list[Request], chunk_size: int, padding: int, random) -> None:
    builder = step_metadata(8, chunk_size, "cpu")
    while alive := [request for request in requests if request.pieces or request.decodes]:
        chosen = [request for request in alive if random.random() < 0.8]
        contexts = [request for request in chosen if request.pieces]
        decodes = [request for request in chosen if not request.pieces]
        rows = contexts + decodes + [Request(slot=-1, pieces=[], decodes=1) for _ in range(padding)]
        lengths = [request.pieces.pop(0) for request in contexts] + [1] * (len(decodes) + padding)
        for request in decodes:
            request.decodes -= 1

        got = builder.prepare(
            seq_lens=lengths,
            num_contexts=len(contexts),
            num_cached_tokens=[len(request.history) for request in rows],
            state_slots=[request.slot for request in rows],
        )
        packed = [(row, len(rows[row].history) + step) for row, length in enumerate(lengths) for step in range(length)]
        assert_same(got, expected(contexts, packed, rows, chunk_size))
        for row, position in packed:
            rows[row].history.append(position)


def test_flags_and_chunks_do_not_outlive_their_step() -> None:
    builder = step_metadata(2, 4, "cpu")
    resumed = builder.prepare(seq_lens=[3, 3], num_contexts=2, num_cached_tokens=[4, 4], state_slots=[1, 0])
    assert resumed.has_initial_state.tolist() == [True, True]
    assert resumed.chunk_indices is not None
    assert resumed.chunk_indices.tolist() == [0, 0, 1]
    assert resumed.chunk_offsets is not None
    assert resumed.chunk_offsets.tolist() == [0, 3, 0]
    fresh = builder.prepare(seq_lens=[3, 3], num_contexts=2, num_cached_tokens=[0, 0], state_slots=[1, 0])
    assert fresh.has_initial_state.tolist() == [False, False]
    assert fresh.chunk_indices is None
    assert fresh.chunk_offsets is None


def test_step_without_rows_and_pure_decode() -> None:
    builder = step_metadata(4, 4, "cpu")
    nothing = builder.prepare(seq_lens=[], num_contexts=0, num_cached_tokens=[], state_slots=[])
    assert nothing.query_start_loc.tolist() == [0]
    decode = builder.prepare(seq_lens=[1, 1], num_contexts=0, num_cached_tokens=[7, 9], state_slots=[3, -1])
    assert decode.query_start_loc.tolist() == [0, 1, 2]
    assert decode.state_indices.tolist() == [3, -1]
    assert decode.seq_idx.tolist() == []
    assert decode.seq_idx.dtype == torch.int32
    assert decode.chunk_indices is None


GOOD = {"seq_lens": [2, 1], "num_contexts": 1, "num_cached_tokens": [0, 5], "state_slots": [3, 4]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_cached_tokens": [0]},
        {"state_slots": [3, 4, 5]},
        {"seq_lens": [2, 1, 1], "num_cached_tokens": [0, 5, 5], "state_slots": [3, 4, 5]},
        {"num_contexts": -1},
        {"num_contexts": 3},
        {"seq_lens": [2, -1]},
        {"num_cached_tokens": [-1, 5]},
    ],
    ids=str,
)
def test_wrong_lists_are_named(wrong: dict) -> None:
    builder = step_metadata(2, 4, "cpu")
    builder.prepare(**GOOD)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        builder.prepare(**{**GOOD, **wrong})


def test_duplicate_active_slots_are_refused_in_strict_mode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = step_metadata(4, 4, "cpu")
    monkeypatch.delenv("SLUICEGATE_STRICT", raising=False)
    builder.prepare(**{**GOOD, "state_slots": [3, 3]})
    monkeypatch.setenv("SLUICEGATE_STRICT", "1")
    with pytest.raises(ValueError, match="slot 3 in rows 0 and 1"):
        builder.prepare(**{**GOOD, "state_slots": [3, 3]})
    builder.prepare(**{**GOOD, "state_slots": [-1, -1]})


@pytest.mark.parametrize(("arguments", "name"), [((-1, 4), "max_batch_size"), ((4, 0), "chunk_size")])
def test_wrong_factory_arguments_are_named(arguments: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        step_metadata(*arguments, "cpu")
