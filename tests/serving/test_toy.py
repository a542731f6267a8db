"""The toy's two forms agree, and each thing that an engine may get wrong changes its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from references.step_metadata import step_metadata
from serving import toy
from serving.batch import StepBatch
from serving.caches import Caches

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
MODEL = toy.Toy()


def caches(device: torch.device = toy.HOST) -> Caches:
    made = Caches.allocate(
        MODEL.config, slots=3, pages=8, page_size=2, dtype=MODEL.dtype, state_dtype=MODEL.dtype, device=device
    )
    # What an earlier owner left, so that reading it is no NaN but a plausible number.
    for pool in (*made.conv, *made.delta, *made.keys, *made.values):
        pool.fill_(5.0)
    return made


def step(start: int, end: int, *, context: bool = True, slot: int = 1) -> StepBatch:
    """Tokens start..end of the request in slot 1 and pages 6, 2, 5, 0."""
    table = [6, 2, 5, 0]
    metadata = step_metadata(1, 4, "cpu").prepare(
        seq_lens=[end - start], num_contexts=int(context), num_cached_tokens=[start], state_slots=[slot]
    )
    return StepBatch(
        tokens=torch.tensor(TOKENS[start:end]),
        positions=torch.arange(start, end),
        metadata=metadata,
        num_contexts=int(context),
        context_lens=[end - start] if context else [],
        write_slots=torch.tensor([table[p // 2] * 2 + p % 2 for p in range(start, end)]),
        page_tables=torch.tensor([table], dtype=torch.int32),
        lengths=torch.tensor([end], dtype=torch.int32),
        max_length=end,
        logit_rows=torch.arange(end - start),
    )


@pytest.mark.parametrize("cuts", [(), (1,), (3, 4), (1, 2, 3, 4, 5, 6, 7)])
def test_pieces_and_decodes_say_what_one_pass_says(cuts: tuple[int, ...]) -> None:
    memory, edges = caches(), [0, *cuts, len(TOKENS)]
    rows = [
        MODEL(step(start, end, context=start < 4), memory)
        for start, end in pairwise(edges)
        if start < 4 or end - start == 1
    ]
    got = torch.cat(rows)
    assert torch.equal(got, toy.alone(TOKENS)[: len(got)])


def _swapped_pages(batch: StepBatch) -> None:
    batch.page_tables[0, :2] = torch.tensor([2, 6])


def _set(name: str, value: object) -> Callable[[StepBatch], None]:
    return lambda batch: setattr(batch, name, value)


def _metadata(name: str, value: torch.Tensor) -> Callable[[StepBatch], None]:
    return lambda batch: object.__setattr__(batch.metadata, name, value)


@pytest.mark.parametrize(
    "change",
    [
        _swapped_pages,
        _set("positions", torch.tensor([5, 6])),
        _set("positions", torch.tensor([7, 5])),
        _set("lengths", torch.tensor([5], dtype=torch.int32)),
        _set("write_slots", torch.tensor([9, 8])),
        _set("tokens", torch.tensor([5, 8])),
        _metadata("state_indices", torch.tensor([2], dtype=torch.int32)),
        _metadata("has_initial_state", torch.tensor([False])),
        _metadata("seq_idx", torch.tensor([0, 1], dtype=torch.int32)),
    ],
    ids=[
        "pages",
        "positions",
        "position of a token without logits",
        "lengths",
        "writes",
        "tokens",
        "slot",
        "flag",
        "owners",
    ],
)
def test_one_wrong_number_changes_the_logits(change: Callable[[StepBatch], None]) -> None:
    memory = caches()
    MODEL(step(0, 4), memory)
    batch = step(4, 6)
    change(batch)
    assert not torch.equal(MODEL(batch, memory)[-1], toy.alone(TOKENS)[5])


def test_a_fresh_context_ignores_its_slot_and_a_decode_does_not() -> None:
    fresh = MODEL(step(0, 1), caches())
    assert torch.equal(fresh, toy.alone(TOKENS)[:1])
    assert not torch.equal(MODEL(step(0, 1, context=False), caches()), fresh)


def test_a_padding_row_reads_and_writes_nothing() -> None:
    memory, before = caches(), caches()
    batch = step(0, 1, context=False, slot=-1)
    batch.write_slots.fill_(-1)
    assert torch.equal(MODEL(batch, memory), torch.zeros(1, toy.VOCABULARY))
    for name in ("conv", "delta", "keys", "values"):
        assert torch.equal(getattr(memory, name)[0], getattr(before, name)[0])


def test_pools_may_have_strides() -> None:
    """As those of an engine that keeps keys and values beside each other."""
    strided = caches()
    for pools in (strided.conv, strided.delta, strided.keys, strided.values):
        pools[0] = torch.stack([pools[0], pools[0]], dim=1)[:, 0]
        assert not pools[0].is_contiguous()
    dense = caches()
    for start, end in ((0, 4), (4, 6)):
        assert torch.equal(MODEL(step(start, end), strided), MODEL(step(start, end), dense))


def test_what_has_changed_is_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: a device that is not the host by name, and memory of which the toy has a copy."""
    there, here = caches(), caches()
    for start, end in ((0, 4), (4, 6)):
        MODEL(step(start, end), here)
    monkeypatch.setattr(toy, "on_host", lambda tensors: [tensor.clone() for tensor in tensors])
    elsewhere = toy.Toy(torch.device("cpu", 0))
    for start, end in ((0, 4), (4, 6)):
        assert torch.equal(elsewhere(step(start, end), there), toy.alone(TOKENS)[start:end])
    for name in toy.POOLS:
        assert torch.equal(getattr(there, name)[0], getattr(here, name)[0])


@pytest.mark.parametrize("name", ["keys", "tokens", "seq_idx"])
def test_what_is_elsewhere_is_refused(name: str) -> None:
    there = torch.device("meta")
    batch, memory = step(0, 4), caches()
    if name == "keys":
        memory.keys[0] = memory.keys[0].to(there)
    elif name == "tokens":
        batch = replace(batch, tokens=batch.tokens.to(there))
    else:
        batch = replace(batch, metadata=replace(batch.metadata, seq_idx=batch.metadata.seq_idx.to(there)))
    with pytest.raises(ValueError, match=f"{name}: got a tensor on meta, expected cpu"):
        MODEL(batch, memory)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_memory_on_a_gpu_holds_what_memory_on_the_host_holds() -> None:
    gpu = torch.device("cuda")
    there, here = caches(gpu), caches()
    for start, end in ((0, 4), (4, 6)):
        batch = step(start, end)
        moved = {name: getattr(batch, name).to(gpu) for name in toy.INPUTS}
        metadata = replace(batch.metadata, **{name: getattr(batch.metadata, name).to(gpu) for name in toy.METADATA})
        logits = toy.Toy(gpu)(replace(batch, metadata=metadata, **moved), there)
        assert logits.is_cuda
        assert torch.equal(logits.cpu(), MODEL(step(start, end), here))
    for name in ("conv", "delta", "keys", "values"):
        assert torch.equal(getattr(there, name)[0].cpu(), getattr(here, name)[0])
