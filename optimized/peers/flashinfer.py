"""FlashInfer's CuTe DSL kernels behind our contracts (read in 0.7.2: `flashinfer/gdn_{prefill,decode}.py`, for SM90).

Its states are ours, [V, K]. What the library does differently, and so does not claim:

- both operators: K = V = 128 only, so smaller heads are padded with zeros here, which changes no result; pointers are
  taken to be aligned to 16 bytes; compiled at first use, some seconds a variant;
- prefill: g is the decay itself, exp(g), not its logarithm; normalised q and k are rounded to their dtype (0.7.2 does
  that in a kernel of its own; in versions before `use_qk_l2norm_in_kernel` was not read, and the caller had to); slots
  are not checked, so -1 is an address before the pool; an empty sequence leaves its slot untouched, so a fresh one keeps
  the old content. Such batches go through packed states (see `packed`); only with `all_resumed` does it work on the
  pool. With few sequences it splits them among several programs, as its heuristic decides (`use_cp`);
- decode: inputs are converted to bfloat16, the output is computed in it; with a bfloat16 state an inactive row reads and
  writes slot 0, so only with `all_active` does it work on the pool.

Nothing here waits for the device.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
import torch.nn.functional as F

from . import packed
from .flashinfer_moe import moe as moe

_HEAD_DIM = 128


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
    max_seqlen: int | None = None,
) -> torch.Tensor:
    """`all_resumed`: every sequence is active, resumed and not empty, K = V = 128. `max_seqlen`: for callers that have it
    on the host, it keeps the grids of split sequences small.
    """
    key_dim, value_dim = q.shape[-1], v.shape[-1]

    def run(initial: torch.Tensor, final: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
        o, _ = _prefill().chunk_gated_delta_rule(
            _padded(q).contiguous(),
            _padded(k).contiguous(),
            _padded(v).contiguous(),
            g.float().exp().contiguous(),
            beta.float().contiguous(),
            scale=key_dim**-0.5 if scale is None else scale,
            initial_state=initial,
            output_final_state=True,
            cu_seqlens=cu_seqlens,
            use_qk_l2norm_in_kernel=True,
            output_state=final,
            state_indices=slots,
            max_seqlen=max_seqlen,
            backend="flashinfer",
        )
        return o[..., :value_dim]

    def compute(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        initial = _padded_states(states)
        final = initial.clone()
        o = run(initial, final, None)
        return o, final[..., :value_dim, :key_dim]

    if all_resumed:
        return run(state, state, state_indices)
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
    """`all_active`: no row is inactive, K = V = 128."""
    batch, _, key_dim = q.shape
    value_dim = v.shape[-1]

    def run(pool: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        # Rows are sequences of one token to the library: [B, 1, heads, dim].
        o, _ = _decode().gated_delta_rule_decode_pretranspose(
            _padded(q).unsqueeze(1),
            _padded(k).unsqueeze(1),
            _padded(v).unsqueeze(1),
            None,
            A_log.float(),
            a.unsqueeze(1),
            dt_bias.float(),
            b.unsqueeze(1),
            scale=key_dim**-0.5 if scale is None else scale,
            use_qk_l2norm=True,
            initial_state=pool,
            initial_state_indices=slots,
            backend="flashinfer",
        )
        return o.squeeze(1)[..., :value_dim]

    def compute(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pool = _padded_states(states)
        o = run(pool, torch.arange(batch, dtype=torch.int32, device=v.device))
        return o, pool[..., :value_dim, :key_dim]

    if all_active:
        return run(state, state_indices)
    return packed.rows(compute, v=v, state=state, state_indices=state_indices)


gdn_prefill.sluicegate = {  # type: ignore[attr-defined]
    "devices": ("cuda",),
    "dtypes": ("float16", "bfloat16"),
    "max_head_dim": _HEAD_DIM,
    "strided": False,
    "bitwise": False,
    "min_capability": (9, 0),
}
gdn_decode.sluicegate = {  # type: ignore[attr-defined]
    "devices": ("cuda",),
    "dtypes": ("bfloat16",),
    "state_dtypes": ("float32", "bfloat16"),
    "max_head_dim": _HEAD_DIM,
    "strided": False,
    "bitwise": False,
    "min_capability": (9, 0),
}


def _padded(x: torch.Tensor) -> torch.Tensor:
    """[..., dim] -> [..., 128]; the tensor itself where nothing is missing."""
    missing = _HEAD_DIM - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x


def _padded_states(x: torch.Tensor) -> torch.Tensor:
    """[..., V, K] -> [..., 128, 128]; the tensor itself where nothing is missing."""
    value_dim, key_dim = x.shape[-2:]
    if value_dim == key_dim == _HEAD_DIM:
        return x
    return F.pad(x, (0, _HEAD_DIM - key_dim, 0, _HEAD_DIM - value_dim))


def _prefill() -> ModuleType:
    return importlib.import_module("flashinfer.gdn_prefill")


def _decode() -> ModuleType:
    return importlib.import_module("flashinfer.gdn_decode")
