"""Host time of the metadata of a prefill step: 256 mixed sequences, every second one resumed."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import PREFILL_BATCHES
from benchmarks.report import HostRow
from benchmarks.timing import time_host
from optimized import baselines, chunk_metadata, step_metadata

CHUNK_SIZE = 64
_LENGTHS = PREFILL_BATCHES["256 x (1..63) mixed"]


def host_rows() -> list[HostRow]:
    count = len(_LENGTHS)
    step: dict[str, Any] = {
        "seq_lens": _LENGTHS,
        "num_contexts": count,
        "num_cached_tokens": [64 * (i % 2) for i in range(count)],
        "state_slots": list(reversed(range(count))),
    }
    ours = step_metadata.step_metadata(count, CHUNK_SIZE, "cuda")
    before = baselines.step_metadata(count, CHUNK_SIZE, "cuda")
    cu_seqlens = torch.tensor([0, *_LENGTHS], device="cuda").cumsum(0).to(torch.int32)
    hints = {
        "total_seqlens": sum(_LENGTHS),
        "extra_chunks": chunk_metadata.count_extra_chunks(_LENGTHS, CHUNK_SIZE),
    }
    return [
        HostRow(
            f"step_metadata.prepare, {count} sequences",
            {
                "ours": time_host(lambda: ours.prepare(**step)),
                "baseline": time_host(lambda: before.prepare(**step), samples=8),
            },
        ),
        HostRow(
            f"chunk_metadata with hints, {count} sequences",
            {
                "ours": time_host(lambda: chunk_metadata.chunk_metadata(cu_seqlens, CHUNK_SIZE, **hints)),
                "baseline": time_host(lambda: baselines.chunk_metadata(cu_seqlens, CHUNK_SIZE), samples=8),
            },
        ),
    ]
