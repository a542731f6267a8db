"""Checkpoints in the Hugging Face format: read, with every tensor accounted for, and written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from serving.config import ModelConfig
from serving.spelling import spellings
from serving.weights import Weights, converted

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Where the text model's tensors are: alone, or beside an image tower.
PREFIXES = ("model.language_model.", "model.")
#: Not part of the text model: the head that drafts the token after next, and the image tower.
IGNORED = ("mtp.", "model.visual.", "visual.")
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Checkpoint:
    """What was read. ignored: the names of tensors that belong to no part of the text model."""

    config: ModelConfig
    weights: Weights
    ignored: tuple[str, ...]


def read_checkpoint(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Checkpoint:
    """The model in this folder: config.json with model.safetensors, or with shards and their index.

    Args:
        dtype: of the parameters (those that kernels read in float32 are not kept in less); that of the embeddings when None.
        device: where they go, one after the other.

    Raises:
        ValueError: a file, a tensor or a shape that is not what the configuration asks for; it is named.
    """
    folder, device = Path(folder), torch.device(device)
    config = ModelConfig.read(folder)
    with _Tensors(folder) as tensors:
        names = set(tensors.names)
        ignored = sorted(name for name in names if name.startswith(IGNORED))
        prefix = next((p for p in PREFIXES if any(n.startswith(f"{p}layers.") for n in names)), PREFIXES[-1])

        def full(name: str) -> str:
            return name if name == HEAD else prefix + name

        table = spellings(
            config,
            grouped=lambda i: full(f"layers.{i}.linear_attn.in_proj_qkvz.weight") in names,
            separate=lambda i: full(f"layers.{i}.mlp.experts.gate_up_proj") not in names,
        )
        if dtype is None:
            dtype = tensors.get(full("embed_tokens.weight"), None).dtype
        left = names - set(ignored)
        weights: Weights = {}
        for ours, spelling in table.items():
            parts = []
            for name, shape in spelling.parts:
                parts.append(tensors.get(full(name), shape))
                left.discard(full(name))
            weights[ours] = converted(ours, spelling.join(parts), dtype, device)
        if (
            config.tied_embeddings
            and HEAD in left
            and torch.equal(
                tensors.get(HEAD, (config.vocab_size, config.hidden_size)),
                tensors.get(full("embed_tokens.weight"), None),
            )
        ):
            left.discard(HEAD)
        if left:
            some = ", ".join(sorted(left)[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise ValueError(f"checkpoint: got {some} in {folder}, which the configuration has no place for")
    return Checkpoint(config, weights, tuple(ignored))


def write_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    weights: Weights,
    model_type: str,
    *,
    grouped: bool | None = None,
    separate: bool | None = None,
    shards: int = 1,
) -> None:
    """Write a checkpoint that transformers reads.

    Args:
        model_type: one of the text model types, see `serving.config.DEFAULTS`.
        grouped, separate: as in `serving.spelling`; as the published models of this type have it when None.
        shards: how many files of tensors.

    Raises:
        ValueError: the model type cannot say what the configuration says.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = config.to_hf(model_type)
    next_style = model_type == "qwen3_next"
    use_grouped = next_style if grouped is None else grouped
    use_separate = next_style if separate is None else separate
    table = spellings(config, grouped=lambda _: use_grouped, separate=lambda _: use_separate)
    tensors: dict[str, Tensor] = {}
    for ours, spelling in table.items():
        for (name, _), part in zip(spelling.parts, spelling.split(weights[ours]), strict=True):
            tensors[name if name == HEAD else "model." + name] = part.contiguous().cpu()
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        return
    where: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = names[shard::shards]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(mine, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=2) + "\n")


class _Tensors:
    """The tensors of a folder by name, whichever file they are in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / INDEX).exists():
            where = json.loads((folder / INDEX).read_text())["weight_map"]
            files = sorted(set(where.values()))
        elif (folder / SINGLE).exists():
            where, files = None, [SINGLE]
        else:
            raise ValueError(f"checkpoint: neither {SINGLE} nor {INDEX} in {folder}; expected one of them")
        self._files = files
        self._where: dict[str, str] | None = where
        self._open: dict[str, safe_open] = {}

    def __enter__(self) -> _Tensors:
        for file in self._files:
            if not (self.folder / file).exists():
                raise ValueError(f"checkpoint: {INDEX} names {file}, expected it in {self.folder}")
            self._open[file] = safe_open(self.folder / file, framework="pt")
        if self._where is None:
            self._where = dict.fromkeys(self._open[SINGLE].keys(), SINGLE)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()

    @property
    def names(self) -> list[str]:
        return list(self._where or {})

    def get(self, name: str, shape: tuple[int, ...] | None) -> Tensor:
        where = self._where or {}
        if name not in where:
            raise ValueError(f"checkpoint: {name} is missing in {self.folder}, expected shape {list(shape or ())}")
        tensor: Tensor = self._open[where[name]].get_tensor(name)
        if shape is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"checkpoint: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        return tensor
