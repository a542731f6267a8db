"""Who watches what goes on just now: the innermost of those that have begun and not ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Watch = TypeVar("Watch")


class Innermost(Generic[Watch]):
    """new: makes one."""

    def __init__(self, new: Callable[[], Watch]) -> None:
        self._new = new
        self._watches: list[Watch] = []

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        """While the body runs, a new one watches."""
        self._watches.append(self._new())
        try:
            yield self._watches[-1]
        finally:
            self._watches.pop()

    def current(self) -> Watch | None:
        return self._watches[-1] if self._watches else None
