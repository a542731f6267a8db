"""The hybrid model: gated delta nets with an attention layer every few, on packed steps of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.batch import StepBatch
from serving.blocks.attention import attention, rotation
from serving.blocks.delta_net import delta_net
from serving.blocks.mlp import sparse_mlp, swiglu
from serving.blocks.norms import compute_dtype, zero_centred_norm
from serving.blocks.paging import Paging
from serving.caches import Caches
from serving.config import ModelConfig
from serving.kernel_set import KernelSet
from serving.weights import Weights, shapes


class Layer:
    """One block: x += mixer(norm(x)), then x += mlp(norm(x)).

    `kernels` is the layer's own: replacing it changes this layer and no other. `cache` is its number among the layers of its
    kind, which is where its pools are.
    """

    def __init__(self, config: ModelConfig, index: int, cache: int, weights: Weights, kernels: KernelSet) -> None:
        self.config = config
        self.index = index
        self.cache = cache
        self.weights = weights
        self.kernels = kernels
        self.attends = config.layers[index] == "full_attention"
        self.sparse = config.is_sparse(index)

    def __call__(
        self, x: Tensor, batch: StepBatch, caches: Caches, turned: tuple[Tensor, Tensor], paging: Paging | None
    ) -> Tensor:
        """x [T, Hd] -> [T, Hd]; the layer's pools are updated in place."""
        normed = zero_centred_norm(x, self.weights["input_norm"], self.config.norm_eps)
        if self.attends:
            assert paging is not None, "a model with an attention layer has pages"
            keys, values = caches.keys[self.cache], caches.values[self.cache]
            x = x + attention(normed, self.weights, self.config, turned, paging, keys, values)
        else:
            states = caches.conv[self.cache], caches.delta[self.cache]
            x = x + delta_net(normed, self.weights, self.config, self.kernels, batch, *states)
        normed = zero_centred_norm(x, self.weights["post_norm"], self.config.norm_eps)
        if self.sparse:
            return x + sparse_mlp(normed, self.weights, self.config, self.kernels)
        return x + swiglu(normed, self.weights["mlp.gate_up"], self.weights["mlp.down"])


class HybridModel:
    """Logits of a step. The state of requests is in the caches; the model has none.

    Raises:
        ValueError: parameters that are missing, superfluous or misshapen for the configuration.
    """

    def __init__(self, config: ModelConfig, weights: Weights, kernels: KernelSet) -> None:
        check(weights, config)
        self.config = config
        self.weights = weights
        counts = {"linear_attention": 0, "full_attention": 0}
        self.layers: list[Layer] = []
        for index, kind in enumerate(config.layers):
            prefix = f"layers.{index}."
            own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            self.layers.append(Layer(config, index, counts[kind], own, kernels))
            counts[kind] += 1

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["embed"].dtype

    @property
    def device(self) -> torch.device:
        return self.weights["embed"].device

    @property
    def kernels(self) -> KernelSet:
        """Those of the first layer: an engine takes its builder of metadata and its chunk size from them."""
        return self.layers[0].kernels

    def use(self, kernels: KernelSet) -> None:
        """Compute every layer with these from now on."""
        for layer in self.layers:
            layer.kernels = kernels

    @contextmanager
    def kernels_kept(self) -> Iterator[list[KernelSet]]:
        """Each layer's kernels, which it has back afterwards, whatever it computed with meanwhile."""
        own = [layer.kernels for layer in self.layers]
        try:
            yield own
        finally:
            for layer, kernels in zip(self.layers, own, strict=True):
                layer.kernels = kernels

    @torch.no_grad()
    def __call__(self, batch: StepBatch, caches: Caches) -> Tensor:
        """Logits [R, vocab] of the rows that the step asks for, in float32 (float64 in a model of float64).

        Caches are updated in place. A step without contexts reads nothing back from the device, so it can be captured in a
        CUDA graph and replayed on other contents of the same tensors.
        """
        x = F.embedding(batch.tokens, self.weights["embed"])
        turned = rotation(batch.positions, self.config, compute_dtype(x))
        paging = Paging.of(batch, caches.page_size) if caches.keys else None
        for layer in self.layers:
            x = layer(x, batch, caches, turned, paging)
        wanted = zero_centred_norm(x[batch.logit_rows], self.weights["norm"], self.config.norm_eps)
        head = self.weights.get("lm_head", self.weights["embed"])
        return F.linear(wanted, head).to(compute_dtype(x))


def check(weights: Weights, config: ModelConfig) -> None:
    """Whether these are the parameters of this configuration."""
    expected = shapes(config)
    for name, shape in expected.items():
        if name not in weights:
            raise ValueError(f"weights: {name} is missing, expected shape {list(shape)}")
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"weights: {name} has shape {list(weights[name].shape)}, expected {list(shape)}")
    if superfluous := sorted(set(weights) - set(expected)):
        raise ValueError(f"weights: got {', '.join(superfluous)}, which this configuration has no place for")
