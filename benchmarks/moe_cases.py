"""The mixture of experts of two published models, one layer's routed experts: routing, sorting and weighing included.

The floor is what the chip's datasheet allows: the weights of every expert that some token is sent to, read once, with the
tokens read and written, or the products' arithmetic, whichever takes longer. Logits are drawn independently and from a fixed
seed, so that every expert is as likely as any other and the experts of a set are known before anything runs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.timing import Call, failed, quickest
from optimized import moe, moe_baseline
from optimized.peers import flashinfer_moe, sglang_moe, torch_grouped, transformers

#: By datasheets of what `torch.cuda.get_device_name` says: bytes a second, and dense bfloat16 operations a second,
#: multiplication and addition apart. Any other name: an H100's.
DATASHEETS = {"H200": (4.8e12, 990e12), "H100": (3.35e12, 990e12)}

TOKENS = (1, 8, 64, 256, 1024, 8192)
#: Every expert computes every token there: with more tokens it takes longer than all others together.
MOST_BASELINE_TOKENS = 8
DTYPE = torch.bfloat16
SEED = 20

Sides = dict[str, list[Call] | str]


@dataclass(frozen=True)
class Model:
    name: str
    experts: int
    top_k: int
    hidden: int
    size: int

    @property
    def expert_bytes(self) -> int:
        return 3 * self.hidden * self.size * DTYPE.itemsize


MODELS = (Model("35B", 256, 8, 2048, 512), Model("80B", 512, 10, 2048, 512))


def expected_bytes(model: Model, tokens: int) -> int:
    """What a batch moves if as many experts are wanted as are on average."""
    distinct = model.experts * (1 - (1 - model.top_k / model.experts) ** tokens)
    return int(distinct * model.expert_bytes) + _token_bytes(model, tokens)


@functools.cache
def routed_bytes(model: Model, tokens: int, sets: int) -> int:
    """The mean of these sets, by the experts that their logits ask for."""
    distinct = [logits(model, tokens, index).topk(model.top_k).indices.unique().numel() for index in range(sets)]
    return round(sum(distinct) / sets * model.expert_bytes) + _token_bytes(model, tokens)


def floor_us(model: Model, tokens: int, num_bytes: int) -> float:
    """By this card's datasheet."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    bandwidth, rate = next((rates for card, rates in DATASHEETS.items() if card in name), DATASHEETS["H100"])
    operations = 2 * 3 * tokens * model.top_k * model.hidden * model.size
    return max(num_bytes / bandwidth, operations / rate) * 1e6


def logits(model: Model, tokens: int, index: int) -> torch.Tensor:
    """[T, E] on the host, the same whenever they are drawn."""
    draw = torch.Generator().manual_seed(SEED + 1000 * index + tokens)
    return torch.randn(tokens, model.experts, generator=draw).to(DTYPE)


def builder(model: Model, tokens: int) -> Callable[[int], Sides]:
    def build(sets: int) -> Sides:
        weights = _weights(model)
        inputs = []
        for index in range(sets):
            x = torch.randn(tokens, model.hidden, device="cuda", dtype=DTYPE)
            inputs.append((x, logits(model, tokens, index).cuda(), *weights))

        def calls(function: Callable[..., Any], **more: Any) -> list[Call]:
            keywords = {"top_k": model.top_k, "method": "renormalize", **more}
            return [functools.partial(function, *tensors, **keywords) for tensors in inputs]

        few = tokens <= MOST_BASELINE_TOKENS
        return {
            "ours": calls(moe.moe),
            "baseline": calls(moe_baseline.moe) if few else "not measured: every expert computes every token",
            "sglang": _peer("sglang", lambda: _best_tiles(calls, tokens, model)),
            "torch grouped": calls(torch_grouped.moe),
            "transformers": _peer("transformers", lambda: calls(transformers.moe)),
            "flashinfer": _peer("flashinfer", lambda: _tuned(calls, tokens)),
        }

    return build


def _best_tiles(calls: Callable[..., list[Call]], tokens: int, model: Model) -> list[Call]:
    """SGLang with whichever of its rule's tiles and of the candidates is quickest here."""
    tiles = (sglang_moe.default_tiles(tokens, model.experts), *sglang_moe.candidates(tokens))
    return quickest([calls(sglang_moe.moe, tiles=each) for each in tiles])


def _tuned(calls: Callable[..., list[Call]], tokens: int) -> list[Call]:
    """FlashInfer after it has tried all its configurations on this number of tokens."""
    made = calls(flashinfer_moe.moe)
    tuner = importlib.import_module("flashinfer.autotuner")
    with tuner.autotune(True, tuning_buckets=(tokens,)):
        made[0]()
    torch.cuda.synchronize()
    return made


def _peer(library: str, build: Callable[[], list[Call]]) -> list[Call] | str:
    """Its calls, or why it has none: the others are still measured."""
    if importlib.util.find_spec(library) is None:
        return "not installed"
    try:
        return build()
    except Exception as error:  # noqa: BLE001 - libraries raise what they like, compilers classes of their own
        return failed(error)


@functools.lru_cache(maxsize=1)
def _weights(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one model at a time: with what libraries make of them, they fill a good part of the memory."""
    return (
        torch.randn(model.experts, 2 * model.size, model.hidden, device="cuda", dtype=DTYPE) / model.hidden**0.5,
        torch.randn(model.experts, model.hidden, model.size, device="cuda", dtype=DTYPE) / model.size**0.5,
    )


def _token_bytes(model: Model, tokens: int) -> int:
    return tokens * (2 * model.hidden + model.experts) * DTYPE.itemsize
