"""Input projections of a gated delta net: Qwen3-Next's rows, grouped by key head, and the dense order of Qwen3.5.

Key head h of Hk serves r = HV / Hk value heads. Qwen3-Next has two matrices whose rows are, for each key head in turn,

    in_proj_qkvz   [q (K) | k (K) | v of its r value heads (r V) | z of them (r V)]
    in_proj_ba     [b of them (r) | a of them (r)]

In dense order the rows are [Q of all key heads | K | V of all value heads | Z | b | a]. Value heads keep their order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving.config import ModelConfig


def dense_from_grouped(qkvz: Tensor, ba: Tensor, config: ModelConfig) -> Tensor:
    """in_proj_qkvz [2 Hk K + 2 HV V, Hd], in_proj_ba [2 HV, Hd] -> [D + HV V + 2 HV, Hd]."""
    per_key = config.value_heads // config.key_heads
    values = per_key * config.value_dim
    groups = qkvz.unflatten(0, (config.key_heads, -1))
    wide = groups.split([config.key_dim, config.key_dim, values, values], dim=1)
    narrow = ba.unflatten(0, (config.key_heads, -1)).split([per_key, per_key], dim=1)
    return torch.cat([part.flatten(0, 1) for part in (*wide, *narrow)])


def grouped_from_dense(in_proj: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """The inverse: (in_proj_qkvz, in_proj_ba)."""
    parts = [part.unflatten(0, (config.key_heads, -1)) for part in in_proj.split(dense_rows(config))]
    return torch.cat(parts[:4], dim=1).flatten(0, 1), torch.cat(parts[4:], dim=1).flatten(0, 1)


def dense_rows(config: ModelConfig) -> list[int]:
    """How many rows Q, K, V, Z, b and a have."""
    keys, values = config.key_heads * config.key_dim, config.value_heads * config.value_dim
    return [keys, keys, values, values, config.value_heads, config.value_heads]
