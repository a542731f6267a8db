"""SGLang's Triton kernels behind our contracts (read in 0.5.10: `sglang/srt/layers/attention/{fla,mamba}`).

The two modules used here import nothing else of SGLang, so a folder with just these files on the path is enough; with
the whole package installed they are found the same way. What the library does differently, and so does not claim:

- convolution: it takes the lengths on the host, knows only -1 as an inactive slot and leaves such rows unwritten; it
  does not touch the state of an empty sequence, so a fresh one keeps its slot's old content;
- decode: an inactive row's output is computed from a zero state instead of being zero; head and element strides are
  taken to be dense, a's row pitch too; the slot offset is computed in the dtype of the indices (int32 overflows).
"""

from __future__ import annotations

import importlib
from itertools import pairwise
from types import ModuleType

import torch

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


# Attributes of a function are how a subject says what it takes; see `harness.subjects`.
conv_prefill.sluicegate = {"devices": ("cuda",), "strided": False, "bitwise": False}  # type: ignore[attr-defined]
conv_update.sluicegate = {"devices": ("cuda",), "strided": False, "bitwise": False}  # type: ignore[attr-defined]
gdn_decode.sluicegate = {  # type: ignore[attr-defined]
    "devices": ("cuda",),
    "strided": False,
    "padded_pool": False,
    "bitwise": False,
}


def _conv() -> ModuleType:
    return importlib.import_module(_ATTENTION + "mamba.causal_conv1d_triton")


def _decode() -> ModuleType:
    return importlib.import_module(_ATTENTION + "fla.fused_sigmoid_gating_recurrent")
