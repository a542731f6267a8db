"""Kernel sets by name, and what a model hands to its kernels."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

import references
from serving.kernel_set import OPERATORS, KernelSet, implementation
from serving.model import HybridModel
from serving.weights import random_weights
from tests.serving.configurations import configuration
from tests.serving.stepping import Piece, Stepper


def planted(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.full_like(x, 7.0)


def dense_only(x: Tensor, z: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    assert x.is_contiguous()
    assert z.is_contiguous()
    return x


dense_only.sluicegate = {"strided": False}


def test_every_operator_is_there() -> None:
    assert {field.name for field in fields(KernelSet)} == {*OPERATORS, "chunk_size", "gates"}
    for base in ("references", "oracle", "optimized"):
        kernels = KernelSet.named(base)
        assert all(callable(getattr(kernels, operator)) for operator in OPERATORS)


def test_optimized_is_what_is_registered() -> None:
    kernels = KernelSet.named("optimized")
    for operator in OPERATORS:
        assert getattr(kernels, operator).__module__.startswith("optimized."), operator
    assert kernels.chunk_size == 64


def test_operators_are_chosen_one_by_one() -> None:
    kernels = KernelSet.named(
        f"optimized, gdn_prefill=oracle,gdn_decode=references,gated_rmsnorm={__name__}:planted,conv_update=sglang"
    )
    assert kernels.conv_prefill.__module__ == "optimized.causal_conv"
    assert kernels.gdn_prefill.__wrapped__ is references.gdn_chunked
    assert kernels.gdn_decode.__wrapped__ is references.gdn_decode
    assert kernels.gated_rmsnorm is planted
    assert kernels.conv_update.__wrapped__.__module__ == "optimized.peers.sglang"
    # The gates go with the prefill.
    assert kernels.gates.__wrapped__ is references.gates
    assert KernelSet.named("optimized").gates.__module__ == "serving.gates"


def test_a_kernel_that_takes_no_views_gets_copies() -> None:
    x = torch.ones(2, 3, 8)[:, :, ::2]
    implementation("gated_rmsnorm", f"{__name__}:dense_only", torch.float64)(x, x, torch.ones(4), eps=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "got 'fast', expected one of references, oracle, optimized first"),
        ("optimized,gdn=references", "got 'gdn=references', expected operator=name with one of step_metadata, "),
        ("optimized,moe", "got 'moe', expected operator=name"),
        ("optimized,gdn_decode=nobody", "got gdn_decode='nobody', expected references, oracle, optimized"),
        ("optimized,moe=fla", "got moe='fla'"),
        ("optimized,moe=no_such_module:moe", "cannot import 'no_such_module'"),
    ],
)
def test_unknown_names(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KernelSet.named(text)


def test_the_compute_dtype_of_references() -> None:
    x = torch.tensor([[[1.0, 1e-4]]])
    exact = KernelSet.named("references").gated_rmsnorm(x.double(), x.double(), torch.ones(2).double(), eps=1e-6)
    kernels = KernelSet.named("references", compute_dtype=torch.float32)
    rounded = kernels.gated_rmsnorm(x, x, torch.ones(2), eps=1e-6)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded.double(), exact)
    # Float64 tensors are computed in float64 all the same.
    assert torch.equal(kernels.gated_rmsnorm(x.double(), x.double(), torch.ones(2).double(), eps=1e-6), exact)


def test_one_layer_may_have_other_kernels() -> None:
    config = configuration("qwen3_5_text", 0)
    delta = config.layers.index("linear_attention")
    kernels = KernelSet.named("oracle")
    m = HybridModel(config, random_weights(config, 1), kernels)

    def logits() -> Tensor:
        stepper = Stepper(m)
        return stepper.run(stepper.request(0, 4), [1, 2, 3], [3])

    before = logits()
    m.layers[delta].kernels = kernels.replaced(gated_rmsnorm=planted)
    changed = logits()
    assert not torch.allclose(changed, before)
    assert all(layer.kernels is kernels for layer in m.layers if layer.index != delta)
    m.use(kernels)
    assert torch.equal(logits(), before)


def test_kernels_get_views_and_the_pools_themselves() -> None:
    """No copies around a kernel: queries, keys and values share the convolution's memory, gates that of the projection."""
    config = configuration("qwen3_next", 1)
    calls: dict[str, list[dict[str, Any]]] = {}
    kernels = KernelSet.named("references")

    def recorded(operator: str) -> Any:
        function = getattr(kernels, operator)

        def call(*arguments: Any, **keywords: Any) -> Any:
            out = function(*arguments, **keywords)
            calls.setdefault(operator, []).append({"arguments": arguments, "out": out, **keywords})
            return out

        return call

    names = ("conv_prefill", "conv_update", "gdn_prefill", "gdn_decode", "gated_rmsnorm")
    m = HybridModel(config, random_weights(config, 1), kernels.replaced(**{name: recorded(name) for name in names}))
    stepper = Stepper(m)
    first, second = stepper.request(3, 9), stepper.request(1, 9)
    stepper.step([Piece(first, [1, 2, 3])])
    calls.clear()
    stepper.step([Piece(second, [4, 5]), Piece(first, [6], context=False)], padding=1)

    def memory(tensor: Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    for layer in range(config.layer_counts[0]):
        call = {name: calls[name][layer] for name in names}
        projection = memory(call["conv_prefill"]["arguments"][0])
        assert memory(call["conv_update"]["arguments"][0]) == projection
        assert memory(call["gated_rmsnorm"]["arguments"][1]) == projection
        assert memory(call["gdn_decode"]["a"]) == memory(call["gdn_decode"]["b"]) == projection
        for conv, rule in (("conv_prefill", "gdn_prefill"), ("conv_update", "gdn_decode")):
            assert {memory(t) for t in call[rule]["arguments"]} == {memory(call[conv]["out"])}
            assert call[conv]["conv_state"] is stepper.caches.conv[layer]
            assert call[rule]["state"] is stepper.caches.delta[layer]
        assert call["gdn_decode"]["arguments"][0].shape[0] == 2
        assert call["gdn_prefill"]["state_indices"].tolist() == [1]
        assert call["gdn_decode"]["state_indices"].tolist() == [3, -1]


@pytest.mark.parametrize("change", ["missing", "superfluous", "misshapen"])
def test_a_model_refuses_weights_that_are_not_its(change: str) -> None:
    config = configuration("qwen3_5_text", 0)
    weights = random_weights(config, 1)
    if change == "missing":
        del weights["layers.1.input_norm"]
        message = r"layers\.1\.input_norm is missing"
    elif change == "superfluous":
        weights["layers.9.input_norm"] = torch.ones(2)
        message = r"got layers\.9\.input_norm"
    else:
        weights["norm"] = torch.ones(3)
        message = r"norm has shape \[3\], expected"
    with pytest.raises(ValueError, match=message):
        HybridModel(config, weights, KernelSet.named("oracle"))
