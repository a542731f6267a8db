"""The shape of a hybrid model: what a Hugging Face configuration says about the text part of Qwen3-Next and Qwen3.5."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Sizes by the field's names.

    Attributes:
        layers: "linear_attention" or "full_attention" of each layer, in order.
        key_heads, value_heads, key_dim, value_dim, conv_width: of the gated delta net; a key head serves
            value_heads // key_heads consecutive value heads.
        num_heads, num_kv_heads, head_dim, rotary_dim, rope_theta: of the attention; the first rotary_dim of head_dim turn.
        intermediate_size: of a dense MLP.
        num_experts: 0 for a dense model; top_k, expert_size, shared_expert_size: of the mixture of experts;
            sparse_layers: which layers have one; renormalize: whether the chosen experts' weights are divided by their sum.
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

    @property
    def conv_channels(self) -> int:
        """Queries, keys and values of all heads, in this order."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def layer_counts(self) -> tuple[int, int]:
        """How many layers are gated delta nets, and how many attend."""
        delta = sum(kind == "linear_attention" for kind in self.layers)
        return delta, len(self.layers) - delta
