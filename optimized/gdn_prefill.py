"""Gated delta net prefill: the delta rule chunk by chunk, state read and written in place by slot.

A sequence is cut into chunks of C tokens. With G the log decay accumulated inside a chunk, raw keys k and queries q, and
rk, rq the reciprocals of their norms, a first kernel computes for each chunk and value head what does not depend on the
state, all chunks at once:

    A_ij = beta_i rk_i rk_j (k_i . k_j) exp(G_i - G_j)         i > j          B = (I + A)^-1 diag(beta)
    P_ij = scale rq_i rk_j (q_i . k_j) exp(G_i - G_j)          i >= j

A second one walks each sequence's chunks with the state S [V, K] in registers, a few rows of it a program:

    X = v - exp(G) rk (k S^T)           what the keys do not recall yet
    D = B X                             the corrections of the delta rule, all tokens of the chunk at once
    o = scale rq exp(G) (q S^T) + P D
    S = exp(G_last) S + D^T (rk exp(G_last - G) k)

(Yang, Kautz, Hatamizadeh: Gated Delta Networks, 2024, the chunked form; only differences G_i - G_j <= 0 are
exponentiated.) Norms are factors of rows, so the products take keys and queries as they lie in memory. The operands of
the products are rounded to the inputs' dtype, sums are float32, the state stays float32 until its one rounding at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import checks, functions
from .gdn_prefill_kernels import ROWS, factors_kernel, recurrence_kernel

#: No table entry has a longer chunk, and each divides it: a sequence may be cut and resumed at its multiples without
#: changing a bit.
LONGEST_CHUNK = 64


class Launch(NamedTuple):
    """How the kernels are launched.

    chunk: tokens a chunk; part of the results' bits, so it depends on dtypes and device alone. values_first: orientation of
    the recurrence. block_v: its value columns a program. factor_warps, num_warps: of the two kernels. num_stages: of the
    recurrence's software pipeline.
    """

    chunk: int
    values_first: bool
    block_v: int
    factor_warps: int
    num_warps: int
    num_stages: int


def _launch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor, sequences: int) -> Launch:
    """The fixed table, measured on an H100 for bfloat16 and K = V = 128; elsewhere the largest tiles that do not spill.

    Only the chunk decides about the order of a sum, so a row's bits do not depend on what it comes with.
    """
    key_dim, (value_heads, value_dim) = k.shape[2], v.shape[1:]
    whole = max(16, triton.next_power_of_2(value_dim))
    if v.device.type == "cpu":
        # The interpreter pays per operation.
        return Launch(64, True, min(128, whole), 4, 4, 1)
    if v.dtype == torch.float32:
        # IEEE products keep their operands in registers, whole rows at a time.
        return Launch(16, True, 16, 8, 8, 1)
    device = torch.cuda.get_device_properties(v.device)
    if device.major not in (9, 10):
        return Launch(32, True, 16, 4, 4, 1)
    factor_warps = 4 if device.major == 9 else 8
    if key_dim > 128:
        return Launch(64, True, min(32, whole), factor_warps, 8, 1)
    if v.dtype == torch.float16:
        return Launch(64, True, min(64, whole), factor_warps, 8, 1)
    narrow = sequences * value_heads * triton.cdiv(value_dim, 32)
    # Keys first, Triton 3.6 reads beyond its shared memory unless keys, queries and values get there by asynchronous copies.
    if narrow <= 2 * device.multi_processor_count and _published(k, v) and all(_aligned(t) for t in (q, k, v)):
        return Launch(64, False, 32, factor_warps, 4, 3 if narrow <= device.multi_processor_count else 2)
    if value_dim <= 64 or device.major == 10:
        return Launch(64, True, min(64, whole), factor_warps, 8, 1)
    # One pattern of offsets for keys and queries, and no rounding of the state, leave enough registers for four warps.
    if _published(k, v) and q.stride() == k.stride() and state.dtype == torch.float32:
        return Launch(64, True, 64, 4, 4, 2)
    return Launch(64, True, 128, 4, 8, 2)


def _published(k: torch.Tensor, v: torch.Tensor) -> bool:
    """Head dims of the published models: worth a kernel that knows its sizes. Others share one that takes any."""
    return k.shape[2] == v.shape[2] == 128


def _aligned(view: torch.Tensor) -> bool:
    """Whether Triton copies asynchronously, 16 bytes at once: it looks for strides that are multiples of 16 elements."""
    return view.data_ptr() % 16 == 0 and view.stride(2) == 1 and all(stride % 16 == 0 for stride in view.stride()[:2])


def gdn_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    cu_seqlens: torch.Tensor,
    state_indices: torch.Tensor,
    has_initial_state: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Run N packed sequences through the gated delta rule. Two kernel launches, no host sync, no copy of any input.

    Args:
        q, k: [T, H, K], K <= 256; v: [T, HV, V], V <= 256, HV a multiple of H; float32, float16 or bfloat16, one dtype
            for the three, any strides and offsets; q and k are not yet normalised. Value head hv uses q/k head
            hv // (HV // H). Tokens at and after cu_seqlens[-1] belong to no sequence: their output rows are zero.
        g: [T, HV], log decay, at most 0; beta: [T, HV], already squashed; any float dtype and strides.
        state: [slots, HV, V, K], float32, float16 or bfloat16, any strides (a head within 2^31 elements); updated in place.
        cu_seqlens: int32 or int64 [N+1], contiguous, never decreasing from 0.
        state_indices: int32 or int64 [N], any stride; distinct where not negative. A negative slot makes a sequence
            inactive: its slot is neither read nor written and its output rows are zero.
        has_initial_state: bool [N], contiguous; false ignores the slot's content. An empty sequence leaves its slot
            alone when true and zeroes it when false.
        scale: of the output; K^-1/2 when None.

    Returns:
        o [T, HV, V], contiguous, dtype of `v`. Working memory beside it, whatever the pool's size: (T / 64 + N) x HV x 64 x
        (128 elements of the inputs' dtype + 20 bytes).

    Raises:
        ValueError: wrong shape, dtype or device, before anything is written; with SLUICEGATE_STRICT=1 also wrong values.
    """
    _check(q, k, v, g, beta, state, cu_seqlens, state_indices, has_initial_state)
    checks.check_scale(scale)
    if scale is None:
        scale = q.shape[2] ** -0.5

    tokens, value_heads, value_dim = v.shape
    heads, key_dim = q.shape[1:]
    sequences = state_indices.shape[0]
    o = torch.empty((tokens, value_heads, value_dim), dtype=v.dtype, device=v.device)
    if sequences == 0:
        return o.zero_()
    launch = _launch(q, k, v, state, sequences)
    chunk = launch.chunk
    # Sequence n's chunks are kept in the tiles from cu[n] // chunk + n on.
    tiles = tokens // chunk + sequences
    corrections = torch.empty((tiles, value_heads, chunk, chunk), dtype=v.dtype, device=v.device)
    attention = torch.empty_like(corrections)
    scalings = torch.empty((tiles, value_heads, ROWS.value, chunk), dtype=torch.float32, device=v.device)
    exact = v.dtype == torch.float32
    block_k = max(16, triton.next_power_of_2(key_dim))
    value_tiles = triton.cdiv(value_dim, launch.block_v)
    fixed_heads = value_heads if _published(k, v) else 0
    common = {
        "FIXED_HEADS": fixed_heads,
        "C": chunk,
        "BLOCK_K": block_k,
        "EVEN_K": key_dim == block_k,
        # Keys may be short and corrections large: with a norm as its factor, a correction can exceed what float16 holds.
        "FOLD_NORM": v.dtype != torch.float16,
        # Of float32 operands; 16-bit ones go to the matrix units as they are.
        "PRODUCTS": "ieee",
    }
    with torch.cuda.device_of(v):
        factors_kernel[(tiles * value_heads,)](
            q,
            k,
            g,
            beta,
            cu_seqlens,
            state_indices,
            corrections,
            attention,
            scalings,
            sequences,
            tokens,
            value_heads,
            value_heads // heads,
            key_dim,
            float(scale),
            *q.stride(),
            *k.stride(),
            *g.stride(),
            *beta.stride(),
            state_indices.stride(0),
            SEARCH=256,
            # The factors of a chunk are at most about 1, and float16 has three digits (binary) more than bfloat16.
            SOLVE=tl.float16 if v.dtype == torch.bfloat16 else tl.float32,
            SOLVE_PRODUCTS="ieee" if exact else "tf32x3",
            EXACT=exact,
            PTX=functions.has_ptx(v),
            num_warps=launch.factor_warps,
            **common,
        )
        recurrence_kernel[((sequences + 1) * value_heads * value_tiles,)](
            q,
            k,
            v,
            corrections,
            attention,
            scalings,
            state,
            cu_seqlens,
            state_indices,
            has_initial_state,
            o,
            sequences,
            tokens,
            state.shape[0],
            value_heads,
            value_heads // heads,
            key_dim,
            value_dim,
            value_tiles,
            *q.stride(),
            *k.stride(),
            *v.stride(),
            *state.stride(),
            state_indices.stride(0),
            o.stride(0),
            FIXED_V=value_dim if fixed_heads else 0,
            BLOCK_V=launch.block_v,
            EVEN_V=value_dim % launch.block_v == 0,
            VALUES_FIRST=launch.values_first,
            SAME_STRIDES=q.stride() == k.stride(),
            STAGES=launch.num_stages,
            num_warps=launch.num_warps,
            **common,
        )
    return o


# Attributes of a function are how a subject says what it takes; see `harness.subjects`.
gdn_prefill.sluicegate = {"chunk_size": LONGEST_CHUNK}  # type: ignore[attr-defined]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_INDICES = (torch.int32, torch.int64)
_LARGEST_HEAD_DIM = 256


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    cu_seqlens: torch.Tensor,
    state_indices: torch.Tensor,
    has_initial_state: torch.Tensor,
) -> None:
    """Shapes, dtypes and devices always; starts and slots in strict mode."""
    dims: dict[str, int] = {}
    checks.check_tensor("q", q, shape=("T", "H", "K"), dtypes=_FLOATS, dims=dims)
    same: dict[str, Any] = {"device": q.device, "dims": dims}
    checks.check_tensor("k", k, shape=("T", "H", "K"), dtypes=(q.dtype,), **same)
    checks.check_tensor("v", v, shape=("T", "HV", "V"), dtypes=(q.dtype,), **same)
    for name, gate in (("g", g), ("beta", beta)):
        checks.check_tensor(name, gate, shape=("T", "HV"), dtypes=_FLOATS, **same)
    checks.check_tensor("state", state, shape=("slots", "HV", "V", "K"), dtypes=_FLOATS, **same)
    checks.check_tensor("state_indices", state_indices, shape=("N",), dtypes=_INDICES, **same)
    checks.check_tensor("cu_seqlens", cu_seqlens, shape=(dims["N"] + 1,), dtypes=_INDICES, device=q.device)
    checks.check_tensor("has_initial_state", has_initial_state, shape=("N",), dtypes=(torch.bool,), **same)
    checks.check_contiguous("cu_seqlens", cu_seqlens)
    checks.check_contiguous("has_initial_state", has_initial_state)
    checks.check_heads(dims, _LARGEST_HEAD_DIM)
    for name, view in (("q", q), ("k", k), ("v", v)):
        # Offsets inside a chunk are 32-bit in the kernel.
        span = LONGEST_CHUNK * view.stride(0) + sum(
            (n - 1) * s for n, s in zip(view.shape[1:], view.stride()[1:], strict=True)
        )
        checks.check_span(name, view, span, f"{LONGEST_CHUNK} tokens")
    span = sum((n - 1) * s for n, s in zip(state.shape[2:], state.stride()[2:], strict=True))
    checks.check_span("state", state, span, "heads")
    for name, gate in (("g", g), ("beta", beta)):
        checks.check_span(
            name, gate, LONGEST_CHUNK * gate.stride(0) + (dims["HV"] - 1) * gate.stride(1), "a chunk's gates"
        )
    checks.check_runnable("q", q)
    checks.check_cu_seqlens(cu_seqlens, dims["T"], tokens_in="q, k and v")
    checks.check_slots(state_indices, dims["slots"])
