"""The parameters of a model by name, in the layout that the blocks compute with.

Projections of the same input are one matrix, so that what they yield are views of one tensor. Rows, in this order:

    layers.N.delta.in_proj          [Q of all heads | K | V | Z of all value heads | b | a]
    layers.N.attention.qkv_proj     [query and gate of head 0 | of head 1 | ... | keys | values]
    ....gate_up                     [gate | up]

How a checkpoint spells them is the business of `serving.checkpoint`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from serving.config import ModelConfig

Weights = dict[str, Tensor]
#: Small, and read in float32 by every kernel: a lower dtype would cost accuracy and save nothing.
_KEEP_FLOAT32 = (".A_log", ".dt_bias", ".delta.norm")


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a model of this configuration, and its shape."""
    hidden = config.hidden_size
    found: dict[str, tuple[int, ...]] = {"embed": (config.vocab_size, hidden), "norm": (hidden,)}
    if not config.tied_embeddings:
        found["lm_head"] = (config.vocab_size, hidden)
    for i, kind in enumerate(config.layers):
        mixer = _delta_net(config) if kind == "linear_attention" else _attention(config)
        mlp = _experts(config) if config.is_sparse(i) else _mlp("mlp", hidden, config.intermediate_size)
        layer = {"input_norm": (hidden,), "post_norm": (hidden,), **mixer, **mlp}
        found |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return found


def _delta_net(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    values = config.value_heads * config.value_dim
    return {
        "delta.in_proj": (config.conv_channels + values + 2 * config.value_heads, config.hidden_size),
        "delta.conv": (config.conv_channels, config.conv_width),
        "delta.A_log": (config.value_heads,),
        "delta.dt_bias": (config.value_heads,),
        "delta.norm": (config.value_dim,),
        "delta.out_proj": (config.hidden_size, values),
    }


def _attention(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    width = config.head_dim
    return {
        "attention.qkv_proj": (2 * (config.num_heads + config.num_kv_heads) * width, config.hidden_size),
        "attention.q_norm": (width,),
        "attention.k_norm": (width,),
        "attention.o_proj": (config.hidden_size, config.num_heads * width),
    }


def _mlp(prefix: str, hidden: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.gate_up": (2 * size, hidden), f"{prefix}.down": (hidden, size)}


def _experts(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    experts, size, hidden = config.num_experts, config.expert_size, config.hidden_size
    return {
        "moe.router": (experts, hidden),
        "moe.gate_up": (experts, 2 * size, hidden),
        "moe.down": (experts, hidden, size),
        **_mlp("shared", hidden, config.shared_expert_size),
        "shared.gate": (1, hidden),
    }


def converted(name: str, tensor: Tensor, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    """One parameter in the model's dtype; those that kernels read in float32 are never kept in less."""
    if dtype is not None and name.endswith(_KEEP_FLOAT32):
        dtype = torch.promote_types(dtype, torch.float32)
    return tensor.to(dtype=dtype, device=device)


def to(weights: Weights, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Weights:
    """The same model in another dtype or on another device."""
    return {name: converted(name, tensor, dtype, device) for name, tensor in weights.items()}


def random_weights(
    config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Weights:
    """A model that was never trained but in which everything matters, for tests and benchmarks.

    Activations keep their size from layer to layer, and logits spread by about 2. Norm weights are not at their neutral values.
    Decay rates are those of transformers' initialisation, exp(A_log) uniform in 0.01 to 16; dt_bias is not: its ones would let
    most heads forget a token at once. As Mamba initialises it (Gu, Dao, 2023), steps are log-uniform in 0.001 to 0.1.
    """
    random = torch.Generator(device).manual_seed(seed)

    def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=random, device=device) * (high - low) + low

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        last = name.rpartition(".")[2]
        if last == "A_log":
            return uniform(shape, 0.01, 16).log()
        if last == "dt_bias":
            return uniform(shape, math.log(1e-3), math.log(1e-1)).exp().expm1().log()
        normal = torch.randn(shape, generator=random, device=device, dtype=torch.float32)
        if name.endswith("delta.norm"):
            return 1 + 0.3 * normal
        if last.endswith("norm"):
            return 0.3 * normal
        if last == "embed":
            return normal
        if last == "conv":
            return normal * shape[-1] ** -0.5
        # Logits, and what decides about experts and heads, spread wider than what is added to the residual stream.
        gain = 2.0 if last in ("lm_head", "router") else 1.0
        return normal * gain * shape[-1] ** -0.5

    return {name: converted(name, draw(name, shape), dtype, None) for name, shape in shapes(config).items()}
