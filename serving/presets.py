"""Random models by name, for a run without a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from serving.checkpoint import read_checkpoint
from serving.config import ModelConfig
from serving.kernel_set import KernelSet
from serving.model import HybridModel
from serving.weights import random_weights

#: Three gated delta nets, then attention, as published models have it.
GROUP = ("linear_attention", "linear_attention", "linear_attention", "full_attention")

PRESETS = {
    # A few heads of few channels: the interpreter of a CPU takes a millisecond for each program of a kernel.
    "tiny": ModelConfig(
        vocab_size=96,
        hidden_size=32,
        layers=(*GROUP[-2:], GROUP[0]),
        key_heads=1,
        value_heads=2,
        key_dim=16,
        value_dim=16,
        conv_width=4,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        rotary_dim=4,
        rope_theta=1e7,
        intermediate_size=48,
        num_experts=4,
        top_k=2,
        expert_size=16,
        shared_expert_size=16,
        sparse_layers=(True, True, False),
    ),
    # The width, heads and MLP of Qwen3.5-0.8B, a third of its depth, and few words: its logits are kept for the oracle.
    "small": ModelConfig(
        vocab_size=2048,
        hidden_size=1024,
        layers=GROUP * 2,
        key_heads=16,
        value_heads=16,
        key_dim=128,
        value_dim=128,
        conv_width=4,
        num_heads=8,
        num_kv_heads=2,
        head_dim=256,
        rotary_dim=64,
        rope_theta=1e7,
        intermediate_size=3584,
    ),
}


def model(name: str, kernels: str, *, dtype: torch.dtype, device: torch.device, seed: int) -> HybridModel:
    """The checkpoint in the folder ``name``, or a random model of that name.

    Raises:
        ValueError: neither a folder nor a name of `PRESETS`; a checkpoint or a kernel set that cannot be.
    """
    chosen = KernelSet.named(kernels)
    if name in PRESETS:
        return HybridModel(PRESETS[name], random_weights(PRESETS[name], seed, dtype, device), chosen)
    if not Path(name).is_dir():
        raise ValueError(f"model: got {name!r}, expected {', '.join(PRESETS)}, or the folder of a checkpoint")
    checkpoint = read_checkpoint(name, dtype=dtype, device=device)
    return HybridModel(checkpoint.config, checkpoint.weights, chosen)
