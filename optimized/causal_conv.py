"""Causal depthwise convolution over packed sequences: one launch, token-major, state updated in place.

For a sequence with tokens x_0 .. x_{L-1}, per channel c, weights w[c, 0..W-1] and W - 1 previous inputs p (the slot's
content when the sequence resumes, zeros when it is fresh), with z = concat(p, x):

    y_t       = act(bias_c + sum_j w[c, j] * z_{t + j})      act = identity, or silu(u) = u / (1 + exp(-u))
    new state = last W - 1 entries of z                      (a copy, never arithmetic)

Both operators share one helper for the sum (`_convolve`), so that a token's bits depend on its own W inputs alone:
packing, splitting, permuting and token-by-token decode all give the same bits.

Work is cut so that the grid follows from T and N alone, without asking the device for lengths. Sequence n owns the
block ids [cu[n] // BLOCK_T + n, cu[n + 1] // BLOCK_T + n + 1), which is always enough for ceil(L / BLOCK_T) blocks and
is sorted in n: a program finds its sequence by searching cu_seqlens, and leaves early when its id is a spare one.
Tokens behind cu_seqlens[-1] form sequence number N, which is inactive: its output rows are zero.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton

from . import checks, functions
from .causal_conv_kernels import prefill_kernel, update_kernel


class Tile(NamedTuple):
    """How the work of one program is cut: `rows` places at once, `steps` tokens walked from each (decode: one)."""

    rows: int
    steps: int
    block_d: int
    num_warps: int
    max_registers: int | None = None
    search: int = 256
    """Sequences compared in one round of the search for a program's sequence."""


# One entry a device; any entry gives the same bits. Measured on an H100 (D = 8192, bf16), where one walk of 16 tokens
# by 512 channels was the best or within noise of the best from 1 x 512 tokens to 256 short sequences. A row is a walk:
# the window of the last W - 1 tokens stays in registers, and x is read about once. What limits it is latency, so
# programs per multiprocessor count: with 64 registers a thread instead of the 80 the compiler would take (none spilled)
# 8192 tokens take 100 us instead of 116. Searching 32-fold keeps the reduction inside a warp.
_PREFILL_GPU = Tile(rows=1, steps=16, block_d=512, num_warps=4, max_registers=64, search=32)
# State entries lie W - 1 apart, so no access to them is wide, and more threads beat more channels a thread.
_UPDATE_GPU = Tile(rows=1, steps=1, block_d=128, num_warps=4)
# The interpreter pays per operation: there many tokens go through every operation together.
_PREFILL_CPU = Tile(rows=16, steps=4, block_d=1024, num_warps=4)
_UPDATE_CPU = Tile(rows=16, steps=1, block_d=1024, num_warps=4)


def conv_prefill(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    conv_state: torch.Tensor,
    cu_seqlens: torch.Tensor,
    state_indices: torch.Tensor,
    has_initial_state: torch.Tensor,
    activation: str | None = None,
    max_seqlen: int | None = None,
) -> torch.Tensor:
    """Convolve N packed sequences and leave each one's last W - 1 inputs in its slot. One kernel launch, no host sync.

    Args:
        x: [T, D] float32, float16 or bfloat16; any strides. Tokens at and after cu_seqlens[-1] belong to no sequence.
        weight: [D, W], W in {2, 3, 4}, any strides (the taps of a channel within 2^31 elements); tap W - 1 meets the newest
            token.
        bias: [D] contiguous, or None.
        conv_state: [slots, D, W-1], oldest input first, any strides (likewise); updated in place.
        cu_seqlens: int32 or int64 [N+1], contiguous, never decreasing from 0.
        state_indices: int32 or int64 [N], any stride; distinct where not negative. A negative slot makes a sequence
            inactive: its slot is neither read nor written and its output rows are zero.
        has_initial_state: bool [N], contiguous; false ignores the slot's content. An empty sequence leaves its slot
            alone when true and zeroes it when false.
        activation: "silu" or None.
        max_seqlen: a hint that callers may have; it changes nothing (the grid needs only T and N) and is checked in
            strict mode.

    Returns:
        y [T, D], contiguous, dtype of `x`; computed in float32 and rounded once.

    Raises:
        ValueError: wrong shape, dtype, device or activation, before anything is written; with SLUICEGATE_STRICT=1 also
            wrong values.
    """
    dims: dict[str, int] = {}
    checks.check_tensor("x", x, shape=("T", "D"), dtypes=_ACTIVATION_DTYPES, dims=dims)
    _check_layer(x, weight, bias, conv_state, activation, dims)
    index: dict[str, Any] = {"dtypes": _INDEX_DTYPES, "device": x.device, "dims": dims}
    checks.check_tensor("state_indices", state_indices, shape=("N",), **index)
    tokens, channels = x.shape
    sequences = state_indices.shape[0]
    checks.check_tensor("cu_seqlens", cu_seqlens, shape=(sequences + 1,), **index)
    checks.check_tensor(
        "has_initial_state", has_initial_state, shape=("N",), dtypes=(torch.bool,), device=x.device, dims=dims
    )
    checks.check_contiguous("cu_seqlens", cu_seqlens)
    checks.check_contiguous("has_initial_state", has_initial_state)
    if max_seqlen is not None:
        checks.check_int("max_seqlen", max_seqlen, 0)
    _check_values(cu_seqlens, state_indices, conv_state.shape[0], tokens, max_seqlen)

    y = torch.empty((tokens, channels), dtype=x.dtype, device=x.device)
    if channels == 0 or (tokens == 0 and sequences == 0):
        return y
    tile = _PREFILL_CPU if x.device.type == "cpu" else _PREFILL_GPU
    block_d = min(tile.block_d, triton.next_power_of_2(channels))
    blocks = tokens // (tile.rows * tile.steps) + sequences + 1
    with torch.cuda.device_of(x):
        prefill_kernel[(blocks * triton.cdiv(channels, block_d),)](
            x,
            weight,
            x if bias is None else bias,
            conv_state,
            cu_seqlens,
            state_indices,
            has_initial_state,
            y,
            tokens,
            sequences,
            conv_state.shape[0],
            channels,
            *x.stride(),
            *weight.stride(),
            *conv_state.stride(),
            state_indices.stride(0),
            WIDTH=weight.shape[1],
            HAS_BIAS=bias is not None,
            SILU=activation == "silu",
            PTX=functions.has_ptx(x),
            ROWS=tile.rows,
            STEPS=tile.steps,
            BLOCK_D=block_d,
            SEARCH=tile.search,
            num_warps=tile.num_warps,
            maxnreg=tile.max_registers if functions.has_ptx(x) else None,
        )
    return y


def conv_update(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    conv_state: torch.Tensor,
    state_indices: torch.Tensor,
    activation: str | None = None,
) -> torch.Tensor:
    """Convolve one more token of B sequences, each continuing the state in its slot. One kernel launch, no host sync.

    Args:
        x: [B, D], one token a row; any strides.
        weight, bias, conv_state, activation: as in `conv_prefill`.
        state_indices: int32 or int64 [B], any stride; a negative slot gives a zero row and touches no state.

    Returns:
        y [B, D], contiguous, dtype of `x`: bitwise what `conv_prefill` returns for the same token.

    Raises:
        ValueError: as `conv_prefill`.
    """
    dims: dict[str, int] = {}
    checks.check_tensor("x", x, shape=("B", "D"), dtypes=_ACTIVATION_DTYPES, dims=dims)
    _check_layer(x, weight, bias, conv_state, activation, dims)
    checks.check_tensor("state_indices", state_indices, shape=("B",), dtypes=_INDEX_DTYPES, device=x.device, dims=dims)
    checks.check_slots(state_indices, conv_state.shape[0])

    rows, channels = x.shape
    y = torch.empty((rows, channels), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    tile = _UPDATE_CPU if x.device.type == "cpu" else _UPDATE_GPU
    block_d = min(tile.block_d, triton.next_power_of_2(channels))
    with torch.cuda.device_of(x):
        update_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(channels, block_d),)](
            x,
            weight,
            x if bias is None else bias,
            conv_state,
            state_indices,
            y,
            rows,
            conv_state.shape[0],
            channels,
            *x.stride(),
            *weight.stride(),
            *conv_state.stride(),
            state_indices.stride(0),
            WIDTH=weight.shape[1],
            HAS_BIAS=bias is not None,
            SILU=activation == "silu",
            PTX=functions.has_ptx(x),
            ROWS=tile.rows,
            BLOCK_D=block_d,
            num_warps=tile.num_warps,
        )
    return y


_ACTIVATION_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_INDEX_DTYPES = (torch.int32, torch.int64)


def _check_layer(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_state: torch.Tensor,
    activation: str | None,
    dims: dict[str, int],
) -> None:
    """What both operators ask of x's device, the weights, the pool and the activation."""
    checks.check_tensor("weight", weight, shape=("D", "W"), dtypes=_ACTIVATION_DTYPES, device=x.device, dims=dims)
    if not 2 <= dims["W"] <= 4:
        raise checks.fail("weight", f"{dims['W']} taps", "2, 3 or 4 taps", "this kernel has no wider window")
    if bias is not None:
        checks.check_tensor("bias", bias, shape=("D",), dtypes=_ACTIVATION_DTYPES, device=x.device, dims=dims)
        checks.check_contiguous("bias", bias)
    state_shape = (None, dims["D"], dims["W"] - 1)
    checks.check_tensor("conv_state", conv_state, shape=state_shape, dtypes=_ACTIVATION_DTYPES, device=x.device)
    for name, taps in (("weight", weight), ("conv_state", conv_state)):
        checks.check_span(name, taps, (taps.shape[-1] - 1) * taps.stride(-1), "taps")
    if activation not in ("silu", None):
        raise checks.fail("activation", repr(activation), '"silu" or None', "apply other activations afterwards")
    checks.check_runnable("x", x)


def _check_values(
    cu_seqlens: torch.Tensor, state_indices: torch.Tensor, slots: int, tokens: int, max_seqlen: int | None
) -> None:
    """Strict mode only, because it reads the device."""
    if not checks.check_strict():
        return
    checks.check_cu_seqlens(cu_seqlens, tokens, tokens_in="x")
    checks.check_slots(state_indices, slots)
    longest = max((end - start for start, end in pairwise(cu_seqlens.tolist())), default=0)
    if max_seqlen is not None and max_seqlen < longest:
        raise checks.fail("max_seqlen", max_seqlen, f"at least {longest}", "pass the longest length, or None")
