"""SGLang's Triton kernels behind our contracts (read in 0.5.10: `sglang/srt/layers/attention/{fla,mamba}`).

The modules of the convolution and of decode import nothing else of SGLang, so a folder with just these files on the path
is enough; prefill also wants `torch_release` of `sglang.srt.utils.common`. With the whole package installed they are
found the same way. What the library does differently, and so does not claim:

- convolution: it takes the lengths on the host, knows only -1 as an inactive slot and leaves such rows unwritten; it
  does not touch the state of an empty sequence, so a fresh one keeps its slot's old content;
- decode: an inactive row's output is computed from a zero state instead of being zero; head and element strides are
  taken to be dense, a's row pitch too; the slot offset is computed in the dtype of the indices (int32 overflows);
- prefill: every sequence reads its slot, fresh or not, and -1 is an address before the pool; chunks are attributed to
  the wrong sequence after an empty one. So such batches go through packed states (see `packed`) with the empty
  sequences left out; only with `all_resumed` does it work on the pool, which must be dense (a padded one would be
  copied, and the copy updated) and shorter than 2^31 elements, for the offset of a slot is computed in int32. The
  lengths are read back from the device, so it cannot be captured the first time; the chunks are memoised by the
  identity of `cu_seqlens`. Views are copied to dense tensors inside; normalised q and k are rounded to their dtype, and
  their kernel is compiled anew for each number of tokens; no float32 inputs.
"""

from __future__ import annotations

import importlib
from itertools import pairwise
from types import ModuleType

import torch

from . import packed
from .sglang_moe import moe as moe

_ATTENTION = "sglang.srt.layers.attention."


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
    lengths: list[int] | None = None,
) -> torch.Tensor:
    """`lengths`: the sequences' lengths, for callers that have them on the host; read from the device otherwise."""
    if lengths is None:
        starts = cu_seqlens.tolist()
        lengths = [end - start for start, end in pairwise(starts)]
    y = _conv().causal_conv1d_fn(
        x.T,
        weight,
        bias,
        conv_state,
        cu_seqlens,
        lengths,
        cache_indices=state_indices,
        has_initial_state=has_initial_state,
        activation=activation,
    )
    return y.T


def conv_update(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    conv_state: torch.Tensor,
    state_indices: torch.Tensor,
    activation: str | None = None,
) -> torch.Tensor:
    return _conv().causal_conv1d_update(
        x, conv_state, weight, bias, activation=activation, conv_state_indices=state_indices
    )


def gdn_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    state_indices: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    # Rows are sequences of one token to the library: [B, 1, heads, dim].
    o = _decode().fused_sigmoid_gating_delta_rule_update(
        A_log,
        a.unsqueeze(1),
        dt_bias,
        1.0,
        20.0,
        q.unsqueeze(1),
        k.unsqueeze(1),
        v.unsqueeze(1),
        b.unsqueeze(1),
        state,
        state_indices,
        scale=scale,
        use_qk_l2norm_in_kernel=True,
    )
    return o.squeeze(1)


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
    all_resumed: bool = False,
) -> torch.Tensor:
    """`all_resumed`: every sequence is active, resumed and not empty, and `cu_seqlens` never changes in place."""

    def on_pool(pool: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        # Packed sequences are one batch entry to the library: [1, T, heads, dim].
        o, _, _ = _chunk().chunk_gated_delta_rule(
            q.unsqueeze(0),
            k.unsqueeze(0),
            v.unsqueeze(0),
            g.unsqueeze(0),
            beta.unsqueeze(0),
            scale=scale,
            initial_state=pool,
            initial_state_indices=slots,
            cu_seqlens=starts,
            use_qk_l2norm_in_kernel=True,
        )
        return o.squeeze(0)

    def compute(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        filled = torch.nonzero(cu_seqlens.diff()).flatten()
        if filled.numel() == 0:
            return torch.zeros_like(v), states
        return on_pool(states, filled, torch.cat((cu_seqlens[:1], cu_seqlens[1:][filled]))), states

    if all_resumed:
        return on_pool(state, state_indices, cu_seqlens)
    return packed.call(
        compute,
        v=v,
        state=state,
        cu_seqlens=cu_seqlens,
        state_indices=state_indices,
        has_initial_state=has_initial_state,
    )


# Attributes of a function are how a subject says what it takes; see `harness.subjects`.
conv_prefill.sluicegate = {"devices": ("cuda",), "strided": False, "bitwise": False}  # type: ignore[attr-defined]
conv_update.sluicegate = {"devices": ("cuda",), "strided": False, "bitwise": False}  # type: ignore[attr-defined]
gdn_decode.sluicegate = {  # type: ignore[attr-defined]
    "devices": ("cuda",),
    "strided": False,
    "padded_pool": False,
    "bitwise": False,
}
gdn_prefill.sluicegate = {  # type: ignore[attr-defined]
    "devices": ("cuda",),
    "dtypes": ("float16", "bfloat16"),
    "bitwise": False,
}


def _conv() -> ModuleType:
    return importlib.import_module(_ATTENTION + "mamba.causal_conv1d_triton")


def _decode() -> ModuleType:
    return importlib.import_module(_ATTENTION + "fla.fused_sigmoid_gating_recurrent")


def _chunk() -> ModuleType:
    return importlib.import_module(_ATTENTION + "fla.chunk")
