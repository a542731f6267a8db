"""Checkpoints: every spelling gives the same model, and every tensor is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serving.blocks.delta_net import delta_net
from serving.checkpoint import INDEX, SINGLE, read_checkpoint, write_checkpoint
from serving.config import ModelConfig
from serving.kernel_set import KernelSet
from serving.model import HybridModel
from serving.packing import dense_from_grouped, dense_rows, grouped_from_dense
from serving.weights import random_weights, to
from tests.serving.configurations import configuration
from tests.serving.stepping import Piece, Stepper

Tensors = dict[str, Tensor]


def sparse_config(**changes: object) -> ModelConfig:
    config = configuration("qwen3_5_moe_text", 1, tied=False)
    return replace(config, layers=("linear_attention", "full_attention"), sparse_layers=(True, True), **changes)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_spelling_is_read(grouped: bool, separate: bool, shards: int, tmp_path: Path) -> None:
    config = sparse_config()
    weights = random_weights(config, 1)
    write_checkpoint(tmp_path, config, weights, "qwen3_5_moe_text", grouped=grouped, separate=separate, shards=shards)
    assert (tmp_path / INDEX).exists() == (shards > 1)
    read = read_checkpoint(tmp_path)
    assert read.config == config
    assert read.ignored == ()
    assert set(read.weights) == set(weights)
    assert all(torch.equal(read.weights[name], tensor) for name, tensor in weights.items())


def rewritten(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A checkpoint whose tensors were changed after it was written."""
    config = sparse_config()
    write_checkpoint(folder, config, random_weights(config, 1), "qwen3_5_moe_text")
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE)
    return folder


def test_image_tower_and_draft_head_are_ignored(tmp_path: Path) -> None:
    extra = {"mtp.layers.0.norm.weight": torch.ones(2), "model.visual.patch_embed.weight": torch.ones(2)}

    def beside_images(tensors: Tensors) -> Tensors:
        return {name.replace("model.", "model.language_model.", 1): t for name, t in tensors.items()} | extra

    read = read_checkpoint(rewritten(tmp_path, beside_images))
    assert read.ignored == tuple(sorted(extra))
    assert all(torch.equal(read.weights[name], t) for name, t in random_weights(read.config, 1).items())


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.linear_attn.in_proj_b.weight",
        "model.layers.0.linear_attn.A_log",
        "model.layers.1.self_attn.k_norm.weight",
        "model.layers.1.mlp.experts.down_proj",
        "model.layers.1.mlp.shared_expert_gate.weight",
    ],
)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read_checkpoint(rewritten(tmp_path, without(name)))


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    config = sparse_config()
    write_checkpoint(tmp_path, config, random_weights(config, 1), "qwen3_5_moe_text", separate=True)
    name = "model.layers.1.mlp.experts.1.up_proj.weight"
    save_file(without(name)(load_file(tmp_path / SINGLE)), tmp_path / SINGLE)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.7.input_layernorm.weight", "model.layers.1.self_attn.q_proj.bias", "strange"]
)
def test_a_superfluous_tensor_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"got {name} in .* no place for"):
        read_checkpoint(rewritten(tmp_path, lambda tensors: tensors | {name: torch.ones(2)}))


def test_a_misshapen_tensor_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    transposed = rewritten(tmp_path, lambda tensors: tensors | {name: tensors[name].mT.contiguous()})
    with pytest.raises(ValueError, match=rf"{name} has shape \[.*\], expected \["):
        read_checkpoint(transposed)


def test_a_tied_head_may_be_stored_but_must_be_the_embedding(tmp_path: Path) -> None:
    config = configuration("qwen3_5_text", 1, tied=True)
    write_checkpoint(tmp_path, config, random_weights(config, 1), "qwen3_5_text")
    tensors = load_file(tmp_path / SINGLE)
    assert "lm_head.weight" not in tensors
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, tmp_path / SINGLE)
    assert "lm_head" not in read_checkpoint(tmp_path).weights
    save_file(tensors | {"lm_head.weight": embedding + 1}, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=r"got lm_head\.weight"):
        read_checkpoint(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    config = sparse_config()
    write_checkpoint(tmp_path, config, random_weights(config, 1), "qwen3_5_moe_text", shards=2)
    second = "model-00002-of-00002.safetensors"
    (tmp_path / second).unlink()
    with pytest.raises(ValueError, match=f"names {second}"):
        read_checkpoint(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        read_checkpoint(tmp_path)


def test_dtypes(tmp_path: Path) -> None:
    """The model's dtype is that of its embeddings; what kernels read in float32 keeps float32."""
    config = sparse_config()
    weights = random_weights(config, 1, torch.bfloat16)
    write_checkpoint(tmp_path, config, weights, "qwen3_5_moe_text")
    read = read_checkpoint(tmp_path)
    assert read.weights["embed"].dtype == torch.bfloat16
    assert read.weights["layers.0.delta.A_log"].dtype == torch.float32
    wide = read_checkpoint(tmp_path, dtype=torch.float64)
    assert {t.dtype for t in wide.weights.values()} == {torch.float64}


@pytest.mark.parametrize("ratio", [1, 2, 3, 4])
def test_grouped_rows_by_hand(ratio: int) -> None:
    """Rows that say what they are, placed by the definition of the grouped layout."""
    config = sparse_config(key_heads=3, value_heads=3 * ratio, key_dim=2, value_dim=5)

    def head_rows(kind: str, heads: range, dims: int) -> list[tuple[str, int, int]]:
        return [(kind, head, dim) for head in heads for dim in range(dims)]

    qkvz, ba = [], []
    for h in range(3):
        served = range(h * ratio, (h + 1) * ratio)
        qkvz += head_rows("q", range(h, h + 1), 2) + head_rows("k", range(h, h + 1), 2)
        qkvz += head_rows("v", served, 5) + head_rows("z", served, 5)
        ba += head_rows("b", served, 1) + head_rows("a", served, 1)
    dense = []
    for kind, heads, dims in (("q", 3, 2), ("k", 3, 2), ("v", 3 * ratio, 5), ("z", 3 * ratio, 5)):
        dense += head_rows(kind, range(heads), dims)
    dense += head_rows("b", range(3 * ratio), 1) + head_rows("a", range(3 * ratio), 1)
    number = {row: float(i) for i, row in enumerate(dense)}
    grouped = [torch.tensor([[number[row]] for row in rows]) for rows in (qkvz, ba)]
    in_proj = torch.tensor([[float(i)] for i in range(len(dense))])

    assert torch.equal(dense_from_grouped(*grouped, config), in_proj)
    assert all(map(torch.equal, grouped_from_dense(in_proj, config), grouped))
    assert sum(dense_rows(config)) == len(dense)


@pytest.mark.parametrize("ratio", [1, 2, 3, 4])
def test_grouped_and_dense_weights_give_the_same_layer(ratio: int) -> None:
    """Qwen3-Next's computation on grouped weights, spelt out, beside the layer after repacking."""
    config = sparse_config(key_heads=2, value_heads=2 * ratio, key_dim=4, value_dim=6)
    random = torch.Generator().manual_seed(ratio)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    hidden, values = config.hidden_size, config.value_heads * config.value_dim
    qkvz, ba = draw(2 * 8 + 2 * values, hidden), draw(2 * config.value_heads, hidden)
    weights = to(random_weights(config, 1), torch.float64)
    own = {n.removeprefix("layers.0."): w for n, w in weights.items() if n.startswith("layers.0.")}
    kernels = KernelSet.named("references")
    x = draw(5, hidden)

    # As the published layer orders them: one group of rows a key head.
    groups = (x @ qkvz.T).unflatten(1, (2, -1))
    q, k, v, z = groups.split([4, 4, 6 * ratio, 6 * ratio], dim=-1)
    b, a = (x @ ba.T).unflatten(1, (2, -1)).split([ratio, ratio], dim=-1)
    mixed = torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], dim=1)
    sequences = {
        "cu_seqlens": torch.tensor([0, 5]),
        "state_indices": torch.tensor([0]),
        "has_initial_state": torch.tensor([False]),
    }
    pool = torch.zeros(1, config.conv_channels, config.conv_width - 1, dtype=torch.float64)
    convolved = kernels.conv_prefill(
        mixed, own["delta.conv"], bias=None, conv_state=pool, activation="silu", **sequences
    )
    q, k, v = convolved.split([8, 8, values], dim=1)
    g, beta = kernels.gates(a.flatten(1), b.flatten(1), own["delta.A_log"], own["delta.dt_bias"])
    state = torch.zeros(1, config.value_heads, 6, 4, dtype=torch.float64)
    heads = (q.unflatten(1, (2, 4)), k.unflatten(1, (2, 4)), v.unflatten(1, (-1, 6)))
    o = kernels.gdn_prefill(*heads, g=g, beta=beta, state=state, **sequences)
    gated = kernels.gated_rmsnorm(o, z.reshape(5, -1, 6), own["delta.norm"], eps=config.norm_eps)
    expected = gated.flatten(1) @ own["delta.out_proj"].T

    own["delta.in_proj"] = dense_from_grouped(qkvz, ba, config)
    stepper = Stepper(HybridModel(config, weights, kernels))
    batch = stepper.batch([Piece(stepper.request(0, 5), [0] * 5)])
    caches = stepper.caches
    got = delta_net(x, own, config, kernels, batch, caches.conv[0], caches.delta[0])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(caches.delta[0][0], state[0], rtol=1e-12, atol=1e-12)


def test_a_configuration_that_a_model_type_cannot_say(tmp_path: Path) -> None:
    config = sparse_config(renormalize=False)
    with pytest.raises(ValueError, match="'qwen3_5_moe_text', expected one that can say"):
        write_checkpoint(tmp_path, config, random_weights(config, 1), "qwen3_5_moe_text")
    assert not (tmp_path / "config.json").exists()


def test_random_weights_spread_and_remember() -> None:
    """Logits of about unit spread or more, and decays that keep something for a hundred tokens in some heads and lose it in others."""
    config = replace(sparse_config(), key_heads=16, value_heads=64)
    weights = random_weights(config, 3)
    assert json.dumps(sorted(weights)) == json.dumps(sorted(random_weights(config, 4)))
    step = torch.nn.functional.softplus(weights["layers.0.delta.dt_bias"])
    kept = torch.exp(-weights["layers.0.delta.A_log"].exp() * step * 20)
    assert kept.max() > 0.5
    assert kept.min() < 0.1
    stepper = Stepper(HybridModel(config, weights, KernelSet.named("oracle")))
    logits = stepper.run(stepper.request(0, 30), [i % config.vocab_size for i in range(30)], [30])
    assert 1 < logits.std() < 4
    assert torch.equal(random_weights(config, 3)["embed"], weights["embed"])
    assert not torch.equal(random_weights(config, 4)["embed"], weights["embed"])
