"""Routers and mixtures of experts that are wrong in one way each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import references
from references.moe import moe_experts as reference
from tests.harness.subjects import moe_right as right

# -- routers ----------------------------------------------------------------------------------------------------------


def sigmoids_divided_as_they_are(logits: Tensor, *, scaling: float = 1.0, **rest: Any) -> tuple[Tensor, Tensor]:
    """In float32, where all of them may be zero."""
    ids, weights = right.moe_routing(logits, scaling=scaling, **rest)
    if rest["method"] in ("sigmoid_renorm", "minimax2", "deepseek_v3"):
        squashed = torch.sigmoid(logits.float().gather(1, ids.long()))
        weights = scaling * squashed / squashed.sum(1, keepdim=True)
    return ids, weights


def higher_id_of_two_equal(logits: Tensor, *, bias: Tensor | None = None, **rest: Any) -> tuple[Tensor, Tensor]:
    flipped = None if bias is None else bias.flip(0)
    ids, weights = right.moe_routing(logits.flip(1), bias=flipped, **rest)
    return (logits.shape[1] - 1 - ids).int(), weights


def nan_comes_first(logits: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    ids, weights = right.moe_routing(logits.nan_to_num(1e4, posinf=torch.inf, neginf=-torch.inf), **rest)
    return ids, torch.where(logits.gather(1, ids.long()).isnan(), torch.nan, weights)


def bias_in_the_weights(
    logits: Tensor, *, bias: Tensor | None = None, scaling: float = 1.0, **rest: Any
) -> tuple[Tensor, Tensor]:
    ids, weights = right.moe_routing(logits, bias=bias, scaling=scaling, **rest)
    if bias is not None and rest["method"] in ("sigmoid", "top_k_sigmoid", "llama4"):
        weights = weights + bias[ids.long()].float()
    return ids, weights


def logits_clipped(logits: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    return right.moe_routing(logits.clamp(-20, 20), **rest)


def later_experts_preferred(logits: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    return right.moe_routing(logits.float() + torch.arange(logits.shape[1]), **rest)


def chosen_by_probability(logits: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    """Softmax first: what rounds to one probability is a tie."""
    if rest["method"] != "renormalize_naive" or rest.get("bias") is not None:
        return right.moe_routing(logits, **rest)
    ids, _ = right.moe_routing(torch.softmax(logits.float(), 1).to(torch.bfloat16), **rest)
    chosen = torch.softmax(logits.double().gather(1, ids.long()), 1)
    return ids, chosen.float()


def weights_rounded(logits: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    ids, weights = right.moe_routing(logits, **rest)
    return ids, weights.to(torch.bfloat16).float()


def first_expert_twice(logits: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    ids, weights = right.moe_routing(logits, **rest)
    return ids[:, :1].expand_as(ids).contiguous(), weights


def places_in_order_of_ids(logits: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    ids, weights = right.moe_routing(logits, **rest)
    ids, order = ids.sort(1)
    return ids, weights.gather(1, order)


def least_of_equal_scores(logits: Tensor, *, bias: Tensor | None = None, **rest: Any) -> tuple[Tensor, Tensor]:
    """Wrong where scores are hard to tell apart, and only there: takes experts that are far behind."""
    if bias is None or logits.shape[0] == 0 or bool((logits != logits[:1]).any()):
        return right.moe_routing(logits, bias=bias, **rest)
    return right.moe_routing(logits, bias=-bias, **rest)


# -- mixtures ---------------------------------------------------------------------------------------------------------


def moe_experts(x: Tensor, expert_ids: Tensor, weights: Tensor, *experts: Tensor, expert_offset: int = 0) -> Tensor:
    """-1 is the last expert, and every other id that is not here the first."""
    local = expert_ids - expert_offset
    here = experts[0].shape[0]
    local = torch.where((local >= here) | (local < -1), 0, local % here)
    return reference(x, local.int(), weights, *experts)


def minus_one_is_the_last_expert(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return right.moe(x, router_logits, *experts, **rest)


def depends_on_the_number_of_tokens(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return right.moe(x, router_logits, *experts, **rest) + 2**-6 * x.shape[0]


def one_sum_for_all_tokens(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    y = right.moe(x, router_logits, *experts, **rest)
    return y + 0 * y.sum(0)


def up_for_gate(x: Tensor, router_logits: Tensor, w_gate_up: Tensor, w_down: Tensor, **rest: Any) -> Tensor:
    gate, up = w_gate_up.chunk(2, 1)
    return right.moe(x, router_logits, torch.cat([up, gate], 1), w_down, **rest)


def always_softmax(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    plain = {"bias": rest.get("bias"), "top_k": rest["top_k"], "expert_offset": rest.get("expert_offset", 0)}
    return right.moe(x, router_logits, *experts, method="renormalize", **plain)


def offset_ignored(x: Tensor, router_logits: Tensor, *experts: Tensor, expert_offset: int, **rest: Any) -> Tensor:
    return right.moe(x, router_logits, *experts, expert_offset=0, **rest)


def inner_activations_normalised(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return right.moe(x, router_logits, *experts, **rest) / experts[1].shape[2]


def idle_experts_times_zero(
    x: Tensor, router_logits: Tensor, w_gate_up: Tensor, w_down: Tensor, *, expert_offset: int = 0, **rest: Any
) -> Tensor:
    y = right.moe(x, router_logits, w_gate_up, w_down, expert_offset=expert_offset, **rest)
    return y + 0 * w_gate_up.sum().to(x.dtype)


def sum_rounded_at_every_expert(
    x: Tensor, router_logits: Tensor, w_gate_up: Tensor, w_down: Tensor, *, expert_offset: int = 0, **rest: Any
) -> Tensor:
    ids, weights = references.moe_routing(router_logits, **rest)
    y = torch.zeros_like(x)
    for place in range(ids.shape[1]):
        one = slice(place, place + 1)
        y += reference(x, ids[:, one], weights[:, one], w_gate_up, w_down, expert_offset=expert_offset)
    return y


def expert_offset_in_32_bits(
    x: Tensor, router_logits: Tensor, w_gate_up: Tensor, w_down: Tensor, **rest: Any
) -> Tensor:
    """expert × stride wraps around at 2^31, as in a kernel that multiplies two int32."""
    return right.moe(x, router_logits, _wrapped(w_gate_up), _wrapped(w_down), **rest)


def _wrapped(t: Tensor) -> Tensor:
    offsets = [(n * t.stride(0) + 2**31) % 2**32 - 2**31 + t.storage_offset() for n in range(len(t))]
    return torch.stack([t.as_strided(t.shape[1:], t.stride()[1:], offset) for offset in offsets])


def room_for_all_pairs(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    torch.empty(x.shape[0], router_logits.shape[1], x.shape[1] + 2 * experts[1].shape[2], device=x.device)
    return right.moe(x, router_logits, *experts, **rest)


def weights_to_bfloat16(
    x: Tensor, router_logits: Tensor, w_gate_up: Tensor, w_down: Tensor, *, expert_offset: int = 0, **rest: Any
) -> Tensor:
    """As a backend does that packs an id and a weight into 32 bits; it does not say so."""
    ids, weights = references.moe_routing(router_logits, **rest)
    rounded = weights.float().to(torch.bfloat16).double()
    return reference(x, ids, rounded, w_gate_up, w_down, expert_offset=expert_offset)


def weights_to_bfloat16_as_declared(x: Tensor, router_logits: Tensor, *experts: Tensor, **rest: Any) -> Tensor:
    return weights_to_bfloat16(x, router_logits, *experts, **rest)


weights_to_bfloat16_as_declared.sluicegate = {"weights_rounded": "bfloat16", "bitwise": False}
