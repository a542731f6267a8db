"""What the adapters share: our contract for libraries that know only packed states.

A library that cannot leave out an inactive sequence, start a fresh one or skip a slot is handed a packed copy of the
states; here they are gathered and scattered around it, without waiting for the device. An adapter whose library works on
the pool itself does that where its caller promises (`all_resumed`) that every sequence is active, resumed and not empty:
that is how engines call it, and how it is measured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

#: States [N, HV, V, K], dense, in the pool's dtype -> o and the final states.
Compute = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def resumed(compute: Compute, *, state: torch.Tensor, state_indices: torch.Tensor) -> torch.Tensor:
    """o as `compute` gives it, the state updated, where every sequence is active and resumed."""
    slots = state_indices.long()
    o, final = compute(state[slots])
    state.index_copy_(0, slots, final.to(state.dtype))
    return o


def rows(compute: Compute, *, v: torch.Tensor, state: torch.Tensor, state_indices: torch.Tensor) -> torch.Tensor:
    """`call` for decode: rows are resumed sequences of one token."""
    return call(
        compute,
        v=v,
        state=state,
        cu_seqlens=torch.arange(v.shape[0] + 1, device=v.device),
        state_indices=state_indices,
        has_initial_state=torch.ones_like(state_indices, dtype=torch.bool),
    )


def call(
    compute: Compute,
    *,
    v: torch.Tensor,
    state: torch.Tensor,
    cu_seqlens: torch.Tensor,
    state_indices: torch.Tensor,
    has_initial_state: torch.Tensor,
) -> torch.Tensor:
    """o [T, HV, V] in v's dtype, the state updated.

    `compute` takes the states [N, HV, V, K], dense, in the state's dtype, those of fresh and of inactive sequences zero;
    it returns o and the final states. What it gives for inactive sequences and for tokens of no sequence is not used.
    """
    if state_indices.shape[0] == 0:
        return torch.zeros_like(v)
    active = state_indices >= 0
    slots = state_indices.clamp(min=0).long()
    before = state[slots]
    # A select, not a product: what a slot holds may be NaN.
    initial = torch.where((active & has_initial_state)[:, None, None, None], before, 0.0)
    o, final = compute(initial) if v.shape[0] else (torch.zeros_like(v), initial)

    # An inactive sequence repeats the write of the first active one; where there is none, all write back what they read.
    first = active.int().argmax()
    writer = torch.where(active, torch.arange(len(slots), device=slots.device), first)
    after = torch.where(active[first], final.to(state.dtype)[writer], before[first])
    state.index_copy_(0, torch.where(active[first], slots[writer], slots[first]), after)

    tokens = torch.arange(v.shape[0], device=v.device)
    sequence = torch.searchsorted(cu_seqlens[1:].long(), tokens, right=True)
    live = torch.cat((active, active.new_zeros(1)))[sequence]
    return torch.where(live[:, None, None], o, 0.0).to(v.dtype)
