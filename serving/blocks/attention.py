"""Gated attention over paged keys and values, in plain torch.

Each head has a query and a gate of its own, norms come before the rotation of the first dims, and the sigmoid of the gate
scales what the head reads before the output projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.blocks.norms import compute_dtype, zero_centred_norm
from serving.blocks.paging import ContextRow, Paging
from serving.config import ModelConfig
from serving.weights import Weights

#: Queries of a context that attend at once: bounds the scores' memory, changes nothing else.
QUERY_BLOCK = 512


def rotation(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, rotary_dim / 2] of each position's angles.

    Angles are computed in float64 whatever the model's dtype: position x frequency in float32 is wrong by milliradians after
    100,000 tokens. transformers does that; for the model to have one meaning in every dtype, we do not.
    """
    exponent = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64, device=positions.device) / config.rotary_dim
    angles = positions.double()[:, None, None] * config.rope_theta**-exponent
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first 2 x cos.shape[-1] of x's last dimension, dim i together with dim i + half; x [T, heads, head dim]."""
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def attention(
    x: Tensor,
    weights: Weights,
    config: ModelConfig,
    turned: tuple[Tensor, Tensor],
    paging: Paging,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """x [T, Hd] -> [T, Hd]; pools keys and values [pages, page size, kv heads, head dim] are written first, then read."""
    heads, groups, width = config.num_heads, config.num_kv_heads, config.head_dim
    projected = F.linear(x, weights["attention.qkv_proj"])
    query_gate, k, v = projected.split([2 * heads * width, groups * width, groups * width], dim=-1)
    q, gate = query_gate.unflatten(-1, (heads, 2 * width)).chunk(2, dim=-1)
    wide = compute_dtype(x)
    q = zero_centred_norm(q, weights["attention.q_norm"], config.norm_eps)
    k = zero_centred_norm(k.unflatten(-1, (groups, width)), weights["attention.k_norm"], config.norm_eps)
    q, k = rotate(q.to(wide), *turned), rotate(k.to(wide), *turned)
    paging.store(keys, k)
    paging.store(values, v.unflatten(-1, (groups, width)))

    # A key head serves heads // groups consecutive query heads.
    q = q.to(x.dtype).to(wide).unflatten(1, (groups, heads // groups)) * width**-0.5
    flat_keys, flat_values = keys.view(-1, groups, width), values.view(-1, groups, width)
    parts = [_context(q[row.tokens], row, flat_keys, flat_values) for row in paging.contexts]
    decodes = q[sum(part.shape[0] for part in parts) :]
    if decodes.shape[0]:
        parts.append(_decodes(decodes, paging, flat_keys, flat_values))
    read = torch.cat(parts) if parts else q
    gated = read.flatten(1, 2) * torch.sigmoid(gate.to(wide))
    return F.linear(gated.to(x.dtype).flatten(1), weights["attention.o_proj"])


def _context(q: Tensor, row: ContextRow, keys: Tensor, values: Tensor) -> Tensor:
    """q [S, groups, heads a group, width], the last S tokens of the request -> what they read, same shape."""
    if row.length == 0:
        return torch.zeros_like(q)
    k = keys[row.places].to(q.dtype).permute(1, 2, 0)  # [groups, width, length]
    v = values[row.places].to(q.dtype).transpose(0, 1)  # [groups, length, width]
    position = torch.arange(row.length, device=q.device)
    own = position[row.length - q.shape[0] :]
    blocks = []
    for start in range(0, q.shape[0], QUERY_BLOCK):
        block = q[start : start + QUERY_BLOCK].permute(1, 2, 0, 3)  # [groups, heads a group, block, width]
        future = position > own[start : start + QUERY_BLOCK, None]
        scores = (block @ k[:, None]).masked_fill(future, -torch.inf)
        blocks.append((torch.softmax(scores, dim=-1) @ v[:, None]).permute(2, 0, 1, 3))
    return torch.cat(blocks) if blocks else q


def _decodes(q: Tensor, paging: Paging, keys: Tensor, values: Tensor) -> Tensor:
    """q [B, groups, heads a group, width], the last token of each request -> what they read; zero for padding rows."""
    mask = paging.decode_mask
    k = keys[paging.decode_places].to(q.dtype).permute(0, 2, 3, 1)  # [B, groups, width, most tokens]
    v = values[paging.decode_places].to(q.dtype)
    # What no request wrote may be NaN: a weight of zero would not silence it.
    v = torch.where(mask[:, :, None, None], v, 0.0).transpose(1, 2)  # [B, groups, most tokens, width]
    # Finite, so that a row without any token has weights, and reads zeros with them.
    scores = (q @ k).masked_fill(~mask[:, None, None], torch.finfo(q.dtype).min)
    return torch.softmax(scores, dim=-1) @ v
