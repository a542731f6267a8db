"""Addresses that a kernel of the interpreter reads and writes: each must lie in a buffer of its launch.

A fence shows what was written beyond a buffer, afterwards. What was only read there leaves no trace: masked away behind the
load, it changes no result, and a GPU faults only where the page behind the buffer happens to be missing. The interpreter
knows every address, so on a CPU such a read is a finding by itself.

A buffer is what the launch got a tensor of: from the first to the last element of the placed view or of the subject's own
allocation (gaps between strided rows included, guard bands not); of other tensors, their whole storage. Other pointers (a
table of addresses) are outside everything unless their buffer was among the arguments too. Atomic operations are not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from harness.failure import fail


class Bounds:
    """The buffers of one call of a subject, and the first access outside them."""

    def __init__(self) -> None:
        #: Address of a fenced storage -> first and last byte (past the end) that belong to the buffer, and its name.
        self._fenced: dict[int, tuple[int, int, str]] = {}
        self._launch: list[tuple[int, int, str]] = []
        self._kernel = ""
        self._outside = ""

    def fence(self, storage: Tensor, first: int, last: int, name: str) -> None:
        """Of this storage only the elements from ``first`` to ``last`` (past the end) belong to the buffer."""
        start, size = storage.data_ptr(), storage.element_size()
        self._fenced[start] = (start + first * size, start + last * size, name)

    def launched(self, kernel: str, arguments: Iterable[object]) -> None:
        """What follows are accesses of this kernel with these arguments."""
        self._kernel = kernel
        stores = [t.untyped_storage() for t in arguments if isinstance(t, Tensor) and t.device.type == "cpu"]
        self._launch = [
            self._fenced.get(s.data_ptr(), (s.data_ptr(), s.data_ptr() + s.nbytes(), "an argument")) for s in stores
        ]

    def accessed(self, pointers: np.ndarray, mask: np.ndarray, size: int, verb: str) -> None:
        """Of these addresses of elements of ``size`` bytes, those under the mask are read or written (``verb``)."""
        if self._outside or not self._launch:
            return
        active = pointers[mask]
        if not active.size:
            return
        low, high = int(active.min()), int(active.max()) + size
        # Nearly always all of them lie in one buffer.
        if any(first <= low and high <= last for first, last, _ in self._launch):
            return
        inside = np.zeros(active.shape, dtype=bool)
        for first, last, _ in self._launch:
            inside |= (active >= first) & (active + np.uint64(size) <= last)
        if not inside.all():
            wrong = active[~inside]
            self._outside = f"{self._kernel} {verb} {wrong.size} elements {self._where(int(wrong[0]), size)}"

    def _where(self, address: int, size: int) -> str:
        """Beside which buffer that is."""
        by_distance = [(max(first - address, address + size - last), first, name) for first, last, name in self._launch]
        distance, first, name = min(by_distance)
        return f"outside every buffer that it was given, the first {distance} bytes {'before' if address < first else 'behind'} {name}"

    def check(self) -> None:
        """Raise the `Failure` of the first access outside."""
        if self._outside:
            fail("out of bounds", self._outside)


_current: list[Bounds] = []


@contextmanager
def watched() -> Iterator[Bounds]:
    """While the body runs, launches of the interpreter are watched (`harness.interpreter.repair` reports them)."""
    bounds = Bounds()
    _current.append(bounds)
    try:
        yield bounds
    finally:
        _current.pop()


def current() -> Bounds | None:
    return _current[-1] if _current else None
