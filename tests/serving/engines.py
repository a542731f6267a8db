"""Small engines on the toy model, for tests that say what happens by hand."""

from __future__ import annotations

from typing import Any

import torch

from serving.engine import Engine
from serving.request import Request
from serving.settings import EngineSettings
from serving.toy import Toy

TOY = Toy()


def settings(**changes: Any) -> EngineSettings:
    plain: dict[str, Any] = {
        "slots": 4,
        "pages": 16,
        "page_size": 4,
        "max_batch_size": 4,
        "max_tokens": 16,
        "max_length": 32,
        "state_dtype": torch.float64,
        "record_logits": True,
        "check": True,
    }
    return EngineSettings(**plain | changes)


def engine(**changes: Any) -> Engine:
    return Engine(TOY, settings(**changes))


def request(name: str, length: int, new: int = 2, **others: Any) -> Request:
    """Tokens that differ from those of requests of other names."""
    return Request(name, tuple((7 * i + ord(name[0])) % 16 for i in range(length)), new, **others)
