"""flash-linear-attention behind our contracts (read in fla-core 0.6.0: `fla/ops/gated_delta_rule`).

With `state_v_first` its states are ours, [V, K]. What the library does differently, and so does not claim:

- both operators: states are packed, one a sequence, and returned as new float32 tensors: they are gathered and
  scattered here (see `packed`); views are copied to dense tensors inside;
- prefill: the number of chunks is read back from the device, so it cannot be captured the first time; the chunks are
  memoised by the identity of `cu_seqlens`, so one that has changed in place gets those of its old content (unless
  `all_resumed`, a copy is passed); kernels are autotuned at first use, which takes minutes over all shapes; float32
  inputs are multiplied in tf32;
- decode: a recurrence over packed states, a program for every 8 value rows.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from . import packed


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

    def compute(initial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Packed sequences are one batch entry to the library: [1, T, heads, dim].
        o, final = _library().chunk_gated_delta_rule(
            q.unsqueeze(0),
            k.unsqueeze(0),
            v.unsqueeze(0),
            g.unsqueeze(0),
            beta.unsqueeze(0),
            scale=scale,
            initial_state=initial,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
            state_v_first=True,
            cu_seqlens=cu_seqlens if all_resumed else cu_seqlens.clone(),
        )
        return o.squeeze(0), final

    if all_resumed:
        return packed.resumed(compute, state=state, state_indices=state_indices)
    return packed.call(
        compute,
        v=v,
        state=state,
        cu_seqlens=cu_seqlens,
        state_indices=state_indices,
        has_initial_state=has_initial_state,
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
    all_active: bool = False,
) -> torch.Tensor:
    """`all_active`: no row is inactive."""

    def compute(initial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Rows are sequences of one token to the library: [B, 1, heads, dim].
        o, final = _library().fused_recurrent_gated_delta_rule(
            q.unsqueeze(1),
            k.unsqueeze(1),
            v.unsqueeze(1),
            a.unsqueeze(1),
            beta=b.unsqueeze(1),
            scale=scale,
            initial_state=initial,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
            use_gate_in_kernel=True,
            A_log=A_log,
            dt_bias=dt_bias,
            use_beta_sigmoid_in_kernel=True,
            state_v_first=True,
        )
        return o.squeeze(1), final

    if all_active:
        return packed.resumed(compute, state=state, state_indices=state_indices)
    return packed.rows(compute, v=v, state=state, state_indices=state_indices)


gdn_prefill.sluicegate = {  # type: ignore[attr-defined]
    "devices": ("cuda",),
    "dtypes": ("float16", "bfloat16"),
    "bitwise": False,
}
gdn_decode.sluicegate = {"devices": ("cuda",), "bitwise": False}  # type: ignore[attr-defined]


def _library() -> ModuleType:
    return importlib.import_module("fla.ops.gated_delta_rule")
