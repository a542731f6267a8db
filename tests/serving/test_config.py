"""Configurations as published, as transformers fills them in, and those that must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.config import DEFAULTS, ModelConfig
from tests.serving.configurations import MODEL_TYPES, configuration

CLASSES = {
    "qwen3_next": "Qwen3NextConfig",
    "qwen3_5_text": "Qwen3_5TextConfig",
    "qwen3_5_moe_text": "Qwen3_5MoeTextConfig",
}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers (a development dependency) is not installed"
    )
    theirs = getattr(transformers, CLASSES[model_type])().to_dict()
    spelt_out = ModelConfig.from_hf(theirs)
    assert ModelConfig.from_hf({"model_type": model_type}) == spelt_out
    for name, value in DEFAULTS[model_type].items():
        if name in theirs and name != "mlp_only_layers":
            assert theirs[name] == value, name
    # Those that are silent about something else than everything.
    assert ModelConfig.from_hf(theirs | {"layer_types": None, "full_attention_interval": 3}).layers[:4] == (
        "linear_attention",
        "linear_attention",
        "full_attention",
        "linear_attention",
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_is_read_back(model_type: str, seed: int) -> None:
    config = configuration(model_type, seed)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf(model_type)))) == config


def test_a_published_configuration_of_qwen3_next() -> None:
    """As the 80B model has it: fields at the top level, some of them null."""
    config = ModelConfig.from_hf(
        {
            "model_type": "qwen3_next",
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "eos_token_id": 151645,
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_size": 2048,
            "max_position_embeddings": 262144,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "num_hidden_layers": 48,
            "partial_rotary_factor": 0.25,
            "rope_scaling": None,
            "rope_theta": 10000000,
            "vocab_size": 151936,
        }
    )
    assert config.layer_counts == (36, 12)
    assert (config.rotary_dim, config.rope_theta, config.num_experts, config.top_k) == (64, 1e7, 512, 10)
    assert all(config.sparse_layers)
    assert config.eos_token_ids == (151645,)
    assert config.conv_channels == 8192


def test_a_nested_configuration_of_qwen3_5() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [11, 11, 10], "mrope_interleaved": True}
    config = ModelConfig.from_hf(
        {
            "model_type": "qwen3_5",
            "tie_word_embeddings": True,
            "text_config": {"model_type": "qwen3_5_text", "hidden_size": 1024, "rope_parameters": rope},
            "vision_config": {"hidden_size": 1},
        }
    )
    assert config.tied_embeddings
    assert (config.hidden_size, config.rope_theta, config.rotary_dim) == (1024, 1e7, 64)


def test_sparse_layers_of_qwen3_next() -> None:
    config = ModelConfig.from_hf(
        {"model_type": "qwen3_next", "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    )
    assert config.sparse_layers == (False, True, False, False, False, True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model_type": "llama"}, "model_type: got 'llama', expected one of qwen3_next, "),
        ({"model_type": None}, "model_type: got None"),
        ({"attention_bias": True}, "attention_bias: got True, expected False"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', expected 'silu'"),
        ({"attn_output_gate": False}, "attn_output_gate: got False"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type: got 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_type: got 'linear'"),
        ({"num_hidden_layers": 2, "layer_types": ["linear_attention"]}, "layer_types: got 1, expected"),
        ({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "layer_types: got .*sliding_attention"),
        ({"linear_num_value_heads": 17}, "linear_num_value_heads: got 17, expected a multiple of 16"),
        ({"num_attention_heads": 3}, "num_attention_heads: got 3, expected a multiple of 4"),
        ({"head_dim": 20}, "partial_rotary_factor: got 5 of 20"),
    ],
)
def test_what_is_not_computed_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf({"model_type": "qwen3_5_text"} | wrong)


def test_more_experts_a_token_than_there_are() -> None:
    with pytest.raises(ValueError, match="num_experts_per_tok: got 9, expected 1 to 8"):
        ModelConfig.from_hf({"model_type": "qwen3_5_moe_text", "num_experts": 8, "num_experts_per_tok": 9})


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*config\.json"):
        ModelConfig.read(tmp_path)
