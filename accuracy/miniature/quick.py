"""What training computes otherwise than transformers does, because of its launches and its precision: the same functions, each in a few
large products. `installed` puts them in place; a test compares a model with and without them.
"""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MODULE = "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe"
OPERATORS = (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "torch_chunk_gated_delta_rule",
    "torch_recurrent_gated_delta_rule",
)


def torch_only() -> Any:
    """Have transformers compute with torch: its wrappers prefer a kernel library that happens to be installed, on a CPU too.

    Returns the module.
    """
    module: Any = importlib.import_module(MODULE)
    for name in OPERATORS:
        if hasattr(module, name):
            setattr(module, name, inspect.unwrap(getattr(module, name)))
    return module


def installed() -> None:
    """Put the quick functions into transformers' module, for models that are made from now on."""
    module = torch_only()
    plain = module.torch_chunk_gated_delta_rule

    def in_float32(query: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Under autocast the products inside would be rounded to bf16, and every one of them copied for it.
        with torch.autocast(query.device.type, enabled=False):
            return plain(query, *args, **kwargs)

    module.torch_chunk_gated_delta_rule = in_float32
    module.causal_conv1d_fn = convolution
    module.Qwen3_5MoeExperts.forward = experts


def convolution(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
) -> Tensor:
    """x [N, D, T], weight [D, W]: as a sum of shifted products; a library's depthwise convolution is slow to differentiate."""
    width, length = weight.shape[-1], hidden_states.shape[-1]
    padded = F.pad(hidden_states, (width - 1, 0)).float()
    out = sum(padded[..., i : i + length] * weight[:, i, None].float() for i in range(width))
    assert isinstance(out, Tensor)
    if bias is not None:
        out = out + bias[:, None]
    if activation not in (None, "silu"):
        raise ValueError(f'activation: got {activation!r}, expected "silu" or none')
    return (F.silu(out) if activation else out).to(hidden_states.dtype)


def experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """x [T, H]: every expert for every token in two products, the ones not chosen times zero.

    With eight experts of which two are chosen that is four times the arithmetic, and no launch waits for a count of tokens.
    """
    count, width = self.num_experts, self.intermediate_dim
    shares = torch.zeros(len(hidden_states), count, dtype=top_k_weights.dtype, device=hidden_states.device)
    shares = shares.scatter(1, top_k_index, top_k_weights)
    gate, up = F.linear(hidden_states, self.gate_up_proj.flatten(0, 1)).unflatten(1, (count, 2, width)).unbind(2)
    inner = F.silu(gate) * up * shares[..., None].to(gate.dtype)
    return F.linear(inner.flatten(1), self.down_proj.transpose(1, 2).flatten(0, 1).t()).to(hidden_states.dtype)


@torch.no_grad()
def remembering(model: Any, seed: int) -> None:
    """Let the states remember from the start: steps of the decay log-uniform between 1e-3 and 0.1, as gated delta nets are published.

    transformers' ones would forget within a token or two, and a state that is never needed shows no fault.
    """
    source = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("dt_bias"):
            span = math.log(1e-3) + torch.rand(parameter.shape, generator=source) * math.log(100)
            step = span.exp()
            parameter.copy_(step + torch.log(-torch.expm1(-step)))


@torch.no_grad()
def greedy(
    model: Any, questions: list[list[int]], stops: set[int], longest: int = 200, batch: int = 256
) -> list[list[int]]:
    """The likeliest answers, token by token and without a cache: at this size whole passes are quick, and nothing can go wrong.

    Args:
        stops: an answer ends before the first of these tokens.
    """
    model.eval()
    device = next(model.parameters()).device
    answers: list[list[int]] = []
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        lengths = torch.tensor([len(one) for one in part], device=device)
        tokens = torch.zeros(len(part), int(lengths.max()) + longest, dtype=torch.int64, device=device)
        for row, one in enumerate(part):
            tokens[row, : len(one)] = torch.tensor(one)
        rows = torch.arange(len(part), device=device)
        ends, begun = torch.zeros(len(part), dtype=torch.bool, device=device), lengths.clone()
        stop = torch.tensor(sorted(stops), device=device)
        for _ in range(longest):
            logits = model(input_ids=tokens[:, : int(lengths.max())], use_cache=False).logits
            chosen = logits[rows, lengths - 1].argmax(-1)
            ends |= torch.isin(chosen, stop)
            if bool(ends.all()):
                break
            tokens[rows[~ends], lengths[~ends]] = chosen[~ends]
            lengths = lengths + (~ends).long()
        for row in range(len(part)):
            answers.append(tokens[row, int(begun[row]) : int(lengths[row])].tolist())
    return answers
