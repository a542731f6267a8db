"""The memory that outlives a step, as tensors: who owns which part of it is the engine's business."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from serving.config import ModelConfig


@dataclass
class Caches:
    """Pools of state slots, one a gated-delta-net layer, and pages of keys and values, one pool an attention layer.

    Attributes:
        conv: [slots, D, W-1] a layer, the last inputs of the convolution, in the model's dtype.
        delta: [slots, HV, V, K] a layer, the delta rule's states, in `state_dtype`.
        keys, values: [pages, page size, kv heads, head dim] a layer, in the model's dtype.
    """

    conv: list[Tensor]
    delta: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        *,
        slots: int,
        pages: int,
        page_size: int,
        dtype: torch.dtype,
        state_dtype: torch.dtype,
        device: torch.device,
    ) -> Caches:
        """Filled with NaN: whoever reads what was never written will be noticed."""

        def pool(count: int, shape: tuple[int, ...], of: torch.dtype) -> list[Tensor]:
            return [torch.full(shape, torch.nan, dtype=of, device=device) for _ in range(count)]

        delta_layers, attention_layers = config.layer_counts
        page = (pages, page_size, config.num_kv_heads, config.head_dim)
        return cls(
            conv=pool(delta_layers, (slots, config.conv_channels, config.conv_width - 1), dtype),
            delta=pool(delta_layers, (slots, config.value_heads, config.value_dim, config.key_dim), state_dtype),
            keys=pool(attention_layers, page, dtype),
            values=pool(attention_layers, page, dtype),
        )

    @property
    def page_size(self) -> int:
        return self.keys[0].shape[1]

    def copy_slot(self, source: int, target: int) -> None:
        """The states of one slot into another, in every layer: how a snapshot is taken, and how it is restored."""
        for pool in (*self.conv, *self.delta):
            pool[target].copy_(pool[source])
