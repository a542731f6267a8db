"""The shape of a hybrid model: what a Hugging Face configuration says about the text part of Qwen3-Next and Qwen3.5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Model types whose text part is nested, and the type of that part.
NESTED = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}
#: What transformers assumes where a configuration is silent, by model type (its configuration classes, 5.24).
_COMMON: dict[str, Any] = {
    "num_attention_heads": 16,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "attn_output_gate": True,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10_000.0,
    "full_attention_interval": 4,
    "max_position_embeddings": 32768,
}
_EXPERTS = {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        **_COMMON,
        **_EXPERTS,
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": (),
    },
    "qwen3_5_text": {
        **_COMMON,
        "vocab_size": 248320,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
    },
    "qwen3_5_moe_text": {
        **_COMMON,
        **_EXPERTS,
        "vocab_size": 248320,
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "num_experts": 256,
        "num_experts_per_tok": 8,
    },
}
LAYER_TYPES = ("linear_attention", "full_attention")
#: The only value of these that the model computes.
_ONLY = {"hidden_act": "silu", "attention_bias": False, "attn_output_gate": True}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes by the field's names.

    Attributes:
        layers: "linear_attention" or "full_attention" of each layer, in order.
        key_heads, value_heads, key_dim, value_dim, conv_width: of the gated delta net; a key head serves
            value_heads // key_heads consecutive value heads.
        num_heads, num_kv_heads, head_dim, rotary_dim, rope_theta: of the attention; the first rotary_dim of head_dim turn.
        intermediate_size: of a dense MLP; 0 where no layer has one.
        num_experts: 0 for a dense model; top_k, expert_size, shared_expert_size: of the mixture of experts;
            sparse_layers: which layers have one, () for none; renormalize: whether the chosen experts' weights are divided by
            their sum.
        max_positions: how many tokens a request may have by the configuration.
        eos_token_ids: what ends an answer.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[str, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    intermediate_size: int
    num_experts: int = 0
    top_k: int = 0
    expert_size: int = 0
    shared_expert_size: int = 0
    sparse_layers: tuple[bool, ...] = ()
    renormalize: bool = True
    tied_embeddings: bool = False
    norm_eps: float = 1e-6
    max_positions: int = 32768
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.layers) - set(LAYER_TYPES)):
            raise ValueError(f"layer_types: got {unknown}, expected only {', '.join(LAYER_TYPES)}")
        if not self.sparse_layers:
            object.__setattr__(self, "sparse_layers", (False,) * len(self.layers))
        if len(self.sparse_layers) != len(self.layers):
            raise ValueError(
                f"sparse_layers: got {len(self.sparse_layers)}, expected one for each of {len(self.layers)}"
            )
        pairs = {
            "linear_num_value_heads": (self.value_heads, self.key_heads),
            "num_attention_heads": (self.num_heads, self.num_kv_heads),
        }
        for name, (many, few) in pairs.items():
            if few < 1 or many % few:
                raise ValueError(f"{name}: got {many}, expected a multiple of {few}: heads are shared evenly")
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"partial_rotary_factor: got {self.rotary_dim} of {self.head_dim} dims that turn, expected an even number of them"
            )
        if any(self.sparse_layers) and not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"num_experts_per_tok: got {self.top_k}, expected 1 to {self.num_experts}")

    @property
    def conv_channels(self) -> int:
        """Queries, keys and values of all heads, in this order."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def layer_counts(self) -> tuple[int, int]:
        """How many layers are gated delta nets, and how many attend."""
        delta = sum(kind == "linear_attention" for kind in self.layers)
        return delta, len(self.layers) - delta

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer's MLP is a mixture of experts."""
        return self.sparse_layers[layer]

    @classmethod
    def read(cls, folder: str | Path) -> ModelConfig:
        """The configuration of the checkpoint in this folder.

        Raises:
            ValueError: there is no config.json, or it is not of a model that this package computes.
        """
        path = Path(folder) / "config.json"
        if not path.exists():
            raise ValueError(f"config: no file {path}; expected the folder of a Hugging Face checkpoint")
        return cls.from_hf(json.loads(path.read_text()))

    @classmethod
    def from_hf(cls, given: Mapping[str, Any]) -> ModelConfig:
        """What transformers would make of the contents of a config.json.

        Raises:
            ValueError: a model type or a feature that this package does not compute.
        """
        model_type = given.get("model_type")
        outer = given
        if model_type in NESTED and isinstance(given.get("text_config"), Mapping):
            given = given["text_config"]
        model_type = NESTED.get(str(model_type), model_type)
        if model_type not in DEFAULTS:
            raise ValueError(f"model_type: got {model_type!r}, expected one of {', '.join([*DEFAULTS, *NESTED])}")
        # A null says nothing, as in transformers.
        said = {name: value for name, value in given.items() if value is not None}
        if outer.get("tie_word_embeddings") is not None:
            said["tie_word_embeddings"] = outer["tie_word_embeddings"]
        field = DEFAULTS[model_type] | said
        for name, only in _ONLY.items():
            if field[name] != only:
                raise ValueError(f"{name}: got {field[name]!r}, expected {only!r}; nothing else is computed here")
        layers = _layers(field)
        rotary_factor, theta = _rope(field, said)
        return cls(
            vocab_size=field["vocab_size"],
            hidden_size=field["hidden_size"],
            layers=layers,
            key_heads=field["linear_num_key_heads"],
            value_heads=field["linear_num_value_heads"],
            key_dim=field["linear_key_head_dim"],
            value_dim=field["linear_value_head_dim"],
            conv_width=field["linear_conv_kernel_dim"],
            num_heads=field["num_attention_heads"],
            num_kv_heads=field["num_key_value_heads"],
            head_dim=field["head_dim"],
            rotary_dim=int(field["head_dim"] * rotary_factor),
            rope_theta=theta,
            intermediate_size=field.get("intermediate_size", 0),
            tied_embeddings=field["tie_word_embeddings"],
            norm_eps=field["rms_norm_eps"],
            max_positions=field["max_position_embeddings"],
            eos_token_ids=_ids(said.get("eos_token_id", outer.get("eos_token_id"))),
            **_experts(model_type, field, len(layers)),
        )

    def to_hf(self, model_type: str) -> dict[str, Any]:
        """The contents of a config.json that `from_hf` reads back as this, for one of the text model types."""
        said: dict[str, Any] = {
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": len(self.layers),
            "layer_types": list(self.layers),
            "linear_num_key_heads": self.key_heads,
            "linear_num_value_heads": self.value_heads,
            "linear_key_head_dim": self.key_dim,
            "linear_value_head_dim": self.value_dim,
            "linear_conv_kernel_dim": self.conv_width,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.rope_theta,
                "partial_rotary_factor": self.rotary_dim / self.head_dim,
            },
            "tie_word_embeddings": self.tied_embeddings,
            "rms_norm_eps": self.norm_eps,
            "max_position_embeddings": self.max_positions,
            "eos_token_id": list(self.eos_token_ids) or None,
        }
        if model_type != "qwen3_5_moe_text":
            said["intermediate_size"] = self.intermediate_size
        if model_type != "qwen3_5_text":
            said |= {
                "num_experts": self.num_experts,
                "num_experts_per_tok": self.top_k,
                "moe_intermediate_size": self.expert_size,
                "shared_expert_intermediate_size": self.shared_expert_size,
            }
        if model_type == "qwen3_next":
            dense = [layer for layer in range(len(self.layers)) if not self.is_sparse(layer)]
            said |= {"norm_topk_prob": self.renormalize, "decoder_sparse_step": 1, "mlp_only_layers": dense}
        if ModelConfig.from_hf(said) != self:
            raise ValueError(f"model_type: got {model_type!r}, expected one that can say {self}")
        return said


def _layers(field: Mapping[str, Any]) -> tuple[str, ...]:
    count, interval = field["num_hidden_layers"], field["full_attention_interval"]
    if "layer_types" not in field:
        return tuple("linear_attention" if (i + 1) % interval else "full_attention" for i in range(count))
    layers = tuple(field["layer_types"])
    if len(layers) != count:
        raise ValueError(f"layer_types: got {len(layers)}, expected one for each of num_hidden_layers={count}")
    return layers


def _rope(field: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[float, float]:
    """(partial rotary factor, theta). Sections of a multimodal rotation do not matter: text has the same position in each."""
    rope = said.get("rope_scaling") or said.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f'rope_type: got {kind!r}, expected "default"; positions are not scaled here')
    factor = rope.get("partial_rotary_factor", field["partial_rotary_factor"])
    return factor, float(rope.get("rope_theta", field["rope_theta"]))


def _experts(model_type: str, field: Mapping[str, Any], layers: int) -> dict[str, Any]:
    if "num_experts" not in field or not field["num_experts"]:
        return {"sparse_layers": (False,) * layers}
    step, dense = field.get("decoder_sparse_step", 1), set(field.get("mlp_only_layers", ()))
    return {
        "num_experts": field["num_experts"],
        "top_k": field["num_experts_per_tok"],
        "expert_size": field["moe_intermediate_size"],
        "shared_expert_size": field["shared_expert_intermediate_size"],
        "sparse_layers": tuple(i not in dense and (i + 1) % step == 0 for i in range(layers)),
        # Qwen3.5 has no such field and always does.
        "renormalize": field["norm_topk_prob"] if model_type == "qwen3_next" else True,
    }


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
