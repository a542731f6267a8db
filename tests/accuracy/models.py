"""A tiny random model with a tokenizer of bytes, and the same model with a fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import references
from serving.checkpoint import write_checkpoint
from serving.kernel_set import KernelSet
from serving.model import HybridModel
from serving.presets import PRESETS
from serving.weights import random_weights

#: Bytes are tokens; the last one ends a text.
END = 256
CONFIG = replace(PRESETS["tiny"], vocab_size=257, eos_token_ids=(END,))


def model(seed: int = 0, **replaced: Any) -> HybridModel:
    weights = random_weights(CONFIG, seed, torch.float32, torch.device("cpu"))
    return HybridModel(CONFIG, weights, KernelSet.named("oracle").replaced(**replaced))


def rounded(q: Tensor, k: Tensor, v: Tensor, **others: Any) -> Any:
    """Right, in float32."""
    return references.gdn_chunked(q, k, v, **others, compute_dtype=torch.float32)


def forgetful(q: Tensor, k: Tensor, v: Tensor, **others: Any) -> Any:
    """A delta rule whose decay is a hundredth too strong."""
    return references.gdn_chunked(q, k, v, **{**others, "g": others["g"] * 1.01 - 0.01}, compute_dtype=torch.float64)


def tokenizer(folder: Path) -> Path:
    """A tokenizer whose tokens are the bytes 0 to 255, built here, beside a token that ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    path = folder / "tokenizer.json"
    made.save(str(path))
    return path


def checkpoint(folder: Path, seed: int = 0) -> Path:
    """The tiny model and its tokenizer in the Hugging Face format."""
    one = model(seed)
    write_checkpoint(folder, one.config, one.weights, "qwen3_next")
    tokenizer(folder)
    return folder
