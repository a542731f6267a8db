"""The model beside transformers, on small random models of every class. Weights travel through a folder in its format."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serving.checkpoint import read_checkpoint, write_checkpoint
from serving.config import ModelConfig
from serving.kernel_set import KernelSet
from serving.model import HybridModel
from serving.weights import random_weights
from tests.serving.configurations import MODEL_TYPES, configuration
from tests.serving.stepping import Piece, Stepper

transformers = pytest.importorskip("transformers", reason="transformers (a development dependency) is not installed")
CLASSES = {
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}
MODULES = ("qwen3_next.modeling_qwen3_next", "qwen3_5.modeling_qwen3_5", "qwen3_5_moe.modeling_qwen3_5_moe")
OPERATORS = (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "torch_chunk_gated_delta_rule",
    "torch_recurrent_gated_delta_rule",
)
SEEDS = range(20)
TOKENS = 21
#: Of the largest logit. Both compute in float32; the worst of the 60 configurations was measured at 7e-6.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers runs without a kernel library: its wrappers prefer one that happens to be installed."""
    for name in MODULES:
        module = importlib.import_module(f"transformers.models.{name}")
        for operator in OPERATORS:
            plain = inspect.unwrap(getattr(module, operator))
            assert plain.__module__.startswith("transformers."), (
                f"{operator} no longer wraps a torch function, but {plain}"
            )
            monkeypatch.setattr(module, operator, plain)


def published(model_type: str, folder: Path):
    """transformers' model of the checkpoint; every tensor must have found its place there."""
    model, loading = getattr(transformers, CLASSES[model_type]).from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    return model.eval()


def random_tokens(config: ModelConfig, seed: int, count: int = TOKENS) -> list[int]:
    return torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def ours(config: ModelConfig, weights: dict[str, Tensor]) -> Stepper:
    return Stepper(HybridModel(config, weights, KernelSet.named("oracle")))


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_match(model_type: str, seed: int, tmp_path: Path) -> None:
    config = configuration(model_type, seed)
    weights = random_weights(config, seed)
    write_checkpoint(tmp_path, config, weights, model_type, shards=1 + seed % 3)
    theirs = published(model_type, tmp_path)
    if seed % 2:
        # Back the other way: what transformers writes.
        theirs.save_pretrained(tmp_path / "again")
        read = read_checkpoint(tmp_path / "again")
    else:
        read = read_checkpoint(tmp_path)
    assert read.config == config
    assert {name: w.shape for name, w in read.weights.items()} == {name: w.shape for name, w in weights.items()}
    assert all(torch.equal(read.weights[name], w) for name, w in weights.items())

    tokens = random_tokens(config, seed)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    stepper = ours(read.config, read.weights)
    got = stepper.run(stepper.request(seed % 8, TOKENS), tokens, [TOKENS])
    error = relative_error(got, expected)
    print(f"relative error {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_match_through_caches(model_type: str, seed: int, tmp_path: Path) -> None:
    """A prompt, a second piece of it, then decodes: transformers with its cache, the model with its pools."""
    config = configuration(model_type, 100 + seed)
    write_checkpoint(tmp_path, config, random_weights(config, seed), model_type)
    theirs, read = published(model_type, tmp_path), read_checkpoint(tmp_path)
    tokens = random_tokens(config, seed)
    stepper = ours(read.config, read.weights)
    request = stepper.request(2, TOKENS)
    pieces = [slice(0, 7), slice(7, 7 + 1 + 2 * seed), *(slice(t, t + 1) for t in range(8 + 2 * seed, TOKENS))]
    cache = transformers.DynamicCache(config=theirs.config)
    for number, piece in enumerate(pieces):
        with torch.no_grad():
            expected = theirs(torch.tensor([tokens[piece]]), past_key_values=cache, use_cache=True).logits[0]
        (got,) = stepper.step([Piece(request, tokens[piece], context=number < 2)])
        assert relative_error(got, expected) <= TOLERANCE, f"piece {number}"


def test_there_are_enough_configurations() -> None:
    drawn = [configuration(model_type, seed) for model_type in MODEL_TYPES for seed in SEEDS]
    assert len(set(drawn)) >= 50
    assert {c.value_heads // c.key_heads for c in drawn} == {1, 2, 3, 4}
    assert all(c.key_dim != c.value_dim for c in drawn)
    for varied in ("tied_embeddings", "renormalize", "conv_width", "rope_theta"):
        assert len({getattr(c, varied) for c in drawn}) > 1
    assert importlib.util.find_spec("safetensors")
