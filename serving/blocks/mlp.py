"""What follows the mixer in a layer: a SwiGLU MLP, or a mixture of them beside one that every token shares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.config import ModelConfig
from serving.kernel_set import KernelSet
from serving.weights import Weights


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [T, Hd], gate_up [2I, Hd] with the gate's rows first, down [Hd, I] -> [T, Hd]."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def sparse_mlp(x: Tensor, weights: Weights, config: ModelConfig, kernels: KernelSet) -> Tensor:
    """Routed experts, plus the shared expert scaled by a gate of one number a token. x [T, Hd] -> [T, Hd]."""
    routed = kernels.moe(
        x,
        F.linear(x, weights["moe.router"]),
        weights["moe.gate_up"],
        weights["moe.down"],
        top_k=config.top_k,
        method="renormalize" if config.renormalize else "default",
    )
    shared = swiglu(x, weights["shared.gate_up"], weights["shared.down"])
    return routed + torch.sigmoid(F.linear(x, weights["shared.gate"])) * shared
