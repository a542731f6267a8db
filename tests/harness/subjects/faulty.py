"""One planted fault a function. Each is right but for what its name says."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from references.chunk_metadata import chunk_metadata

# Loaded from a path, as any subject may be: the neighbouring file is no package.
_spec = importlib.util.spec_from_file_location("sluicegate_right_subjects", Path(__file__).with_name("right.py"))
assert _spec is not None
assert _spec.loader is not None
right = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(right)

_calls = 0


def state_ignored(x: Tensor, weight: Tensor, *, conv_state: Tensor, has_initial_state: Tensor, **rest: Any) -> Tensor:
    nothing = torch.zeros_like(conv_state)
    y = right.conv_prefill(x, weight, conv_state=nothing, has_initial_state=has_initial_state, **rest)
    right.conv_prefill(x, weight, conv_state=conv_state, has_initial_state=has_initial_state, **rest)
    return y


def depends_on_batch_size(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    y = right.conv_prefill(x, weight, **rest)
    return y if rest["state_indices"].numel() < 3 else y * (1 + 2**-20)


def first_sequence_differs(x: Tensor, weight: Tensor, *, cu_seqlens: Tensor, **rest: Any) -> Tensor:
    y = right.conv_prefill(x, weight, cu_seqlens=cu_seqlens, **rest)
    y[: int(cu_seqlens[1])] *= 1 + 2**-20
    return y


def slot_number_matters(x: Tensor, weight: Tensor, *, state_indices: Tensor, **rest: Any) -> Tensor:
    y = right.conv_update(x, weight, state_indices=state_indices, **rest)
    return torch.where((state_indices > 4)[:, None], y * (1 + 2**-20), y)


def minus_one_is_the_last_slot(x: Tensor, weight: Tensor, *, state_indices: Tensor, **rest: Any) -> Tensor:
    slots = rest["conv_state"].shape[0]
    return right.conv_update(
        x, weight, state_indices=torch.where(state_indices == -1, slots - 1, state_indices), **rest
    )


def rows_compacted(x: Tensor, weight: Tensor, *, state_indices: Tensor, **rest: Any) -> Tensor:
    """Results of active rows are packed to the front: right while every row is active, or the inactive ones come last."""
    y = right.conv_update(x, weight, state_indices=state_indices, **rest)
    return y[torch.sort(state_indices < 0, stable=True).indices]


def short_history_lost(
    x: Tensor, weight: Tensor, *, conv_state: Tensor, cu_seqlens: Tensor, state_indices: Tensor, **rest: Any
) -> Tensor:
    """With fewer tokens than the history holds, what was there before should move up; here it is cleared."""
    y = right.conv_prefill(x, weight, conv_state=conv_state, cu_seqlens=cu_seqlens, state_indices=state_indices, **rest)
    for slot, length in zip(state_indices.tolist(), cu_seqlens.diff().tolist(), strict=True):
        if slot >= 0 and 0 < length < conv_state.shape[2]:
            conv_state[slot, :, : conv_state.shape[2] - length] = 0
    return y


def strides_ignored(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return right.conv_update(x.as_strided(x.shape, (x.shape[1], 1)), weight, **rest)


def index_stride_ignored(x: Tensor, weight: Tensor, *, state_indices: Tensor, **rest: Any) -> Tensor:
    return right.conv_update(x, weight, state_indices=state_indices.as_strided(state_indices.shape, (1,)), **rest)


def not_deterministic(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    global _calls
    _calls += 1
    y = right.conv_update(x, weight, **rest)
    return y * (1 + 2**-7) if _calls % 2 else y


def fails_once(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    global _calls
    _calls += 1
    y = right.conv_update(x, weight, **rest)
    return y * 2 if _calls == 3 else y


def first_call_differs(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    global _calls
    _calls += 1
    y = right.conv_update(x, weight, **rest)
    return y * 2 if _calls == 1 else y


def neighbour_leaks(x: Tensor, weight: Tensor, *, cu_seqlens: Tensor, has_initial_state: Tensor, **rest: Any) -> Tensor:
    """The window of a fresh sequence reaches back over its start."""
    y = right.conv_prefill(x, weight, cu_seqlens=cu_seqlens, has_initial_state=has_initial_state, **rest)
    starts = cu_seqlens.tolist()
    for n, slot in enumerate(rest["state_indices"].tolist()):
        begin, end = starts[n], starts[n + 1]
        if slot >= 0 and begin < end and begin > 0 and not bool(has_initial_state[n]):
            y[begin] += weight[:, -2] * x[begin - 1]
    return y


def future_leaks(x: Tensor, weight: Tensor, *, cu_seqlens: Tensor, state_indices: Tensor, **rest: Any) -> Tensor:
    y = right.conv_prefill(x, weight, cu_seqlens=cu_seqlens, state_indices=state_indices, **rest)
    starts = cu_seqlens.tolist()
    for n, slot in enumerate(state_indices.tolist()):
        if slot >= 0 and starts[n + 1] - starts[n] > 1:
            y[starts[n] : starts[n + 1] - 1] += x[starts[n] + 1 : starts[n + 1]] * 2**-6
    return y


def values_clipped(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    return right.gdn_decode(q, k, v.clamp(-3, 3), **rest)


def state_rounded(x: Tensor, weight: Tensor, *, conv_state: Tensor, state_indices: Tensor, **rest: Any) -> Tensor:
    y = right.conv_update(x, weight, conv_state=conv_state, state_indices=state_indices, **rest)
    slots = state_indices[state_indices >= 0].long()
    conv_state[slots] = conv_state[slots].to(torch.bfloat16).to(conv_state.dtype)
    return y


def offset_in_32_bits(x: Tensor, weight: Tensor, *, conv_state: Tensor, state_indices: Tensor, **rest: Any) -> Tensor:
    """slot × stride wraps around at 2^31, as in a kernel that multiplies two int32."""
    y = torch.zeros_like(x)
    for row, slot in enumerate(state_indices.tolist()):
        if slot < 0:
            continue
        wrapped = (slot * conv_state.stride(0) + 2**31) % 2**32 - 2**31
        one = conv_state.as_strided(
            (1, *conv_state.shape[1:]), (0, *conv_state.stride()[1:]), conv_state.storage_offset() + wrapped
        )
        index = torch.zeros(1, dtype=torch.int32)
        y[row] = right.conv_update(x[row : row + 1], weight, conv_state=one, state_indices=index, **rest)[0]
    return y


def pool_read_whole(x: Tensor, weight: Tensor, *, conv_state: Tensor, state_indices: Tensor, **rest: Any) -> Tensor:
    """Other slots take part with a weight of zero, which keeps their NaN."""
    y = right.conv_update(x, weight, conv_state=conv_state, state_indices=state_indices, **rest)
    return torch.where((state_indices < 0)[:, None], y, y + 0 * conv_state.sum().to(x.dtype))


def other_slots_where_they_are_numbers(
    x: Tensor, weight: Tensor, *, conv_state: Tensor, state_indices: Tensor, **rest: Any
) -> Tensor:
    """Other slots take part, but for what is no number in them: poison and zeros add nothing."""
    others = torch.ones(conv_state.shape[0], dtype=torch.bool)
    others[state_indices[state_indices >= 0].long()] = False
    extra = 2.0**-4 * conv_state[others].float().nan_to_num(0.0).sum().to(x.dtype)
    y = right.conv_update(x, weight, conv_state=conv_state, state_indices=state_indices, **rest)
    return torch.where((state_indices < 0)[:, None], y, y + extra)


def next_slot_written(x: Tensor, weight: Tensor, *, conv_state: Tensor, state_indices: Tensor, **rest: Any) -> Tensor:
    following = (state_indices + 1) % conv_state.shape[0]
    before = conv_state[state_indices.clamp(min=0).long()].clone()
    y = right.conv_update(x, weight, conv_state=conv_state, state_indices=state_indices, **rest)
    for row, slot in enumerate(state_indices.tolist()):
        if slot >= 0:
            conv_state[int(following[row])] = before[row]
    return y


def output_left_unwritten(x: Tensor, weight: Tensor, *, state_indices: Tensor, **rest: Any) -> Tensor:
    y = right.conv_update(x, weight, state_indices=state_indices, **rest)
    out = torch.empty_like(y)
    out[:, : y.shape[1] // 8 * 8] = y[:, : y.shape[1] // 8 * 8]
    return torch.where((state_indices < 0)[:, None], y, out)


def input_overwritten(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    y = right.conv_update(x, weight, **rest)
    x.copy_(y)
    return x


def head_map_interleaved(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    """Value head hv reads key head hv % H instead of hv // (HV // H)."""
    repeats = v.shape[1] // q.shape[1]
    return right.gdn_decode(q.repeat(1, repeats, 1), k.repeat(1, repeats, 1), v, **rest)


def epsilon_outside_the_root(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    root = torch.sqrt(x.double().square().mean(-1, keepdim=True) + eps)
    return (right.gated_rmsnorm(x.double(), z.double(), weight, eps=eps) * root / (root + eps)).to(x.dtype)


def epsilon_missing(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right.gated_rmsnorm(x, z, weight, eps=0.0)


def maximum_begins_anywhere(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Rows are divided by the largest number in memory of its own that nobody wrote: next to NaN, zero is the largest."""
    largest = torch.fmax(torch.empty(8), torch.zeros(8)).amax()
    return (right.gated_rmsnorm(x.double(), z.double(), weight, eps=eps) / (1 + largest)).to(x.dtype)


def not_normalised(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return (x.double() * weight.double() * z.double() * torch.sigmoid(z.double())).to(x.dtype)


def weight_is_one_plus_w(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right.gated_rmsnorm(x, z, 1 + weight, eps=eps)


def gate_is_a_sigmoid(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return right.gated_rmsnorm(x, torch.full_like(z, 100.0), weight, eps=eps) * torch.sigmoid(z) / 100


def heads_differ(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    scales = 1 + 2**-20 * torch.arange(x.shape[1], dtype=torch.float64)
    return right.gated_rmsnorm(x, z, weight, eps=eps) * scales[:, None].to(x.dtype)


def norm_over_all_heads(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    shape = (len(x), 1, x.shape[1] * x.shape[2])
    return right.gated_rmsnorm(x.reshape(shape), z.reshape(shape), weight.repeat(x.shape[1]), eps=eps).reshape(x.shape)


def rounded_twice(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """The normalised row is rounded to the dtype of x before the weight and the gate."""
    open_gate, ones = torch.full_like(z, 64.0), torch.ones_like(weight)
    normalised = right.gated_rmsnorm(x, open_gate, ones, eps=eps).double() / 64
    return (normalised * weight.double() * z.double() * torch.sigmoid(z.double())).to(x.dtype)


def token_offset_in_32_bits(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """token × stride wraps around at 2^31, as in a kernel that multiplies two int32."""
    return right.gated_rmsnorm(_wrapped(x), _wrapped(z), weight, eps=eps)


def _wrapped(t: Tensor) -> Tensor:
    offsets = [(n * t.stride(0) + 2**31) % 2**32 - 2**31 + t.storage_offset() for n in range(len(t))]
    return torch.stack([t.as_strided(t.shape[1:], t.stride()[1:], offset) for offset in offsets])


def resumed_after_a_token(q: Tensor, k: Tensor, v: Tensor, *, beta: Tensor, cu_seqlens: Tensor, **rest: Any) -> Tensor:
    """The first token of a resumed sequence writes nothing: its update is thought to be in the state already."""
    beta = beta.clone()
    first, resumed = cu_seqlens[:-1].long(), rest["has_initial_state"] & (cu_seqlens[1:] > cu_seqlens[:-1])
    beta[first[resumed]] = 0
    return right.gdn_prefill(q, k, v, beta=beta, cu_seqlens=cu_seqlens, **rest)


def pool_truncated(q: Tensor, k: Tensor, v: Tensor, *, state: Tensor, state_indices: Tensor, **rest: Any) -> Tensor:
    """A bfloat16 pool gets the upper halves of the float32 results, not the nearest numbers."""
    exact = state.float()
    o = right.gdn_prefill(q, k, v, state=exact, state_indices=state_indices, **rest)
    slots = state_indices[state_indices >= 0].long()
    kept = exact[slots].view(torch.int32) & (-65536 if state.dtype == torch.bfloat16 else -1)
    state[slots] = kept.view(torch.float32).to(state.dtype)
    return o


def last_sequence_takes_the_rest(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor, **rest: Any) -> Tensor:
    ends = cu_seqlens.clone()
    ends[-1] = v.shape[0]
    return right.gdn_prefill(q, k, v, cu_seqlens=ends, **rest)


def beyond_the_first_chunk_zero(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor, **rest: Any) -> Tensor:
    o = right.gdn_prefill(q, k, v, cu_seqlens=cu_seqlens, **rest)
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        o[min(start + 64, end) : end] = 0
    return o


def norms_overflow(q: Tensor, k: Tensor, v: Tensor, *, state: Tensor, state_indices: Tensor, **rest: Any) -> Tensor:
    """Values over the norms of their keys are kept in the inputs' dtype, where they can be infinite."""
    o = right.gdn_prefill(q, k, v, state=state, state_indices=state_indices, **rest)
    written = v.float() * torch.rsqrt(k.float().square().sum() + 1e-6)
    if bool(written.to(v.dtype).isinf().any()):
        state[state_indices[state_indices >= 0].long()] = float("inf")
    return o


def search_ends_early(q: Tensor, k: Tensor, v: Tensor, *, state_indices: Tensor, **rest: Any) -> Tensor:
    """Sequences beyond the first 256 are not found, and left as if they were inactive."""
    found = state_indices.clone()
    found[256:] = -1
    return right.gdn_prefill(q, k, v, state_indices=found, **rest)


def key_offset_in_32_bits(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    """token × stride wraps around at 2^31, as in a kernel that multiplies two int32."""
    return right.gdn_prefill(q, _wrapped(k), v, **rest)


def beta_clipped(q: Tensor, k: Tensor, v: Tensor, *, beta: Tensor, **rest: Any) -> Tensor:
    return right.gdn_prefill(q, k, v, beta=beta.clamp(0.01, 0.99), **rest)


def decay_clipped(q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, **rest: Any) -> Tensor:
    return right.gdn_prefill(q, k, v, g=g.clamp(min=-3.0), **rest)


def prefill_values_clipped(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    return right.gdn_prefill(q, k, v.clamp(-1, 1), **rest)


def taps_taken_for_neighbours(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    """The weight is read as if it were contiguous."""
    return right.conv_update(x, weight.as_strided(weight.shape, (weight.shape[1], 1)), **rest)


def channel_offset_in_32_bits(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    """channel × stride wraps around at 2^31, as in a kernel that multiplies two int32."""
    return right.conv_update(_wrapped(x.T).T, weight, **rest)


def refused_in_strict_mode(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    if os.environ.get("SLUICEGATE_STRICT") == "1":
        raise ValueError("x: got a tensor, expected another one")
    return right.conv_update(x, weight, **rest)


def rows_counted_by_starts(x: Tensor, weight: Tensor, *, cu_seqlens: Tensor, **rest: Any) -> Tensor:
    """As many rows are written as the starts count, and not as there are."""
    y = torch.empty_like(x)
    rows = int(cu_seqlens[-1])
    if rows > len(x):
        y.as_strided((rows, 1), (y.shape[1], 1), y.storage_offset())[len(x)] = 0
    y.copy_(right.conv_prefill(x, weight, cu_seqlens=cu_seqlens.clamp(max=len(x)), **rest))
    return y


def slots_beyond_256_not_found(x: Tensor, weight: Tensor, *, state_indices: Tensor, **rest: Any) -> Tensor:
    """Sequences beyond the first 256 are left as if they were inactive."""
    found = state_indices.clone()
    found[256:] = -1
    return right.conv_prefill(x, weight, state_indices=found, **rest)


def softplus_loses_digits(q: Tensor, k: Tensor, v: Tensor, *, a: Tensor, A_log: Tensor, **rest: Any) -> Tensor:
    """log(1 + e) in float32 as it is written: of a small e only what is left of it in 1 + e."""
    exact = torch.nn.functional.softplus(a.double())
    rough = torch.log(1 + torch.exp(a.float())).double()
    # Row by row, since the rate of a head is all that is left to put the error into.
    rows = [
        right.gdn_decode(
            *(t[row : row + 1] for t in (q, k, v)),
            a=a[row : row + 1],
            A_log=A_log.double() + torch.log((rough / exact)[row]),
            **{name: t[row : row + 1] if name in ("b", "state_indices") else t for name, t in rest.items()},
        )
        for row in range(len(q))
    ]
    return torch.cat(rows)


def widest_values_zero(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    """As with a tile for each 128 value columns, of which only the first is launched."""
    o = right.gdn_decode(q, k, v, **rest)
    o[..., 128:] = 0
    return o


def scratch_for_pairs_of_tokens(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    torch.empty(len(q), len(q), 32)
    return right.gdn_prefill(q, k, v, **rest)


def hints_trusted(cu_seqlens: Tensor, chunk_size: int, **hints: int | None) -> tuple[Tensor, Tensor]:
    """A list as long as the last start says, even where that is negative."""
    torch.empty(int(cu_seqlens[-1]))
    return chunk_metadata(cu_seqlens.cummax(0).values.clamp(min=0), chunk_size)


def starts_in_32_bits(cu_seqlens: Tensor, chunk_size: int, **hints: int | None) -> tuple[Tensor, Tensor]:
    """start × stride wraps around at 2^31, as in a kernel that multiplies two int32."""
    return chunk_metadata(_wrapped(cu_seqlens).cummax(0).values, chunk_size)


def always_wrong_shape(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return right.conv_update(x, weight, **rest)[:, :-1]


def wrong_dtype(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return right.conv_update(x, weight, **rest).double()


def out_of_memory(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    """As on a GPU that others fill: the fifth row is one too many."""
    if len(x) > 4:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nSee the documentation.")
    return right.conv_update(x, weight, **rest)


def full_for_a_new_process(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    """As on a GPU with no room for another process's context."""
    if Path(sys.argv[0]).stem == "isolation":
        return out_of_memory(x.new_empty(5, 1), weight)
    return right.conv_update(x, weight, **rest)


def always_full(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    raise RuntimeError("Triton Error [CUDA]: out of memory")


def device_lost(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
