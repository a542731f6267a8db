"""Logical chunks of a packed batch, without a host sync, in one launch, with one compiled variant.

Physical chunks cut the packed token axis every C tokens.  A logical chunk is a maximal run of tokens that share both
their physical chunk and their sequence.  Every physical chunk opens one; so does every non-empty sequence that starts
inside a physical chunk rather than at its edge.  With u_i = 1 for such a sequence i and 0 otherwise:

    M      = ceil(T / C) + sum_i u_i                              (the number of logical chunks)
    pos_i  = cu[i] // C + u_0 + ... + u_i                         (where sequence i's own chunk stands in the list)
    index_j  = j - #{i : u_i = 1 and pos_i <= j}
    offset_j = cu[i] mod C where j = pos_i and u_i = 1, else 0

A sequence without tokens has u_i = 0 and leaves no trace.

``chunk_metadata_kernel`` evaluates this in Triton, ``chunk_metadata_host`` in torch; ``chunk_metadata`` picks one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from triton.runtime import JITFunction

from . import checks

_BLOCK_OUT = 256
_BLOCK_SEQ = 64
# int32 results: an offset is below the chunk size, and the kernel's runtime integers stay 32-bit, hence one variant.
_MAX_CHUNK_SIZE = 2**31 - 1


def chunk_metadata(
    cu_seqlens: torch.Tensor,
    chunk_size: int,
    *,
    total_seqlens: int | None = None,
    extra_chunks: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunk index and offset of the first token of every logical chunk, in token order.

    Args:
        cu_seqlens: int32 or int64 [N+1], cumulative starts: 0 first, T last.  CPU or CUDA, any stride.
        chunk_size: C >= 1, tokens in a physical chunk.
        total_seqlens: T, if the host knows it.
        extra_chunks: ``count_extra_chunks`` of the lengths, if the host knows it.

    Both hints given: no host sync.  Either missing: ``cu_seqlens`` is copied to the host, which waits for the device.

    Returns:
        ``(chunk_indices int32[M], chunk_offsets int32[M])`` on the device of ``cu_seqlens``.

    Raises:
        ValueError: wrong shape, dtype, chunk size or hint type; with ``SLUICEGATE_STRICT=1`` also cu_seqlens that do
            not start at 0 or decrease, and hints that contradict them.  Outside strict mode a wrong hint gives a list
            that is too short or too long, and never a write outside it.
    """
    # What is not a tensor at all has no is_cuda, and is refused by the checks of either.
    implementation = chunk_metadata_kernel if getattr(cu_seqlens, "is_cuda", False) else chunk_metadata_host
    return implementation(cu_seqlens, chunk_size, total_seqlens=total_seqlens, extra_chunks=extra_chunks)


def chunk_metadata_kernel(
    cu_seqlens: torch.Tensor,
    chunk_size: int,
    *,
    total_seqlens: int | None = None,
    extra_chunks: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``chunk_metadata`` by the Triton kernel: one launch and two allocations.  CPU tensors need the interpreter."""
    num_chunks = _check_and_count(cu_seqlens, chunk_size, total_seqlens, extra_chunks)
    if isinstance(_chunk_kernel, JITFunction) and not cu_seqlens.is_cuda:
        advice = "set TRITON_INTERPRET=1 before Python imports this module, or call chunk_metadata_host"
        raise checks.fail("cu_seqlens", f"device {cu_seqlens.device}", "CUDA for the compiled kernel", advice)
    chunk_indices = torch.empty(num_chunks, dtype=torch.int32, device=cu_seqlens.device)
    chunk_offsets = torch.empty(num_chunks, dtype=torch.int32, device=cu_seqlens.device)
    if num_chunks > 0:
        with torch.cuda.device_of(cu_seqlens):
            _chunk_kernel[(triton.cdiv(num_chunks, _BLOCK_OUT),)](
                cu_seqlens,
                chunk_indices,
                chunk_offsets,
                cu_seqlens.stride(0),
                cu_seqlens.shape[0] - 1,
                num_chunks,
                chunk_size,
                BLOCK_OUT=_BLOCK_OUT,
                BLOCK_SEQ=_BLOCK_SEQ,
                num_warps=8,
            )
    return chunk_indices, chunk_offsets


def chunk_metadata_host(
    cu_seqlens: torch.Tensor,
    chunk_size: int,
    *,
    total_seqlens: int | None = None,
    extra_chunks: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``chunk_metadata`` as a closed form of a dozen torch operations, on CPU or CUDA; no sync with both hints."""
    num_chunks = _check_and_count(cu_seqlens, chunk_size, total_seqlens, extra_chunks)
    device = cu_seqlens.device
    # One cell more than the result: empty sequences at the end of the batch stand there, and nobody reads it.
    offsets = torch.zeros(num_chunks + 1, dtype=torch.int32, device=device)
    if num_chunks > 0:
        starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
        inside = (starts % chunk_size) * (ends > starts)
        # Sequences that open no chunk add zero to a chunk of another.  The clamp keeps contradictory hints within the
        # buffer; true ones never reach it.
        position = torch.cumsum(inside != 0, 0).add_(starts // chunk_size).clamp_(0, num_chunks)
        offsets.scatter_add_(0, position, inside.to(torch.int32))
    chunk_offsets = offsets[:num_chunks]
    # A chunk that a sequence opened is the one whose offset is not zero, so the offsets count themselves.
    opened = torch.cumsum(chunk_offsets != 0, 0, dtype=torch.int32)
    return torch.arange(num_chunks, dtype=torch.int32, device=device).sub_(opened), chunk_offsets


def count_extra_chunks(lengths: Sequence[int], chunk_size: int) -> int:
    """How many logical chunks there are beyond ceil(T / C), from lengths that the host knows: O(N), no tensor.

    One for every non-empty sequence that starts inside a physical chunk.  Pass the result as ``extra_chunks``.

    Raises:
        ValueError: ``chunk_size`` below 1, a negative length.
    """
    checks.check_int("chunk_size", chunk_size, 1)
    extra = 0
    start = 0
    for row, length in enumerate(lengths):
        if length > 0:
            extra += start % chunk_size != 0
            start += length
        elif length < 0:
            raise checks.fail("lengths", f"{length} in row {row}", "lengths >= 0", "pass the tokens of each sequence")
    return extra


def _check_and_count(
    cu_seqlens: torch.Tensor, chunk_size: int, total_seqlens: int | None, extra_chunks: int | None
) -> int:
    """Check the arguments and return M.  Reads ``cu_seqlens`` on the host only for a missing hint or in strict mode."""
    checks.check_tensor("cu_seqlens", cu_seqlens, shape=(None,), dtypes=(torch.int32, torch.int64))
    if cu_seqlens.shape[0] == 0:
        raise checks.fail("cu_seqlens", "shape [0]", "shape [N+1]", "pass [0] for a batch without sequences")
    checks.check_int("chunk_size", chunk_size, 1)
    if chunk_size > _MAX_CHUNK_SIZE:
        raise checks.fail("chunk_size", chunk_size, f"at most {_MAX_CHUNK_SIZE}", "results are int32")
    if total_seqlens is not None:
        checks.check_int("total_seqlens", total_seqlens, 0)
    if extra_chunks is not None:
        checks.check_int("extra_chunks", extra_chunks, 0)
    strict = checks.check_strict()
    if strict or total_seqlens is None or extra_chunks is None:
        checks.check_cu_seqlens(cu_seqlens, None)
        starts = cu_seqlens.cpu().numpy()
        total = int(starts[-1])
        extra = int(((starts[:-1] % chunk_size != 0) & (starts[1:] > starts[:-1])).sum())
        if strict:
            advice = "pass what cu_seqlens says, or None"
            if total_seqlens not in (None, total):
                raise checks.fail("total_seqlens", total_seqlens, f"{total} tokens", advice)
            if extra_chunks not in (None, extra):
                raise checks.fail("extra_chunks", extra_chunks, f"{extra} at chunk_size {chunk_size}", advice)
        total_seqlens = total if total_seqlens is None else total_seqlens
        extra_chunks = extra if extra_chunks is None else extra_chunks
    if cu_seqlens.shape[0] == 1:
        return 0
    return max(0, -(-total_seqlens // chunk_size) + extra_chunks)


# Everything that varies from step to step is left out of specialization: values 1 and multiples of 16 for the integers,
# 16-byte alignment for the pointers.  What remains in the key is the dtype of cu_seqlens.
@triton.jit(
    do_not_specialize=[
        "cu_seqlens",
        "chunk_indices",
        "chunk_offsets",
        "stride",
        "num_sequences",
        "num_chunks",
        "chunk_size",
    ]
)
def _chunk_kernel(
    cu_seqlens,
    chunk_indices,
    chunk_offsets,
    stride,
    num_sequences,
    num_chunks,
    chunk_size,
    BLOCK_OUT: tl.constexpr,
    BLOCK_SEQ: tl.constexpr,
):
    """One program fills BLOCK_OUT entries of both lists; it walks all sequences, BLOCK_SEQ at a time."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_OUT
    out = tl.arange(0, BLOCK_OUT)
    lane = tl.arange(0, BLOCK_SEQ)
    passed = tl.zeros([BLOCK_OUT], tl.int32)
    offset = tl.zeros([BLOCK_OUT], tl.int32)
    opened_before = tl.zeros([], tl.int32)
    for tile in range(0, num_sequences, BLOCK_SEQ):
        sequence = tile + lane
        there = sequence < num_sequences
        place = cu_seqlens + sequence.to(tl.int64) * stride
        start = tl.load(place, mask=there, other=0).to(tl.int64)
        end = tl.load(place + stride, mask=there, other=0).to(tl.int64)
        chunk = start // chunk_size
        inside = (start - chunk * chunk_size).to(tl.int32)
        opens = (inside != 0) & (end > start)
        ones = opens.to(tl.int32)
        position = chunk + tl.cumsum(ones, 0) + opened_before
        opened_before += tl.sum(ones, 0)
        # Positions relative to this program fit 32 bits once those before it share -1 and those behind it BLOCK_OUT.
        near = tl.minimum(tl.maximum(position - first, -1), BLOCK_OUT).to(tl.int32)
        near = tl.where(opens, near, BLOCK_OUT)
        passed += tl.sum((near[None, :] <= out[:, None]).to(tl.int32), 1)
        offset += tl.sum(tl.where(near[None, :] == out[:, None], inside[None, :], 0), 1)
    mine = first + out
    fits = mine < num_chunks
    tl.store(chunk_indices + mine, (mine - passed).to(tl.int32), mask=fits)
    tl.store(chunk_offsets + mine, offset, mask=fits)


# Under the interpreter a launch takes milliseconds where the closed form takes microseconds: fewer cases for this subject.
chunk_metadata_kernel.sluicegate = {"case_share": 0.05}  # type: ignore[attr-defined]
