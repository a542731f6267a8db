"""Gated delta net: projection, convolution, delta rule, gated norm, projection.

Contexts go through the prefill kernels and decodes through the fused ones, each on its part of the packed tokens. Nothing
is copied around them: queries, keys, values and gates are views, and states are read and written in their slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.batch import StepBatch
from serving.config import ModelConfig
from serving.kernel_set import KernelSet
from serving.weights import Weights


def delta_net(
    x: Tensor,
    weights: Weights,
    config: ModelConfig,
    kernels: KernelSet,
    batch: StepBatch,
    conv_state: Tensor,
    delta_state: Tensor,
) -> Tensor:
    """x [T, Hd] -> [T, Hd]; conv_state [slots, D, W-1] and delta_state [slots, HV, V, K] are updated in place."""
    heads, channels = config.value_heads, config.conv_channels
    projected = F.linear(x, weights["delta.in_proj"])
    mixed, z, b, a = projected.split([channels, heads * config.value_dim, heads, heads], dim=-1)
    contexts, tokens = batch.num_contexts, batch.context_tokens
    slots = batch.metadata.state_indices
    parts = []
    if contexts:
        sequences = {
            "cu_seqlens": batch.metadata.query_start_loc[: contexts + 1],
            "state_indices": slots[:contexts],
            "has_initial_state": batch.metadata.has_initial_state[:contexts],
        }
        convolved = kernels.conv_prefill(
            mixed[:tokens], weights["delta.conv"], bias=None, conv_state=conv_state, activation="silu", **sequences
        )
        g, beta = kernels.gates(a[:tokens], b[:tokens], weights["delta.A_log"], weights["delta.dt_bias"])
        parts.append(
            kernels.gdn_prefill(*split_heads(convolved, config), g=g, beta=beta, state=delta_state, **sequences)
        )
    if tokens < x.shape[0]:
        convolved = kernels.conv_update(
            mixed[tokens:],
            weights["delta.conv"],
            bias=None,
            conv_state=conv_state,
            state_indices=slots[contexts:],
            activation="silu",
        )
        parts.append(
            kernels.gdn_decode(
                *split_heads(convolved, config),
                a=a[tokens:],
                b=b[tokens:],
                A_log=weights["delta.A_log"],
                dt_bias=weights["delta.dt_bias"],
                state=delta_state,
                state_indices=slots[contexts:],
            )
        )
    o = parts[0] if len(parts) == 1 else torch.cat(parts)
    gated = kernels.gated_rmsnorm(o, z.unflatten(-1, (heads, -1)), weights["delta.norm"], eps=config.norm_eps)
    return F.linear(gated.flatten(1), weights["delta.out_proj"])


def split_heads(convolved: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """[T, D] -> views q, k [T, H, K] and v [T, HV, V]."""
    keys = config.key_heads * config.key_dim
    q, k, v = convolved.split([keys, keys, config.value_heads * config.value_dim], dim=-1)
    return (
        q.unflatten(-1, (config.key_heads, config.key_dim)),
        k.unflatten(-1, (config.key_heads, config.key_dim)),
        v.unflatten(-1, (config.value_heads, config.value_dim)),
    )
