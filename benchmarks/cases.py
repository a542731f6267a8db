"""What is measured: batches of one layer of a Qwen3-Next-sized model, with the bytes that each must move.

H = 16, HV = 32, K = V = 128, hence D = 2 H K + HV V = 8192 channels, W = 4, bf16 activations.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from benchmarks import moe_cases
from benchmarks.timing import Call
from optimized import baselines, causal_conv, gated_norm, gdn_decode, gdn_prefill

H, HV, K, V, W = 16, 32, 128, 128, 4
D = 2 * H * K + HV * V
DTYPE = torch.bfloat16
PEERS = ("sglang", "fla", "flashinfer")

# Input sets are walked in turn until this much memory lies between two uses of one: several times an H100's 50 MB L2.
ROTATION_BYTES = 256 * 2**20
MOST_SETS = 256

_mixed = random.Random(0)
PREFILL_BATCHES = {
    "1 x 8192": [8192],
    "2 x 4096": [4096] * 2,
    "8 x 1024": [1024] * 8,
    "64 x 128": [128] * 64,
    "256 x (1..63) mixed": [_mixed.randint(1, 63) for _ in range(256)],
    "1 x 512": [512],
}
UPDATE_BATCHES = (1, 64, 256)
DECODE_BATCHES = (1, 8, 64, 256)
NORM_TOKENS = (1, 64, 8192)
STATE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One row of the table. `build` makes the input sets and returns, for each side, its calls or why it has none."""

    operator: str
    label: str
    num_bytes: int
    """The floor: every input read once, every output and state written once."""
    build: Callable[[int], dict[str, list[Call] | str]]
    moved_bytes: int | None = None
    """What our kernels move by their own account, intermediates and second readings included; None: the floor."""
    datasheet_us: float | None = None
    """The floor by the chip's datasheet, where arithmetic may be what takes longest; None: bytes at the copy bandwidth."""

    @property
    def sets(self) -> int:
        return _sets(self.num_bytes)


def _sets(num_bytes: int) -> int:
    return max(1, min(MOST_SETS, -(-ROTATION_BYTES // num_bytes)))


def all_cases() -> Iterator[Case]:
    item = DTYPE.itemsize
    state_row = D * (W - 1) * item
    for label, lengths in PREFILL_BATCHES.items():
        # Every sequence resumes: x and y once, each state row read and written.
        num_bytes = sum(lengths) * D * item * 2 + len(lengths) * state_row * 2
        yield Case("conv_prefill", label, num_bytes, _prefill_builder(lengths))
    for batch in UPDATE_BATCHES:
        yield Case("conv_update", f"B = {batch}", batch * (D * item + state_row) * 2, _update_builder(batch))
    for name, dtype in STATE_DTYPES.items():
        for batch in DECODE_BATCHES:
            row = 2 * HV * V * K * dtype.itemsize + (D + HV * V + 2 * HV) * item
            yield Case("gdn_decode", f"{name} state, B = {batch}", batch * row, _decode_builder(batch, dtype))
    for label, lengths in PREFILL_BATCHES.items():
        tokens, states = sum(lengths), len(lengths) * HV * V * K * torch.float32.itemsize
        num_bytes = tokens * ((D + HV * V) * item + 2 * HV * torch.float32.itemsize) + 2 * states
        moved_bytes = num_bytes + _gdn_prefill_intermediates(lengths)
        yield Case("gdn_prefill", label, num_bytes, _gdn_prefill_builder(lengths), moved_bytes)
    for tokens in NORM_TOKENS:
        yield Case("gated_rmsnorm", f"T = {tokens}", 3 * tokens * HV * V * item, _norm_builder(tokens))
    for model in moe_cases.MODELS:
        for tokens in moe_cases.TOKENS:
            sets = _sets(moe_cases.expected_bytes(model, tokens))
            num_bytes = moe_cases.routed_bytes(model, tokens, sets)
            label = f"{model.name}: {model.experts} experts, top {model.top_k}, T = {tokens}"
            build = moe_cases.builder(model, tokens)
            yield Case("moe", label, num_bytes, build, datasheet_us=moe_cases.floor_us(model, tokens, num_bytes))


def _prefill_builder(lengths: list[int]) -> Callable[[int], dict[str, list[Call] | str]]:
    def build(sets: int) -> dict[str, list[Call] | str]:
        weight = _random(D, W)
        inputs = []
        for _ in range(sets):
            keywords = {
                "conv_state": _random(len(lengths) + 2, D, W - 1),
                "cu_seqlens": torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32),
                "state_indices": torch.randperm(len(lengths) + 2, device="cuda")[: len(lengths)].to(torch.int32),
                "has_initial_state": torch.ones(len(lengths), dtype=torch.bool, device="cuda"),
                "activation": "silu",
            }
            inputs.append(((_random(sum(lengths), D), weight), keywords))
        return {
            "ours": _calls(causal_conv.conv_prefill, inputs),
            "baseline": _calls(baselines.conv_prefill, inputs),
            # SGLang wants the lengths on the host too; given, it does not synchronize.
            **_peers("conv_prefill", inputs, {"sglang": {"lengths": lengths}}),
        }

    return build


def _update_builder(batch: int) -> Callable[[int], dict[str, list[Call] | str]]:
    def build(sets: int) -> dict[str, list[Call] | str]:
        weight = _random(D, W)
        pool = _random(batch * sets + 1, D, W - 1)
        slots = torch.randperm(batch * sets + 1, device="cuda").to(torch.int32)
        inputs = []
        for index in range(sets):
            keywords = {
                "conv_state": pool,
                "state_indices": slots[index * batch : (index + 1) * batch].clone(),
                "activation": "silu",
            }
            inputs.append(((_random(batch, D), weight), keywords))
        return {
            "ours": _calls(causal_conv.conv_update, inputs),
            "baseline": _calls(baselines.conv_update, inputs, all_active=True),
            **_peers("conv_update", inputs),
        }

    return build


def _decode_builder(batch: int, state_dtype: torch.dtype) -> Callable[[int], dict[str, list[Call] | str]]:
    def build(sets: int) -> dict[str, list[Call] | str]:
        pool = _random(batch * sets + 1, HV, V, K, dtype=state_dtype)
        slots = torch.randperm(batch * sets + 1, device="cuda").to(torch.int32)
        A_log, dt_bias = torch.rand(HV, device="cuda"), torch.randn(HV, device="cuda")
        inputs = []
        for index in range(sets):
            # As in a model: q, k and v are column slices of one projection, a and b of another.
            q, k, v = _random(batch, D).split([H * K, H * K, HV * V], dim=1)
            a, b = _random(batch, 2 * HV).chunk(2, dim=1)
            keywords = {
                "a": a,
                "b": b,
                "A_log": A_log,
                "dt_bias": dt_bias,
                "state": pool,
                "state_indices": slots[index * batch : (index + 1) * batch].clone(),
            }
            views = (q.view(batch, H, K), k.view(batch, H, K), v.view(batch, HV, V))
            inputs.append((views, keywords))
        dense = [(views, keywords | {"a": keywords["a"].clone()}) for views, keywords in inputs]
        return {
            "ours": _calls(gdn_decode.gdn_decode, inputs),
            "baseline": _calls(baselines.gdn_decode, inputs, all_active=True),
            # SGLang's kernel takes a to be dense.
            **_peers("gdn_decode", dense, {name: {"all_active": True} for name in ("fla", "flashinfer")}),
        }

    return build


def _gdn_prefill_builder(lengths: list[int]) -> Callable[[int], dict[str, list[Call] | str]]:
    def build(sets: int) -> dict[str, list[Call] | str]:
        tokens, count = sum(lengths), len(lengths)
        pool = _random(count * sets + 1, HV, V, K, dtype=torch.float32)
        slots = torch.randperm(count * sets + 1, device="cuda").to(torch.int32)
        # One tensor for all sets, as for all layers of a step: what a library derives from it, it derives once.
        cu_seqlens = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
        # Heads that forget in a tenth of a token beside heads that remember ten thousand.
        rates = 10.0 ** (5 * torch.rand(HV, device="cuda") - 4)
        inputs = []
        for index in range(sets):
            # As in a model: q, k and v are column slices of one projection.
            q, k, v = _random(tokens, D).split([H * K, H * K, HV * V], dim=1)
            keywords = {
                "g": -rates * torch.rand(tokens, HV, device="cuda"),
                "beta": torch.randn(tokens, HV, device="cuda").sigmoid(),
                "state": pool,
                "cu_seqlens": cu_seqlens,
                "state_indices": slots[index * count : (index + 1) * count].clone(),
                "has_initial_state": torch.ones(count, dtype=torch.bool, device="cuda"),
            }
            views = (q.view(tokens, H, K), k.view(tokens, H, K), v.view(tokens, HV, V))
            inputs.append((views, keywords))
        # The libraries would copy views first.
        dense = [(tuple(view.contiguous() for view in views), keywords) for views, keywords in inputs]
        promises: dict[str, dict[str, Any]] = {name: {"all_resumed": True} for name in PEERS}
        promises["flashinfer"]["max_seqlen"] = max(lengths)
        return {
            "ours": _calls(gdn_prefill.gdn_prefill, inputs),
            "baseline": _calls(baselines.gdn_prefill, inputs),
            **_peers("gdn_prefill", dense, promises),
        }

    return build


def _gdn_prefill_intermediates(lengths: list[int]) -> int:
    """Bytes beyond the floor: q and k once more, two factors a chunk and value head and its scalings, written and read."""
    chunk = gdn_prefill.LONGEST_CHUNK
    chunks = sum(-(-length // chunk) for length in lengths)
    factors = 2 * chunk * chunk * DTYPE.itemsize
    scalings = 4 * chunk * torch.float32.itemsize
    return sum(lengths) * 2 * H * K * DTYPE.itemsize + chunks * HV * 2 * (factors + scalings)


def _norm_builder(tokens: int) -> Callable[[int], dict[str, list[Call] | str]]:
    def build(sets: int) -> dict[str, list[Call] | str]:
        weight = _random(V)
        inputs: list[Any] = []
        for _ in range(sets):
            # As in a model: z is the last columns of the projection that q, k and v come from.
            z = _random(tokens, D + HV * V)[:, D:].view(tokens, HV, V)
            inputs.append(((_random(tokens, HV, V), z, weight), {}))
        return {
            "ours": _calls(gated_norm.gated_rmsnorm, inputs),
            "baseline": _calls(baselines.gated_rmsnorm, inputs),
            **_peers("gated_rmsnorm", inputs),
        }

    return build


def _random(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def _calls(function: Callable[..., Any], inputs: list[Any], **more: Any) -> list[Call]:
    def call(args: tuple[torch.Tensor, ...], keywords: dict[str, Any]) -> Call:
        return lambda: function(*args, **keywords, **more)

    return [call(args, keywords) for args, keywords in inputs]


def _peers(
    operator: str, inputs: list[Any], more: dict[str, dict[str, Any]] | None = None
) -> dict[str, list[Call] | str]:
    """One entry a peer that could have this operator; a peer that cannot be called says why."""
    sides: dict[str, list[Call] | str] = {}
    for name in PEERS:
        adapter = _adapter(name)
        if importlib.util.find_spec(name) is None:
            sides[name] = "not installed"
        elif adapter is None:
            sides[name] = "no adapter"
        elif not hasattr(adapter, operator):
            sides[name] = "has no such operator"
        else:
            sides[name] = _calls(getattr(adapter, operator), inputs, **(more or {}).get(name, {}))
    return sides


def _adapter(name: str) -> ModuleType | None:
    module = f"optimized.peers.{name}"
    return importlib.import_module(module) if importlib.util.find_spec(module) else None
