"""Who answers: our engine on a checkpoint, or any model that lm-eval has. A server is in `client`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from accuracy.answering import Answer, Answering, Prompt, Tokenizer, cut_at, settings_for


@dataclass(frozen=True)
class Engine:
    """Our engine on a checkpoint.

    Attributes:
        model: folder of the checkpoint. kernels: as in `KernelSet.named`. device: "auto", "cpu" or "cuda". dtype: "auto" is
            bfloat16 on a GPU and float32 on a CPU.
        concurrency: most requests at once. max_length: most tokens of a prompt and its answer. chunk_budget: most tokens in a
            step. seed: of the order in which slots are given; 0 takes what was freed last.
    """

    model: str
    kernels: str = "optimized"
    device: str = "auto"
    dtype: str = "auto"
    concurrency: int = 32
    max_length: int = 4096
    chunk_budget: int | None = None
    seed: int = 0
    prefixes: bool = True


def engine(asked: Engine) -> Answering:
    """Raises ValueError for a checkpoint, tokenizer, kernel set, device or dtype that there is not."""
    from harness.cli.device import choose

    device = choose(asked.device)
    import torch

    from harness import interpreter
    from serving import presets

    interpreter.repair()
    if device == "cpu":
        # The products are small: threads would wait for each other, and for whatever else runs.
        torch.set_num_threads(1)
    names = {"auto": torch.bfloat16 if device == "cuda" else torch.float32}
    names |= {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if asked.dtype not in names:
        raise ValueError(f"--dtype: got {asked.dtype!r}, expected one of {', '.join(names)}")
    if not Path(asked.model).is_dir():
        raise ValueError(f"--model: got {asked.model!r}, expected the folder of a checkpoint")
    one = presets.model(
        asked.model, asked.kernels, dtype=names[asked.dtype], device=torch.device(device), seed=asked.seed
    )
    if not one.config.eos_token_ids:
        raise ValueError(
            f"--model: {asked.model} has no eos_token_id in its configuration, expected what ends an answer"
        )
    settings = settings_for(
        one,
        asked.max_length,
        asked.concurrency,
        prefixes=asked.prefixes,
        graphs=capturable(asked.kernels),
        chunk_budget=asked.chunk_budget,
        slot_seed=asked.seed or None,
    )
    return Answering(one, Tokenizer(Path(asked.model) / "tokenizer.json"), settings)


def capturable(kernels: str) -> bool:
    """Whether steps of these kernels may be replayed as a graph."""
    return "references" not in kernels and "oracle" not in kernels


def fingerprint(folder: Path) -> str:
    """The name of a checkpoint, and a hash of its configuration and of the beginning and size of every file of weights."""
    found = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        if path.is_file():
            with path.open("rb") as file:
                found.update(f"{path.name} {path.stat().st_size} ".encode() + file.read(1 << 22))
    return f"{folder.resolve().name}@{found.hexdigest()[:12]}"


def tokenizer_hash(folder: Path) -> str:
    path = folder / "tokenizer.json"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "none"


class Library:
    """A model of lm-eval, by its name and arguments there: hf, vllm, sglang ...

    Raises ValueError where lm-eval is not installed, or has no such model.
    """

    def __init__(self, name: str, arguments: str, batch: int = 32) -> None:
        try:
            from lm_eval.api.registry import get_model
        except ImportError as error:
            raise ValueError("--lm-eval-model: lm-eval is not installed; install the extra `accuracy`") from error
        import lm_eval.models  # noqa: F401  # what it registers

        try:
            self._lm: Any = get_model(name).create_from_arg_string(arguments, {"batch_size": batch})
        except (KeyError, ValueError) as error:
            raise ValueError(f"--lm-eval-model {name}: {error}") from error
        self.batch = batch

    def __call__(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Answers in groups: a library says nothing before a whole list is done. Nor does it say which were cut short."""
        from lm_eval.api.instance import Instance

        asked = iter(enumerate(prompts))
        while group := list(islice(asked, 4 * self.batch)):
            requests = [
                Instance("generate_until", {}, (prompt.text, self._options(prompt)), 0, metadata=("gsm8k", place, 1))
                for place, prompt in group
            ]
            for (place, prompt), text in zip(group, self._lm.generate_until(requests), strict=True):
                yield place, Answer(cut_at(str(text), prompt.until)[0], -1, False)

    @staticmethod
    def _options(prompt: Prompt) -> dict[str, Any]:
        return {
            "until": list(prompt.until),
            "max_gen_toks": prompt.max_new_tokens,
            "do_sample": False,
            "temperature": 0.0,
        }
