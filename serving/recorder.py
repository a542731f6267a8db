"""A model that writes down what it is given, on the device and without waiting for it: what the engine's copies are judged with.

A judge that reads every step waits for the device every time, and a host that never runs ahead never overwrites memory that is
still being copied. This one may be made late: the device is kept busy before each step, as a large model keeps it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from serving import toy
from serving.batch import StepBatch
from serving.caches import Caches
from serving.oracle import METADATA


class Recorder:
    """Answers by token and position alone.

    kernels: of which the engine takes the builder of metadata. cycles: of the device's clock that a step waits; CUDA only.

    Attributes:
        seen: what each call was given, by name, as copies on the device; None for chunks that a step has not.
    """

    config = toy.CONFIG
    dtype = torch.float32

    def __init__(self, kernels: Any, device: torch.device, cycles: int = 0) -> None:
        self.kernels, self.device, self._cycles = kernels, device, cycles
        self.seen: list[dict[str, Tensor | None]] = []

    def __call__(self, batch: StepBatch, caches: Caches) -> Tensor:
        """Logits [rows wanted, vocabulary]."""
        if self._cycles:
            torch.cuda._sleep(self._cycles)
        fields: dict[str, Tensor | None] = {name: getattr(batch, name) for name in toy.INPUTS}
        fields |= {name: getattr(batch.metadata, name) for name in METADATA}
        given = {name: field for name, field in fields.items() if field is not None}
        toy.require_there(self.device, given)
        self.seen.append(dict.fromkeys(fields) | {name: field.clone() for name, field in given.items()})
        likeliest = (3 * batch.tokens + batch.positions)[batch.logit_rows] % toy.VOCABULARY
        return one_hot(likeliest, toy.VOCABULARY).float()
