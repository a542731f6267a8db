"""How Hugging Face checkpoints spell the parameters of `serving.weights`.

A parameter of ours is made of one tensor of theirs or of several. Names are without the prefix of the text model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.config import ModelConfig
from serving.packing import dense_from_grouped, dense_rows, grouped_from_dense


@dataclass(frozen=True)
class Spelling:
    """The tensors behind one parameter: their names and shapes, and how to go from them to it and back."""

    parts: tuple[tuple[str, tuple[int, ...]], ...]
    join: Callable[[list[Tensor]], Tensor]
    split: Callable[[Tensor], list[Tensor]]


def spellings(
    config: ModelConfig, grouped: Callable[[int], bool], separate: Callable[[int], bool]
) -> dict[str, Spelling]:
    """Every parameter by our name.

    Args:
        grouped: whether a layer's delta net has Qwen3-Next's grouped projections.
        separate: whether a layer's experts have tensors of their own, instead of one tensor for all.
    """
    hidden = config.hidden_size
    found = {
        "embed": plain("embed_tokens.weight", config.vocab_size, hidden),
        "norm": plain("norm.weight", hidden),
    }
    if not config.tied_embeddings:
        found["lm_head"] = plain("lm_head.weight", config.vocab_size, hidden)
    for i, kind in enumerate(config.layers):
        at = f"layers.{i}."
        layer = {
            "input_norm": plain(f"{at}input_layernorm.weight", hidden),
            "post_norm": plain(f"{at}post_attention_layernorm.weight", hidden),
        }
        if kind == "linear_attention":
            layer |= _delta_net(f"{at}linear_attn.", config, grouped(i))
        else:
            layer |= _attention(f"{at}self_attn.", config)
        if config.is_sparse(i):
            layer |= _experts(f"{at}mlp.", config, separate(i))
        else:
            layer |= _mlp("mlp", f"{at}mlp.", hidden, config.intermediate_size)
        found |= {f"layers.{i}.{name}": spelling for name, spelling in layer.items()}
    return found


def plain(name: str, *shape: int) -> Spelling:
    return Spelling(((name, shape),), lambda parts: parts[0], lambda tensor: [tensor])


def stacked(columns: int, *parts: tuple[str, int]) -> Spelling:
    """Matrices of these names and numbers of rows, one above the other."""
    rows = [count for _, count in parts]
    return Spelling(
        tuple((name, (count, columns)) for name, count in parts), torch.cat, lambda tensor: list(tensor.split(rows))
    )


def _delta_net(at: str, config: ModelConfig, grouped: bool) -> dict[str, Spelling]:
    hidden, values = config.hidden_size, config.value_heads * config.value_dim
    queries, keys, *rest, steps, rates = dense_rows(config)
    if grouped:
        qkvz = (f"{at}in_proj_qkvz.weight", (queries + keys + sum(rest), hidden))
        in_proj = Spelling(
            (qkvz, (f"{at}in_proj_ba.weight", (steps + rates, hidden))),
            lambda parts: dense_from_grouped(parts[0], parts[1], config),
            lambda tensor: list(grouped_from_dense(tensor, config)),
        )
    else:
        in_proj = stacked(
            hidden,
            (f"{at}in_proj_qkv.weight", config.conv_channels),
            (f"{at}in_proj_z.weight", values),
            (f"{at}in_proj_b.weight", config.value_heads),
            (f"{at}in_proj_a.weight", config.value_heads),
        )
    conv = (f"{at}conv1d.weight", (config.conv_channels, 1, config.conv_width))
    return {
        "delta.in_proj": in_proj,
        "delta.conv": Spelling((conv,), lambda parts: parts[0].squeeze(1), lambda tensor: [tensor.unsqueeze(1)]),
        "delta.A_log": plain(f"{at}A_log", config.value_heads),
        "delta.dt_bias": plain(f"{at}dt_bias", config.value_heads),
        "delta.norm": plain(f"{at}norm.weight", config.value_dim),
        "delta.out_proj": plain(f"{at}out_proj.weight", hidden, values),
    }


def _attention(at: str, config: ModelConfig) -> dict[str, Spelling]:
    width = config.head_dim
    return {
        "attention.qkv_proj": stacked(
            config.hidden_size,
            (f"{at}q_proj.weight", 2 * config.num_heads * width),
            (f"{at}k_proj.weight", config.num_kv_heads * width),
            (f"{at}v_proj.weight", config.num_kv_heads * width),
        ),
        "attention.q_norm": plain(f"{at}q_norm.weight", width),
        "attention.k_norm": plain(f"{at}k_norm.weight", width),
        "attention.o_proj": plain(f"{at}o_proj.weight", config.hidden_size, config.num_heads * width),
    }


def _mlp(ours: str, at: str, hidden: int, size: int) -> dict[str, Spelling]:
    return {
        f"{ours}.gate_up": stacked(hidden, (f"{at}gate_proj.weight", size), (f"{at}up_proj.weight", size)),
        f"{ours}.down": plain(f"{at}down_proj.weight", hidden, size),
    }


def _experts(at: str, config: ModelConfig, separate: bool) -> dict[str, Spelling]:
    experts, size, hidden = config.num_experts, config.expert_size, config.hidden_size
    if separate:
        rows = [
            (f"{at}experts.{e}.{half}_proj.weight", (size, hidden)) for e in range(experts) for half in ("gate", "up")
        ]
        downs = [(f"{at}experts.{e}.down_proj.weight", (hidden, size)) for e in range(experts)]
        gate_up = Spelling(
            tuple(rows),
            lambda parts: torch.cat(parts).unflatten(0, (experts, 2 * size)),
            lambda tensor: list(tensor.flatten(0, 1).split(size)),
        )
        down = Spelling(tuple(downs), torch.stack, lambda tensor: list(tensor.unbind()))
    else:
        gate_up = plain(f"{at}experts.gate_up_proj", experts, 2 * size, hidden)
        down = plain(f"{at}experts.down_proj", experts, hidden, size)
    return {
        "moe.router": plain(f"{at}gate.weight", experts, hidden),
        "moe.gate_up": gate_up,
        "moe.down": down,
        **_mlp("shared", f"{at}shared_expert.", hidden, config.shared_expert_size),
        "shared.gate": plain(f"{at}shared_expert_gate.weight", 1, hidden),
    }
