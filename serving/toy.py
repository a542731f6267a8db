"""A model that computes nothing of use, and notices everything: what the engine is judged with, exactly and fast.

A real model forgives: a stale key or a wrong position moves its logits by less than rounding may, and one pass costs
milliseconds. This one has the real one's interface and reads all that an engine is responsible for (tokens, positions,
slots with their flags, pages through their tables, who owns which token), but mixes them as a hash does, in integers that
float64 holds exactly. One wrong number changes its logits for sure, its oracle is exact, and a thousand steps take a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from references.step_metadata import step_metadata
from serving.batch import StepBatch
from serving.caches import Caches
from serving.config import ModelConfig
from serving.on_host import on_host

#: Products of two numbers below it stay far below 2^53, so float64 holds all of this exactly.
PRIME = 1_000_003.0
WIDTH = 4
VOCABULARY = 16
#: Few enough values for ties among the logits, which must go to the lowest token.
LEVELS = 61
HOST = torch.device("cpu")
#: What it reads of an engine's memory, and of a step.
POOLS = ("conv", "delta", "keys", "values")
METADATA = ("query_start_loc", "has_initial_state", "state_indices", "seq_idx")
INPUTS = ("tokens", "positions", "write_slots", "lengths", "page_tables", "logit_rows")


@dataclass(frozen=True)
class ToyKernels:
    """What the engine needs of a kernel set."""

    step_metadata: Any = step_metadata
    chunk_size: int = 4


REFERENCES = ToyKernels()
CONFIG = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=1,
    layers=("linear_attention", "full_attention"),
    key_heads=1,
    value_heads=1,
    key_dim=1,
    value_dim=1,
    conv_width=WIDTH,
    num_heads=1,
    num_kv_heads=1,
    head_dim=1,
    rotary_dim=0,
    rope_theta=1.0,
    intermediate_size=1,
)


class Toy:
    """The model: one recurrent layer with a convolution's window, and one that attends, each one number wide.

    device: where the engine's tensors are. The toy always computes on the host: elsewhere it takes all that it reads from the
    device, pools too, and brings the pools back. kernels: of which the engine takes the builder of metadata.
    """

    config = CONFIG
    dtype = torch.float64

    def __init__(self, device: torch.device = HOST, kernels: Any = REFERENCES) -> None:
        self.device, self.kernels = device, kernels

    def __call__(self, batch: StepBatch, caches: Caches) -> Tensor:
        """Logits [rows wanted, vocabulary]. A row that reads what was never written has NaN, as in a real model."""
        pools = {name: getattr(caches, name)[0] for name in POOLS}
        fields = {name: getattr(batch.metadata, name) for name in METADATA}
        fields |= {name: getattr(batch, name) for name in INPUTS}
        require_there(self.device, pools | fields)
        read = on_host([*pools.values(), *fields.values()])
        memory, lists = read[: len(pools)], [field.tolist() for field in read[len(pools) :]]
        starts, flags, slots, owners, tokens, positions, writes, lengths, tables, wanted = lists
        conv, delta, keys, values = (pool.numpy() for pool in memory)
        size = caches.page_size
        outputs: dict[int, float] = {}
        for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            if slot < 0:
                continue
            # As kernels do: those for contexts obey the flag, those for decodes always go on from the slot.
            if row < batch.num_contexts and not flags[row]:
                window, hidden = [0.0] * (WIDTH - 1), 0.0
            else:
                window, hidden = conv[slot, 0].tolist(), float(delta[slot, 0, 0, 0])
            table = tables[row]
            end = starts[row + 1]
            for at in range(starts[row], end):
                owner = owners[at] if row < batch.num_contexts else row
                window, hidden = _recur(window, hidden, tokens[at] + 100 * (owner - row))
                if writes[at] >= 0:
                    place = (*divmod(writes[at], size), 0, 0)
                    keys[place], values[place] = _remember(hidden, positions[at])
                reach = length - (end - 1 - at)
                places = [table[p // size] for p in range(reach)], [p % size for p in range(reach)], 0, 0
                outputs[at] = _attend(hidden, positions[at], keys[places].tolist(), values[places].tolist())
            conv[slot, 0], delta[slot, 0, 0, 0] = window, hidden
        # All on one stream: nothing is written to the pools meanwhile.
        if self.device != HOST:
            changed = torch.cat([pool.reshape(-1) for pool in memory]).to(self.device)
            parts = changed.split([pool.numel() for pool in memory])
            for pool, part in zip(pools.values(), parts, strict=True):
                pool.copy_(part.view(pool.shape))
        rows = [_logits(outputs.get(at)) for at in wanted]
        return torch.tensor(rows, dtype=torch.float32, device=self.device).view(-1, VOCABULARY)


def require_there(device: torch.device, tensors: Mapping[str, Tensor]) -> None:
    """ValueError for one of these that is elsewhere: kernels would read an address of another memory."""
    for name, tensor in tensors.items():
        if tensor.device.type != device.type:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, expected {device}, where the model is")


def alone(tokens: Sequence[int]) -> Tensor:
    """Logits [tokens, vocabulary] after each token of a request that has the model for itself: no slot, no page, no step."""
    window, hidden = [0.0] * (WIDTH - 1), 0.0
    keys, values, rows = [], [], []
    for position, token in enumerate(tokens):
        window, hidden = _recur(window, hidden, token)
        key, value = _remember(hidden, position)
        keys.append(key)
        values.append(value)
        rows.append(_logits(_attend(hidden, position, keys, values)))
    return torch.tensor(rows, dtype=torch.float32).view(-1, VOCABULARY)


def _recur(window: list[float], hidden: float, token: int) -> tuple[list[float], float]:
    """The next window and state: both remember the order of all that came before."""
    mixed = 7919.0 * (token + 1) + 104729.0 * window[-1] + 1299709.0 * window[-2] + 15485863.0 * window[-3]
    return [*window[1:], token + 1.0], (hidden * 65537.0 + mixed + 12345.0) % PRIME


def _remember(hidden: float, position: int) -> tuple[float, float]:
    return (hidden * 31.0 + position * 611953.0) % PRIME, (hidden * 37.0 + position * 746773.0 + 1.0) % PRIME


def _attend(hidden: float, position: int, keys: Sequence[float], values: Sequence[float]) -> float:
    """Each key weighed by its place, so that no two may change places; each value by its key."""
    total = (hidden * 43.0 + position * 86028.0) % PRIME
    for place, (key, value) in enumerate(zip(keys, values, strict=True)):
        total = (total + (key + place * 3571.0) % PRIME * (value + 1.0 + place)) % PRIME
    return total


def _logits(output: float | None) -> list[float]:
    if output is None:
        return [0.0] * VOCABULARY
    if math.isnan(output):
        return [math.nan] * VOCABULARY
    return [((output * (2 * v + 1) + v * 7927.0) % PRIME * 911.0 % PRIME) % LEVELS / 8.0 for v in range(VOCABULARY)]
