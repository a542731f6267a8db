"""What one call of the host got and gave, as copies that nobody else can change.

Copies are made on the tensors' own device, in stream order, and nothing here waits for the device. Of a state pool only
the rows are copied that the call names: a pool may be ten gigabytes, the rows of one call are megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, str, type(None))


class NotJudged(Exception):
    """This call is outside of what the operator's contract says; the reason is counted with the skipped calls."""


@dataclass(frozen=True)
class Opaque:
    """Stands for an argument that is neither a tensor nor plain data: it was not copied."""

    type: str


@dataclass(frozen=True)
class Pool:
    """How a pool that is not stored looked like: enough to build one again around its rows."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class Seen:
    """One observed call.

    arguments: by parameter name, as they were before the call; a pool is its rows [N, ...] in the order of its indices; what
    a signature reads of an object has a dotted name, ``"self.chunk_size"``. result: what came back; the fields of an object as
    a dict. after: the arguments that the call changes, afterwards. given: names of the arguments that the host passed, the
    first ``positional`` of them by position.
    """

    arguments: dict[str, Any]
    given: tuple[str, ...] = ()
    positional: int = 0
    result: Any = None
    after: dict[str, Any] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    #: The number of the call, from 1, and the bytes that are reserved for its copies.
    call: int = 0
    cost: int = 0
    #: Strides of the host's tensors by the identity of their copies, so that a replay can lay them out alike.
    strides: dict[int, tuple[int, ...]] = field(default_factory=dict)


def nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(map(nbytes, value))
    return sum(map(nbytes, value.values())) if isinstance(value, Mapping) else 0


def row_bytes(pool: Tensor, indices: Tensor) -> int:
    """Of the rows that `rows` would copy."""
    return indices.numel() * (pool.numel() // max(pool.shape[0], 1)) * pool.element_size()


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same containers with every tensor changed; what is neither data nor a tensor becomes `Opaque`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (*PLAIN, Opaque)):
        return value
    if isinstance(value, list | tuple):
        items = [map_tensors(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        return {str(name): map_tensors(item, change) for name, item in value.items()}
    return Opaque(f"{type(value).__module__}.{type(value).__qualname__}")


def clone(tensor: Tensor) -> Tensor:
    # A copy made in inference mode could not be written to by the reference, in another thread and mode.
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().clone()


def rows(pool: Tensor, indices: Tensor) -> Tensor:
    """Rows [N, ...] of a pool at ``indices`` [N]. A negative or a wild index reads some row, which nobody judges."""
    with torch.inference_mode(False), torch.no_grad():
        return pool.detach().index_select(0, indices.detach().long().clamp(0, max(pool.shape[0] - 1, 0)))
