"""The faults that are put through the gate: some of the catalogue's, and what goes wrong when a checkpoint is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import subjects
from harness.faults import injection, model
from serving.config import ModelConfig
from serving.engine import Engine
from serving.kernel_set import OPERATORS
from serving.model import HybridModel
from serving.weights import Weights

#: Ids of the catalogue, from gross to so small that an accuracy can hardly show it.
CATALOGUED = (
    "decode-no-decay",
    "decode-decay-after-update",
    "decode-output-before-update",
    "decode-delta-dropped",
    "decode-one-key-head-for-all",
    "decode-per-head-decay-of-head-zero",
    "decode-softplus-is-relu",
    "decode-dt-bias-missing",
    "decode-output-one-percent-too-large",
    "decode-last-head-five-percent-too-large",
    "decode-state-rounded-to-input-dtype",
    "delta-state-does-not-decay",
    "delta-nothing-recalled",
    "delta-beta-of-the-older-token",
    "delta-inverse-to-first-order",
    "delta-output-one-percent-too-large",
    "delta-fresh-sequence-continues-the-slot",
    "delta-final-state-not-stored",
    "prefill-state-one-token-early",
    "prefill-neighbour-token-in-window",
    "prefill-oldest-tap-dropped",
    "prefill-output-one-percent-too-large",
    "update-state-not-shifted",
    "update-newest-taps-swapped",
    "norm-gate-is-a-sigmoid",
    "norm-mean-subtracted",
    "norm-one-percent-too-large",
    "engine-later-pieces-told-fresh",
    "engine-lengths-before-the-step",
    "engine-padding-in-slot-zero",
    "engine-graph-stale-metadata",
    "engine-graph-stale-positions",
)


@dataclass(frozen=True)
class WeightFault:
    """change: a copy of configuration and weights with the fault in it. wrong: what goes wrong, in a sentence."""

    id: str
    wrong: str
    change: Callable[[ModelConfig, Weights], tuple[ModelConfig, Weights]]


WEIGHTS: dict[str, WeightFault] = {}
Change = Callable[[ModelConfig, Weights], Any]


def _weights(id: str, wrong: str) -> Callable[[Change], Change]:
    """Register a change of weights in place, or one that returns another configuration."""

    def register(change: Change) -> Change:
        def changed(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, Weights]:
            copied = {name: tensor.clone() for name, tensor in weights.items()}
            other = change(config, copied)
            return (other if isinstance(other, ModelConfig) else config), copied

        WEIGHTS[id] = WeightFault(id, wrong, changed)
        return change

    return register


def _named(weights: Weights, end: str) -> list[Tensor]:
    """Every parameter whose name ends so, in the order of the layers. There is at least one, or the fault would change nothing."""
    found = [tensor for name, tensor in weights.items() if name.endswith(end)]
    if not found:
        raise ValueError(f"weights: this model has no {end}, which the fault changes")
    return found


def _middle(weights: Weights, end: str) -> Tensor:
    found = _named(weights, end)
    return found[len(found) // 2]


@_weights("router-scaled", "Router weights of every layer are halved: shares are flatter.")
def _(config: ModelConfig, weights: Weights) -> None:
    for router in _named(weights, "moe.router"):
        router.mul_(0.5)


@_weights("router-of-one-layer-scaled", "Router weights of one layer are 5 % too large.")
def _(config: ModelConfig, weights: Weights) -> None:
    _middle(weights, "moe.router").mul_(1.05)


@_weights("experts-swapped", "Two experts of one layer are exchanged, their routes are not.")
def _(config: ModelConfig, weights: Weights) -> None:
    for part in ("moe.gate_up", "moe.down"):
        experts = _middle(weights, part)
        experts[[0, 1]] = experts[[1, 0]]


@_weights("expert-missing", "One expert of one layer yields zeros.")
def _(config: ModelConfig, weights: Weights) -> None:
    _middle(weights, "moe.down")[2] = 0


@_weights("gate-and-up-exchanged", "The two halves of the experts' first matrices are exchanged in one layer.")
def _(config: ModelConfig, weights: Weights) -> None:
    experts = _middle(weights, "moe.gate_up")
    experts.copy_(torch.cat(experts.chunk(2, dim=1)[::-1], dim=1))


@_weights("shared-expert-gate-dropped", "The shared expert's gate is a half for every token.")
def _(config: ModelConfig, weights: Weights) -> None:
    for gate in _named(weights, "shared.gate"):
        gate.zero_()


@_weights("one-expert-a-token", "Each token gets one expert instead of two.")
def _(config: ModelConfig, weights: Weights) -> ModelConfig:
    return replace(config, top_k=max(1, config.top_k - 1))


@_weights("wrong-rope-base", "The base of the rotation is 10,000 instead of the configured one.")
def _(config: ModelConfig, weights: Weights) -> ModelConfig:
    return replace(config, rope_theta=1e4 if config.rope_theta != 1e4 else 1e6)


@_weights("whole-head-rotated", "The whole head turns instead of its first part.")
def _(config: ModelConfig, weights: Weights) -> ModelConfig:
    return replace(config, rotary_dim=config.head_dim)


@_weights("query-norm-dropped", "The weight of the queries' norm is not read in one attention layer.")
def _(config: ModelConfig, weights: Weights) -> None:
    _middle(weights, "attention.q_norm").zero_()


@_weights("oldest-tap-lost", "The convolution of every layer forgets its oldest tap.")
def _(config: ModelConfig, weights: Weights) -> None:
    for taps in _named(weights, "delta.conv"):
        taps[:, 0] = 0


@_weights("oldest-tap-lost-in-one-layer", "The convolution of one layer forgets its oldest tap.")
def _(config: ModelConfig, weights: Weights) -> None:
    _middle(weights, "delta.conv")[:, 0] = 0


@_weights("decay-rate-doubled", "One layer forgets twice as fast.")
def _(config: ModelConfig, weights: Weights) -> None:
    _middle(weights, "delta.A_log").add_(0.6931)


@_weights("step-bias-lost", "The bias of the time step is zero in one layer.")
def _(config: ModelConfig, weights: Weights) -> None:
    _middle(weights, "delta.dt_bias").zero_()


@_weights("norm-weight-not-centred", "The weight of one layer's input norm is one too small: 1 is not added to it.")
def _(config: ModelConfig, weights: Weights) -> None:
    _middle(weights, "input_norm").sub_(1)


@_weights("norm-epsilon-too-large", "Every norm of the residual stream has an epsilon of 1e-3.")
def _(config: ModelConfig, weights: Weights) -> ModelConfig:
    return replace(config, norm_eps=1e-3)


@_weights("experts-in-eight-bits", "The experts are rounded to 8 bits, with one scale a matrix.")
def _(config: ModelConfig, weights: Weights) -> None:
    _rounded(_named(weights, "moe.gate_up") + _named(weights, "moe.down"), 127)


@_weights("experts-in-four-bits", "The experts are rounded to 4 bits, with one scale a matrix.")
def _(config: ModelConfig, weights: Weights) -> None:
    _rounded(_named(weights, "moe.gate_up") + _named(weights, "moe.down"), 7)


def _rounded(tensors: list[Tensor], levels: int) -> None:
    for tensor in tensors:
        scale = tensor.abs().amax(dim=(-1, -2), keepdim=True) / levels
        tensor.copy_((tensor / scale).round() * scale)


def known() -> dict[str, str]:
    """Ids of all faults of this list, and what is wrong in each."""
    catalogued = {fault.id: fault.wrong for fault in model.load()}
    return {id: catalogued[id] for id in CATALOGUED} | {id: fault.wrong for id, fault in WEIGHTS.items()}


def kind_of(id: str) -> str:
    """ "weights", "engine" or "kernel"."""
    if id in WEIGHTS:
        return "weights"
    return "engine" if id.startswith("engine-") else "kernel"


@contextmanager
def planted(id: str, right: HybridModel, folder: Path) -> Iterator[tuple[HybridModel, Callable[..., Any]]]:
    """The model with the fault in it, and what makes its engine; `right` stays as it is.

    Raises ValueError for an unknown id, or one of an operator that the model does not compute with.
    """
    if id in WEIGHTS:
        config, weights = WEIGHTS[id].change(right.config, right.weights)
        yield HybridModel(config, weights, right.kernels), Engine
        return
    (fault,) = model.select(model.load(), ids=[id])
    with injection.injected(fault, folder) as target:
        changed = subjects.load_target(target)
        if fault.operator == "engine":
            yield right, changed
        elif fault.operator in OPERATORS:
            kernels = right.kernels.replaced(**{fault.operator: changed})
            yield HybridModel(right.config, right.weights, kernels), Engine
        else:
            raise ValueError(f"fault {id}: of {fault.operator}, expected one of {', '.join(OPERATORS)}, or the engine")
