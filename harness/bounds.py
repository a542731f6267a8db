"""Addresses that a kernel of the interpreter reads and writes: each must lie in a buffer of its launch.

A fence shows what was written beyond a buffer, afterwards. What was only read there leaves no trace: masked away behind the
load, it changes no result, and a GPU faults only where the page behind the buffer happens to be missing. The interpreter
knows every address, so on a CPU such a read is a finding by itself.

A buffer is what the launch got a tensor of, alone, in a tuple or in a tensor descriptor: from the first to the last element
of the placed view or of the subject's own allocation (gaps between strided rows included, guard bands not); of other tensors,
their whole storage. Other pointers (a table of addresses) are outside everything unless their buffer was among the arguments
too.

An access beyond the storage, guard bands and all, is reported and not carried out: it would change or read whatever this
process keeps there, and a harness whose own memory is damaged says anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from harness.failure import fail
from harness.watching import Innermost


class Buffer(NamedTuple):
    """Addresses in bytes, the last ones past the end. lowest, highest: of the storage around it."""

    first: int
    last: int
    lowest: int
    highest: int
    name: str


class Bounds:
    """The buffers of one call of a subject, and the first access outside them."""

    def __init__(self) -> None:
        #: By the address of the storage.
        self._fenced: dict[int, Buffer] = {}
        #: Of the last launch.
        self.buffers: list[Buffer] = []
        self._kernel = ""
        self._outside = ""

    def fence(self, storage: Tensor, first: int, last: int, name: str) -> None:
        """Of this storage only the elements from ``first`` to ``last`` (past the end) belong to the buffer."""
        start, size = storage.data_ptr(), storage.element_size()
        end = start + storage.untyped_storage().nbytes()
        self._fenced[start] = Buffer(start + first * size, start + last * size, start, end, name)

    def launched(self, kernel: str, arguments: Iterable[object]) -> None:
        """What follows are accesses of this kernel with these arguments."""
        self._kernel = kernel
        self.buffers = [self._buffer(t) for t in tensors(arguments) if t.device.type == "cpu"]

    def _buffer(self, tensor: Tensor) -> Buffer:
        storage = tensor.untyped_storage()
        first, last = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        return self._fenced.get(first) or Buffer(first, last, first, last, "an argument")

    def accessed(self, pointers: np.ndarray, mask: np.ndarray, size: int, verb: str) -> np.ndarray:
        """Of these addresses of elements of ``size`` bytes, those under the mask are to be read or written (``verb``).

        Returns the mask of those that may be: the given one, unless some lie in no storage of the launch.
        """
        active = pointers[mask]
        if not active.size or not self.buffers:
            return mask
        low, high = int(active.min()), int(active.max()) + size
        # Nearly always all of them lie in one buffer.
        if any(buffer.first <= low and high <= buffer.last for buffer in self.buffers):
            return mask
        if not self._outside:
            wrong = active[~_within(active, size, [(b.first, b.last) for b in self.buffers])]
            if wrong.size:
                where = self._where(int(wrong[0]), size)
                self._outside = f"{self._kernel} {verb} {wrong.size} elements {where}{line_of_the_kernel()}"
        return mask & _within(pointers, size, [(b.lowest, b.highest) for b in self.buffers])

    def _where(self, address: int, size: int) -> str:
        """Beside which buffer that is."""
        by_distance = [(max(b.first - address, address + size - b.last), b.first, b.name) for b in self.buffers]
        distance, first, name = min(by_distance)
        return f"outside every buffer that it was given, the first {distance} bytes {'before' if address < first else 'behind'} {name}"

    def check(self) -> None:
        """Raise the `Failure` of the first access outside."""
        if self._outside:
            fail("out of bounds", self._outside)


def tensors(arguments: Iterable[object]) -> Iterator[Tensor]:
    """Those among a launch's arguments, and those in its tuples and tensor descriptors."""
    for argument in arguments:
        # A descriptor by its looks: its class is imported from another place in each Triton.
        whole = getattr(argument, "base", None) if hasattr(argument, "block_shape") else argument
        if isinstance(whole, Tensor):
            yield whole
        elif isinstance(whole, (tuple, list)):
            yield from tensors(whole)


def line_of_the_kernel() -> str:
    """Which line of whose source is being interpreted."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] not in ("triton", "harness"):
            return f", at {frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _within(addresses: np.ndarray, size: int, ranges: list[tuple[int, int]]) -> np.ndarray:
    """Which elements lie in one of the ranges with all their bytes."""
    inside = np.zeros(addresses.shape, dtype=bool)
    for first, last in ranges:
        # Not address + size: that of one below zero wraps around.
        inside |= (addresses >= first) & (addresses <= last - size)
    return inside


_innermost = Innermost(Bounds)
# Launches of the interpreter are reported to it by `harness.interpreter_memory`.
watched, current = _innermost.watched, _innermost.current
