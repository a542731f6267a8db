"""Shadows inside real models: what transformers and flash-linear-attention publish agrees with the reference, call by call."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.shadow.support import clean, counts

RULES = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule", "causal_conv1d_fn", "causal_conv1d_update")
MODELS = {
    "qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", "Qwen3_5RMSNormGated"),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM", "Qwen3NextRMSNormGated"),
}
LINEAR_LAYERS = 3


@pytest.fixture(params=MODELS)
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The modelling module with its functions in torch, whatever kernel library happens to be installed."""
    pytest.importorskip("transformers", reason="transformers (a development dependency) is not installed")
    found = importlib.import_module(f"transformers.models.{request.param}.modeling_{request.param}")
    for name in RULES:
        monkeypatch.setattr(found, name, inspect.unwrap(getattr(found, name)))
    return found


def model_of(module: ModuleType) -> Any:
    config_name, model_name, _ = MODELS[module.__name__.split(".")[-2]]
    config = getattr(module, config_name)(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=LINEAR_LAYERS + 1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        layer_types=["linear_attention"] * LINEAR_LAYERS + ["full_attention"],
    )
    torch.manual_seed(0)
    return getattr(module, model_name)(config).eval()


def forward(model: Any) -> torch.Tensor:
    """A prompt of 70 tokens for two rows, two tokens of decode, and a further chunk of five; the last logits."""
    draw = torch.Generator().manual_seed(1)
    cache = None
    with torch.inference_mode():
        for length in (70, 1, 1, 5):
            out = model(torch.randint(0, 64, (2, length), generator=draw), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
    logits: torch.Tensor = out.logits
    return logits


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_prefill_and_decode_of_a_model(module: ModuleType, made: Any) -> None:
    model = model_of(module)
    alone = forward(model)
    shadows = [made(f"{module.__name__}:{name}", queue=100) for name in RULES]
    norm = made(f"{module.__name__}:{MODELS[module.__name__.split('.')[-2]][2]}.forward", queue=100)
    observed = forward(model)
    assert torch.equal(observed, alone), "the host's results changed"
    chunk, recurrent, conv, update = shadows
    for it in (chunk, recurrent, conv, update):
        clean(it, 2 * LINEAR_LAYERS)
        assert it.report()["worst_share"] > 0, "nothing was judged"
    clean(norm, 4 * LINEAR_LAYERS)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_gate_that_is_dropped_in_decode_only(module: ModuleType, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.torch_recurrent_gated_delta_rule

    def without_gate(query: Any, key: Any, value: Any, g: Any, beta: Any, **rest: Any) -> Any:
        return right(query, key, value, g=g * 0, beta=beta, **rest)

    without_gate.__signature__ = inspect.signature(right)  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "torch_recurrent_gated_delta_rule", without_gate)
    chunk, decode = (made(f"{module.__name__}:{name}", queue=100) for name in RULES[:2])
    forward(model_of(module))
    clean(chunk, 2 * LINEAR_LAYERS)
    found = counts(decode)
    assert found["mismatches"] == found["compared"] == 2 * LINEAR_LAYERS


@pytest.mark.parametrize("name", ["naive_recurrent_gated_delta_rule", "naive_chunk_gated_delta_rule"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_naive_functions_that_do_not_normalise(name: str, dtype: torch.dtype, made: Any) -> None:
    pytest.importorskip("einops", reason="fla-core and einops (development dependencies) are not installed")
    pytest.importorskip("fla", reason="fla-core and einops (development dependencies) are not installed")
    naive = importlib.import_module("fla.ops.gated_delta_rule.naive")
    it = made(f"fla.ops.gated_delta_rule.naive:{name}", "gdn_prefill")
    assert it.signature.name == "fla.delta_rule"
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    # Short keys: what is not normalised must not grow.
    q, k, v = (
        (0.3 * normal(2, 70, 3, 8)).to(dtype),
        (0.3 * normal(2, 70, 3, 8)).to(dtype),
        normal(2, 70, 3, 6).to(dtype),
    )
    gates = {"g": -torch.rand(2, 70, 3, generator=draw), "beta": torch.rand(2, 70, 3, generator=draw)}
    getattr(naive, name)(q, k, v, **gates)
    getattr(naive, name)(q, k, v, **gates, initial_state=normal(2, 3, 8, 6), output_final_state=True, scale=0.7)
    clean(it, 2)
