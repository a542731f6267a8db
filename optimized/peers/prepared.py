"""Weights that a library wants in another layout: brought into it once, and kept as long as the weights are.

A copy belongs to the memory that the weights lie in, the view of it that was passed, the number of times it was written to
(torch's version counter), and whatever else decides the layout. Writes that torch does not count (through `Tensor.data`,
by a kernel that is handed an address) go unnoticed: who writes so makes a new tensor.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

_Prepared = TypeVar("_Prepared")

_Key = tuple[Hashable, ...]


class Preparations:
    """`get` returns what it was given to make, or what it made before of the same weights."""

    def __init__(self) -> None:
        #: The first weights' storage, by its number -> views and layout -> storages and versions, and what was made of them.
        self._made: dict[int, dict[_Key, tuple[_Key, object]]] = {}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def get(self, make: Callable[[], _Prepared], weights: tuple[torch.Tensor, ...], layout: _Key) -> _Prepared:
        """`make()`, remembered by the weights and by `layout`: everything else that the result depends on.

        Not remembered, but made anew, are weights without a version (of inference mode), and those that are first met inside
        the capture of a graph: their copy would lie in the graph's memory, and hold nothing before the first replay.
        """
        first = weights[0]
        if any(weight.is_inference() for weight in weights):
            return make()
        made = self._of(first.untyped_storage())
        key = (*map(_view, weights), *layout)
        # Weak references are equal as long as they are alive and of one storage: an address alone may be another tensor's.
        versions = tuple((weakref.ref(weight.untyped_storage()), weight._version) for weight in weights)
        known = made.get(key)
        if known is not None and known[0] == versions:
            found: _Prepared = known[1]  # type: ignore[assignment]
            return found
        result = make()
        if not (first.is_cuda and torch.cuda.is_current_stream_capturing()):
            made[key] = versions, result
        return result

    def __len__(self) -> int:
        return sum(map(len, self._made.values()))

    def _of(self, storage: torch.UntypedStorage) -> dict[_Key, tuple[_Key, object]]:
        """What was made of this storage; of one that died, whose number it may have, nothing is left."""
        number = id(storage)
        known = self._alive.get(number)
        if known is None or known() is not storage:
            self._made[number] = {}
            self._alive[number] = weakref.ref(storage, lambda dead: self._forget(number, dead))
        return self._made[number]

    def _forget(self, number: int, dead: weakref.ref[torch.UntypedStorage]) -> None:
        if self._alive.get(number) is dead:
            del self._alive[number], self._made[number]


def _view(weight: torch.Tensor) -> _Key:
    return (weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.dtype, str(weight.device))
