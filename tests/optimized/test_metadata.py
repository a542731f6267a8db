"""Logical chunks and step metadata: fixed examples, random batches against the references, hints, arguments, flags."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from optimized import baselines, chunk_metadata, step_metadata
from references.chunk_metadata import chunk_metadata as reference_chunks
from references.step_metadata import step_metadata as reference_steps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Implementation = Callable[..., tuple[torch.Tensor, torch.Tensor]]
IMPLEMENTATIONS = [
    pytest.param(chunk_metadata.chunk_metadata, id="dispatch"),
    pytest.param(chunk_metadata.chunk_metadata_kernel, id="kernel"),
    pytest.param(chunk_metadata.chunk_metadata_host, id="host"),
    pytest.param(baselines.chunk_metadata, id="baseline"),
]
HINTED = IMPLEMENTATIONS[:3]


def starts_of(lengths: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=dtype, device=DEVICE)


def assert_chunks(got: tuple[torch.Tensor, torch.Tensor], indices: torch.Tensor, offsets: torch.Tensor) -> None:
    for result, wanted in zip(got, (indices, offsets), strict=True):
        assert result.dtype == torch.int32
        assert result.cpu().tolist() == wanted.cpu().tolist()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("lengths", "chunk_size", "indices", "offsets"),
    [
        pytest.param([], 8, [], [], id="no sequence"),
        pytest.param([0], 8, [], [], id="one empty sequence"),
        pytest.param([0, 0], 8, [], [], id="two empty sequences"),
        pytest.param([16], 8, [0, 1], [0, 0], id="aligned"),
        pytest.param([10], 8, [0, 1], [0, 0], id="one sequence, unaligned end"),
        pytest.param([8, 8], 8, [0, 1], [0, 0], id="aligned boundary"),
        pytest.param([5, 5], 8, [0, 0, 1], [0, 5, 0], id="unaligned boundary"),
        pytest.param([1, 1, 1], 4, [0, 0, 0], [0, 1, 2], id="three in one physical chunk"),
        pytest.param([1, 0], 4, [0], [0], id="empty at an unaligned end"),
        pytest.param([8, 0], 8, [0], [0], id="empty at an aligned end"),
        pytest.param([0, 3, 0, 0, 2], 4, [0, 0, 1], [0, 3, 0], id="empties between"),
        pytest.param([3, 2, 1], 1, [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0], id="chunk size 1"),
    ],
)
def test_fixed_examples(
    implementation: Implementation, lengths: list[int], chunk_size: int, indices: list[int], offsets: list[int]
) -> None:
    got = implementation(starts_of(lengths), chunk_size)
    assert_chunks(got, torch.tensor(indices), torch.tensor(offsets))


def draw_lengths(rng: random.Random, chunk_size: int, sequences: int) -> list[int]:
    edges = [0, 0, 1, 2, 3, chunk_size - 1, chunk_size, chunk_size + 1, 2 * chunk_size]
    return [rng.choice([*edges, rng.randrange(40)]) for _ in range(sequences)]


def test_random_batches_equal_the_reference() -> None:
    rng = random.Random(20)
    for case in range(600):
        chunk_size = rng.choice([1, 2, 3, 7, 8, 16, 64])
        lengths = draw_lengths(rng, chunk_size, rng.choice([0, 1, 2, 3, 9, 30, 70]))
        starts = starts_of(lengths, rng.choice([torch.int32, torch.int64]))
        wanted = reference_chunks(starts, chunk_size)
        extra = chunk_metadata.count_extra_chunks(lengths, chunk_size)
        assert len(wanted[0]) == -(-sum(lengths) // chunk_size) + extra
        hints = {"total_seqlens": sum(lengths), "extra_chunks": extra} if rng.random() < 0.5 else {}
        assert_chunks(chunk_metadata.chunk_metadata_host(starts, chunk_size, **hints), *wanted)
        if case % 6 == 0:  # the interpreter takes milliseconds for each
            assert_chunks(chunk_metadata.chunk_metadata_kernel(starts, chunk_size, **hints), *wanted)
            assert_chunks(baselines.chunk_metadata(starts, chunk_size, **hints), *wanted)


@pytest.mark.parametrize("implementation", HINTED)
@pytest.mark.parametrize("chunks", [255, 256, 257, 513])
def test_block_edges_of_the_kernel(implementation: Implementation, chunks: int) -> None:
    lengths = [1] * (chunks - 2) + [64, 1]
    starts = starts_of(lengths)
    wanted = reference_chunks(starts, 64)
    assert_chunks(implementation(starts, 64), *wanted)


@pytest.mark.parametrize("implementation", HINTED)
def test_starts_close_to_the_end_of_int32(implementation: Implementation) -> None:
    last = 2**31 - 1
    starts = torch.tensor([0, 5, 2**30 + 3, last - 7, last - 7, last], dtype=torch.int32, device=DEVICE)
    got = implementation(starts, 2**29)
    indices = [0, 0, 1, 2, 2, 3, 3]
    offsets = [0, 5, 0, 0, 3, 0, 2**29 - 8]
    assert_chunks(got, torch.tensor(indices), torch.tensor(offsets))


@pytest.mark.parametrize("implementation", HINTED)
def test_strided_starts(implementation: Implementation) -> None:
    starts = starts_of([5, 0, 7, 9])
    spread = torch.full((10,), -1, dtype=torch.int32, device=DEVICE)[::2]
    spread.copy_(starts)
    assert_chunks(implementation(spread, 4), *reference_chunks(starts, 4))


@pytest.mark.parametrize("implementation", HINTED)
def test_false_hints_stay_inside_the_outputs(implementation: Implementation) -> None:
    starts = starts_of([5, 5, 6])
    for total, extra, chunks in ((16, 0, 2), (8, 2, 3), (16, 5, 7), (40, 2, 7), (0, 0, 0)):
        indices, offsets = implementation(starts, 8, total_seqlens=total, extra_chunks=extra)
        assert indices.shape == offsets.shape == (chunks,)


@pytest.mark.parametrize("implementation", HINTED)
@pytest.mark.parametrize(
    ("hints", "argument"),
    [
        ({"total_seqlens": 15}, "total_seqlens"),
        ({"total_seqlens": 17, "extra_chunks": 2}, "total_seqlens"),
        ({"extra_chunks": 1}, "extra_chunks"),
        ({"total_seqlens": 16, "extra_chunks": 3}, "extra_chunks"),
    ],
)
def test_strict_mode_refuses_false_hints(
    implementation: Implementation, hints: dict[str, int], argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICEGATE_STRICT", "1")
    starts = starts_of([5, 5, 6])
    assert len(implementation(starts, 8, total_seqlens=16, extra_chunks=2)[0]) == 4
    with pytest.raises(ValueError, match=f"^{argument}: got "):
        implementation(starts, 8, **hints)


@pytest.mark.parametrize("starts", [[1, 4], [0, 5, 4, 9]])
def test_strict_mode_refuses_starts_that_are_none(starts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_STRICT", "1")
    with pytest.raises(ValueError, match=r"^cu_seqlens: got "):
        chunk_metadata.chunk_metadata(torch.tensor(starts, device=DEVICE), 4)


@pytest.mark.parametrize("implementation", HINTED)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("cu_seqlens", [0, 4]),
        ("cu_seqlens", torch.zeros(2, 2, dtype=torch.int32)),
        ("cu_seqlens", torch.zeros(0, dtype=torch.int32)),
        ("cu_seqlens", torch.zeros(3)),
        ("chunk_size", 0),
        ("chunk_size", 8.0),
        ("chunk_size", 2**31),
        ("total_seqlens", -1),
        ("total_seqlens", 4.5),
        ("extra_chunks", -1),
        ("extra_chunks", True),
    ],
)
def test_wrong_arguments(implementation: Implementation, argument: str, value: Any) -> None:
    arguments: dict[str, Any] = {"cu_seqlens": starts_of([4]), "chunk_size": 8, argument: value}
    with pytest.raises(ValueError, match=rf"^{argument}: got .*, expected .*; "):
        implementation(**arguments)


def test_count_extra_chunks_refuses_negative_lengths() -> None:
    with pytest.raises(ValueError, match=r"^lengths: got -1 in row 1"):
        chunk_metadata.count_extra_chunks([3, -1], 8)


class Operations(TorchDispatchMode):
    """Names of the operations that went through the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_closed_form_reads_no_value() -> None:
    starts = starts_of([5, 0, 7, 9])
    with Operations() as seen:
        chunk_metadata.chunk_metadata_host(starts, 4, total_seqlens=21, extra_chunks=2)
    assert "cumsum" in seen.names
    assert not {"_local_scalar_dense", "item", "nonzero", "index", "index_put_", "masked_select"} & set(seen.names)


def draw_step(rng: random.Random, chunk_size: int) -> dict[str, Any]:
    rows = rng.randrange(25)
    num_contexts = rng.choice([0, rows, rng.randrange(rows + 1)])
    contexts = draw_lengths(rng, chunk_size, num_contexts)
    resumed = rng.random() < 0.6
    return {
        "seq_lens": contexts + [rng.choice([0, 1, 1, 1, 3]) for _ in range(rows - num_contexts)],
        "num_contexts": num_contexts,
        "num_cached_tokens": [rng.choice([0, 1, 70]) if resumed else 0 for _ in range(rows)],
        "state_slots": [slot if rng.random() < 0.8 else -1 for slot in rng.sample(range(60), rows)],
    }


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 64])
def test_steps_equal_the_reference_at_stable_addresses(chunk_size: int) -> None:
    rng = random.Random(chunk_size)
    builder = step_metadata.step_metadata(25, chunk_size, DEVICE, max_num_tokens=5000)
    builders = (reference_steps(25, chunk_size, DEVICE), baselines.step_metadata(25, chunk_size, DEVICE))
    addresses: dict[str, int] = {}
    for _ in range(150):
        step = draw_step(rng, chunk_size)
        got = builder.prepare(**step)
        for other in builders:
            wanted = other.prepare(**step)
            for name in (field.name for field in fields(got)):
                mine, theirs = getattr(got, name), getattr(wanted, name)
                assert (mine is None) == (theirs is None), (name, step)
                if mine is not None:
                    assert mine.dtype == theirs.dtype, name
                    assert torch.equal(mine, theirs), (name, step)
                    if mine.numel() > 0:
                        assert addresses.setdefault(name, mine.data_ptr()) == mine.data_ptr(), name


def test_flags_are_never_stale() -> None:
    builder = step_metadata.step_metadata(4, 8, DEVICE)
    resumed = builder.prepare(seq_lens=[3, 3], num_contexts=2, num_cached_tokens=[9, 9], state_slots=[0, 1])
    assert resumed.has_initial_state.tolist() == [True, True]
    fresh = builder.prepare(seq_lens=[3, 3], num_contexts=2, num_cached_tokens=[0, 0], state_slots=[0, 1])
    assert fresh.has_initial_state.tolist() == [False, False]
    assert fresh.chunk_indices is None
    decode = builder.prepare(seq_lens=[1, 1], num_contexts=0, num_cached_tokens=[6, 0], state_slots=[0, -1])
    assert decode.has_initial_state.tolist() == [True, False]
    assert decode.query_start_loc.tolist() == [0, 1, 2]
    assert decode.seq_idx.numel() == 0


GOOD_STEP: dict[str, Any] = {
    "seq_lens": [2, 3, 1],
    "num_contexts": 2,
    "num_cached_tokens": [4, 0, 8],
    "state_slots": [1, 0, 2],
}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seq_lens", [2, -1, 1]),
        ("seq_lens", [2, 3, 100]),
        ("seq_lens", [2**62, 2**62, 2**62]),
        ("seq_lens", [2, 3.0, 1]),
        ("num_contexts", 4),
        ("num_contexts", -1),
        ("num_cached_tokens", [4, 0]),
        ("num_cached_tokens", [4, -2, 8]),
        ("state_slots", [1, 0, 2, 3]),
        ("state_slots", [1, 0, 2**31]),
        ("state_slots", [1, 0, None]),
    ],
)
def test_wrong_steps_leave_the_buffers_alone(argument: str, value: Any) -> None:
    builder = step_metadata.step_metadata(3, 4, DEVICE, max_num_tokens=50)
    before = builder.prepare(**GOOD_STEP)
    kept = {field.name: getattr(before, field.name).clone() for field in fields(before)}
    with pytest.raises(ValueError, match=rf"^{argument}: got .*, expected .*; "):
        builder.prepare(**{**GOOD_STEP, argument: value})
    for name, values in kept.items():
        assert torch.equal(getattr(before, name), values), name


def test_too_many_rows() -> None:
    builder = step_metadata.step_metadata(2, 4, DEVICE)
    with pytest.raises(ValueError, match=r"^seq_lens: got 3 rows, expected at most max_batch_size=2; "):
        builder.prepare(**GOOD_STEP)


def test_strict_mode_refuses_a_slot_in_two_active_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = step_metadata.step_metadata(3, 4, DEVICE)
    twice = {**GOOD_STEP, "state_slots": [5, -1, 5]}
    assert builder.prepare(**twice).state_indices.tolist() == [5, -1, 5]
    monkeypatch.setenv("SLUICEGATE_STRICT", "1")
    with pytest.raises(ValueError, match=r"^state_slots: got slot 5 in rows \[0, 2\]"):
        builder.prepare(**twice)
    padded = builder.prepare(**{**GOOD_STEP, "state_slots": [-1, 5, -1]})
    assert padded.state_indices.tolist() == [-1, 5, -1]


@pytest.mark.parametrize(("argument", "sizes"), [("max_batch_size", (-1, 8)), ("chunk_size", (4, 0))])
def test_wrong_sizes(argument: str, sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}: got "):
        step_metadata.step_metadata(*sizes, DEVICE)


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
def test_no_host_sync_and_no_overwritten_copy_on_cuda() -> None:
    builder = step_metadata.step_metadata(8, 4, DEVICE)
    starts = starts_of([5, 0, 7, 9])
    chunk_metadata.chunk_metadata(starts, 4, total_seqlens=21, extra_chunks=2)
    collected = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        chunk_metadata.chunk_metadata(starts, 4, total_seqlens=21, extra_chunks=2)
        for step in range(20):
            torch.cuda._sleep(1_000_000)  # the device falls behind, so that copies queue up
            rows = builder.prepare(
                seq_lens=[1] * 8, num_contexts=0, num_cached_tokens=[step] * 8, state_slots=range(step, step + 8)
            )
            collected.append(rows.state_indices.clone())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, slots in enumerate(collected):
        assert slots.tolist() == list(range(step, step + 8))
