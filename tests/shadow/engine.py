"""A small engine of somebody else: functions with the engines' signatures, right ones and wrong ones, on our references."""

from __future__ import annotations

import torch
from torch import Tensor

from references import chunk_metadata, gdn_recurrence
from references import conv_prefill as conv_reference
from references import gdn_decode as decode_reference
from references import moe as moe_reference
from references.step_metadata import StepMetadataBuilder


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    cu_seqlens: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    scale: float | None = None,
) -> Tensor:
    return gdn_recurrence(
        q,
        k,
        v,
        g=g,
        beta=beta,
        state=state,
        cu_seqlens=cu_seqlens,
        state_indices=state_indices,
        has_initial_state=has_initial_state,
        scale=scale,
    )


def prefill_of_the_neighbour(q: Tensor, k: Tensor, v: Tensor, **rest: Tensor) -> Tensor:
    """Starts from the state of the slot beside its own."""
    state = rest.pop("state")
    wrong = state.roll(1, 0).contiguous()
    o = prefill(q, k, v, state=wrong, **rest)
    own = rest["state_indices"].long()
    state[own] = wrong[own]
    return o


def fused_sigmoid_gating_delta_rule_update(
    A_log: Tensor,
    a: Tensor,
    dt_bias: Tensor,
    softplus_beta: float,
    softplus_threshold: float,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    b: Tensor,
    initial_state_source: Tensor,
    initial_state_indices: Tensor,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """[B, 1, heads, dim], states [slots, HV, V, K]; inactive rows are left as they come, as engines leave them."""
    o = decode_reference(
        q[:, 0],
        k[:, 0],
        v[:, 0],
        a=a.flatten(0, 1),
        b=b.flatten(0, 1),
        A_log=A_log,
        dt_bias=dt_bias,
        state=initial_state_source,
        state_indices=initial_state_indices,
        scale=scale,
    )
    o[initial_state_indices < 0] = float("nan")
    return o[:, None]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    query_start_loc: Tensor | None = None,
    cache_indices: Tensor | None = None,
    has_initial_state: Tensor | None = None,
    conv_states: Tensor | None = None,
    activation: str | None = "silu",
    pad_slot_id: int = -1,
) -> Tensor:
    """As TensorRT-LLM's: the result overwrites x [D, T]."""
    y = conv_reference(
        x.T,
        weight,
        bias=bias,
        conv_state=conv_states,
        cu_seqlens=query_start_loc,
        state_indices=cache_indices,
        has_initial_state=has_initial_state,
        activation=activation,
    )
    return x.copy_(y.T)


def cu_seqlens_to_chunk_indices_offsets(
    cu_seqlens: Tensor, chunk_size: int, total_seqlens: int = -1, extra_chunks: int = -1
) -> tuple[Tensor, Tensor]:
    return chunk_metadata(cu_seqlens, chunk_size)


class Builder(StepMetadataBuilder):
    """A step builder whose flags can go stale."""

    stale = False

    def prepare(self, *, seq_lens: list, num_contexts: int, num_cached_tokens: list, state_slots: list) -> object:
        built = super().prepare(
            seq_lens=seq_lens, num_contexts=num_contexts, num_cached_tokens=num_cached_tokens, state_slots=state_slots
        )
        if self.stale:
            built.has_initial_state.fill_(True)
        return built


class Layer:
    @staticmethod
    def scaled(cu_seqlens: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
        return chunk_metadata(cu_seqlens, chunk_size)

    @classmethod
    def of_class(cls, cu_seqlens: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
        return chunk_metadata(cu_seqlens, chunk_size)


class Child(Layer):
    """Inherits its methods."""


def fails(cu_seqlens: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    raise KeyError("the host's own")


def square(x: Tensor) -> Tensor:
    """Nothing that is known."""
    return x * x


def prefill_call(seed: int = 0, dtype: torch.dtype = torch.float32, slots: int = 7) -> tuple[tuple, dict]:
    """Arguments of a prefill of three sequences, one of them resumed, in a pool that is NaN elsewhere."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    state = torch.full((slots, 4, 6, 8), float("nan"))
    state[2:5] = normal(3, 4, 6, 8)
    tokens = (normal(9, 2, 8).to(dtype), normal(9, 2, 8).to(dtype), normal(9, 4, 6).to(dtype))
    rest = {
        "g": -0.1 * torch.rand(9, 4, generator=draw),
        "beta": torch.rand(9, 4, generator=draw),
        "state": state,
        "cu_seqlens": torch.tensor([0, 4, 5, 9], dtype=torch.int32),
        "state_indices": torch.tensor([3, 2, 4], dtype=torch.int32),
        "has_initial_state": torch.tensor([True, False, True]),
    }
    return tokens, rest


def experts(
    x: Tensor,
    router_logits: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    top_k: int,
    method: str,
    bias: Tensor | None = None,
    expert_offset: int = 0,
) -> Tensor:
    return moe_reference(
        x, router_logits, w_gate_up, w_down, top_k=top_k, method=method, bias=bias, expert_offset=expert_offset
    )


def experts_swapped(
    x: Tensor, router_logits: Tensor, w_gate_up: Tensor, w_down: Tensor, *, top_k: int, method: str
) -> Tensor:
    """Takes the up rows for the gate's, as weights in another library's order would have it."""
    gate, up = w_gate_up.chunk(2, dim=1)
    return experts(x, router_logits, torch.cat([up, gate], dim=1), w_down, top_k=top_k, method=method)


def experts_call(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, logits and the weights of five experts."""
    draw = torch.Generator().manual_seed(5)
    shapes = ((7, 12), (7, 5), (5, 16, 12), (5, 12, 8))
    return tuple(torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
