"""What adapters to mixtures of experts share: the contract's checks, routing, and ids among the experts that are here."""

from __future__ import annotations

from typing import Any

import torch

from optimized import checks
from optimized.moe_routing import moe_routing

BFLOAT16 = (torch.bfloat16,)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    expert_offset: int,
    dtypes: tuple[torch.dtype, ...] = BFLOAT16,
) -> None:
    """Raise a ValueError for tensors that do not fit each other, or whose dtype the library does not take; no value is read."""
    dims: dict[str, int] = {}
    checks.check_tensor("x", x, shape=("T", "Hd"), dtypes=dtypes, dims=dims)
    same: dict[str, Any] = {"device": x.device, "dims": dims}
    checks.check_tensor("router_logits", router_logits, shape=("T", "E"), dtypes=_FLOATS, **same)
    checks.check_tensor("w_down", w_down, shape=("El", "Hd", "I"), dtypes=(x.dtype,), **same)
    checks.check_tensor("w_gate_up", w_gate_up, shape=("El", 2 * dims["I"], "Hd"), dtypes=(x.dtype,), **same)
    checks.check_experts_here(expert_offset, dims["El"], dims["E"])


def routed(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    expert_offset: int,
    dtypes: tuple[torch.dtype, ...] = BFLOAT16,
    **routing: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`check`, and ids and weights [T, k] of `optimized.moe_routing`, whose keywords `routing` are."""
    check(x, router_logits, w_gate_up, w_down, expert_offset, dtypes)
    return moe_routing(router_logits, **routing)


def local_ids(expert_ids: torch.Tensor, offset: int, local: int, elsewhere: int) -> torch.Tensor:
    """int32, dense: ids among the `local` experts from `offset` on; `elsewhere` for those that are not among them."""
    moved = expert_ids - offset
    return torch.where((moved >= 0) & (moved < local), moved, elsewhere).int()


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, contiguous and at an address that is a multiple of 16 bytes, as kernels with wide loads want them."""
    packed = tensor.contiguous()
    return packed.clone() if packed.data_ptr() % 16 else packed


def padded_tokens(x: torch.Tensor, hidden: int) -> torch.Tensor:
    """x [T, Hd] dense and filled up with zeros to [T, hidden]."""
    missing = hidden - x.shape[1]
    return torch.nn.functional.pad(x, (0, missing)) if missing else dense(x)
