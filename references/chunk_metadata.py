"""Logical chunks by their definition.

Token t of the packed batch lies in physical chunk t // C. A logical chunk is a maximal run of neighbouring tokens that
share both their physical chunk and their sequence. A sequence without tokens therefore owns no logical chunk.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from references.strict import strict_mode

# The definition is evaluated token by token; beyond this many tokens it would need gigabytes.
MAX_TOKENS = 1 << 26


def chunk_metadata(
    cu_seqlens: Tensor,
    chunk_size: int,
    *,
    total_seqlens: int | None = None,
    extra_chunks: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Physical chunk and offset inside it of each logical chunk's first token, in token order.

    Args:
        cu_seqlens: int32 or int64 [N+1], the start of each sequence in the packed batch, then the total; starts with 0.
        chunk_size: C, at least 1.
        total_seqlens: the caller's claim of `cu_seqlens[N]`. Not used, only checked in strict mode.
        extra_chunks: the caller's claim of `count_extra_chunks`. Not used, only checked in strict mode.

    Returns:
        `(chunk_indices, chunk_offsets)`, both int32 [M] on the device of `cu_seqlens`, M = ceil(T / C) + extra_chunks.

    Raises:
        ValueError: a wrong shape, dtype or chunk size; more than 2^26 tokens; in strict mode also starts that do not
            begin with 0 or that decrease, and hints that are not true.
    """
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() == 0:
        raise ValueError(
            f"cu_seqlens: expected shape [N+1] with N >= 0, got {tuple(cu_seqlens.shape)}; pass [0] for none"
        )
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens: expected int32 or int64, got {cu_seqlens.dtype}; convert it")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    strict = strict_mode()
    if strict:
        _check_starts(cu_seqlens)
    tokens = int(cu_seqlens[-1])
    if tokens > MAX_TOKENS:
        raise ValueError(f"cu_seqlens: the reference walks every token and takes at most {MAX_TOKENS}, got {tokens}")

    token = torch.arange(tokens, device=cu_seqlens.device)
    physical_chunk = token // chunk_size
    sequence = torch.arange(cu_seqlens.numel() - 1, device=cu_seqlens.device).repeat_interleave(cu_seqlens.diff())
    begins = torch.ones_like(token, dtype=torch.bool)
    begins[1:] = (physical_chunk[1:] != physical_chunk[:-1]) | (sequence[1:] != sequence[:-1])
    first_token = token[begins]

    if strict:
        true_extra = first_token.numel() - -(-tokens // chunk_size)
        for name, claim, truth in (
            ("total_seqlens", total_seqlens, tokens),
            ("extra_chunks", extra_chunks, true_extra),
        ):
            if claim is not None and claim != truth:
                raise ValueError(
                    f"{name}: expected {truth}, which is what cu_seqlens says, got {claim}; pass None or fix it"
                )
    return (first_token // chunk_size).int(), (first_token % chunk_size).int()


def count_extra_chunks(lengths: Sequence[int], chunk_size: int) -> int:
    """How many logical chunks there are beyond ceil(T / C): one for each boundary between two non-empty sequences that
    does not fall on a multiple of C. The end of the last sequence is not such a boundary."""
    present = [length for length in lengths if length > 0]
    extra = 0
    boundary = 0
    for length in present[:-1]:
        boundary += length
        if boundary % chunk_size != 0:
            extra += 1
    return extra


def _check_starts(cu_seqlens: Tensor) -> None:
    starts = cu_seqlens.tolist()
    if starts[0] != 0:
        raise ValueError(f"cu_seqlens: expected to start with 0, got {starts[0]}")
    for n, (start, end) in enumerate(itertools.pairwise(starts)):
        if end < start:
            raise ValueError(f"cu_seqlens: expected starts that never decrease, got {start} then {end} at sequence {n}")
