"""Small random models of every class, by seed."""

from __future__ import annotations

import random

from serving.config import ModelConfig

MODEL_TYPES = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")


def configuration(model_type: str, seed: int, *, tied: bool | None = None) -> ModelConfig:
    """Different heads, head dims, layer patterns, MLPs and rotations; the same seed gives the same one."""
    draw = random.Random(f"{model_type} {seed}")
    count = draw.choice([2, 3, 4, 5])
    # At least one layer of each kind, in any order.
    more = draw.choices(["linear_attention", "linear_attention", "full_attention"], k=count - 2)
    layers = ["linear_attention", "full_attention", *more]
    draw.shuffle(layers)
    sparse = {
        "qwen3_5_text": [False] * count,
        "qwen3_5_moe_text": [True] * count,
        "qwen3_next": [draw.random() < 0.7 for _ in range(count)],
    }[model_type]
    moe = model_type != "qwen3_5_text"
    experts = draw.choice([2, 3, 5, 8]) if moe else 0
    key_heads, kv_heads = draw.choice([1, 2, 3]), draw.choice([1, 2])
    # Ratio 1 to 4 in turn, so that none is left to chance.
    ratio = 1 + seed % 4
    key_dim, value_dim = draw.sample([4, 6, 8, 10, 16], 2)
    head_dim = draw.choice([8, 16, 24])
    return ModelConfig(
        vocab_size=draw.choice([37, 64, 101]),
        hidden_size=draw.choice([16, 24, 40]),
        layers=tuple(layers),
        key_heads=key_heads,
        value_heads=key_heads * ratio,
        key_dim=key_dim,
        value_dim=value_dim,
        conv_width=draw.choice([2, 3, 4, 4]),
        num_heads=kv_heads * draw.choice([1, 2, 3]),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=int(head_dim * draw.choice([0.25, 0.5, 0.75, 1.0])),
        rope_theta=draw.choice([1e4, 1e7, 50.0]),
        intermediate_size=0 if model_type == "qwen3_5_moe_text" else draw.choice([12, 20, 32]),
        num_experts=experts,
        top_k=draw.randint(1, experts) if moe else 0,
        expert_size=draw.choice([6, 10, 16]) if moe else 0,
        shared_expert_size=draw.choice([6, 10, 16]) if moe else 0,
        sparse_layers=tuple(sparse),
        renormalize=draw.random() < 0.5 if model_type == "qwen3_next" else True,
        tied_embeddings=draw.random() < 0.4 if tied is None else tied,
        norm_eps=draw.choice([1e-6, 1e-5, 1e-3]),
    )
