"""Races: memory that two programs of one launch use without an order, or one program without a barrier.

The interpreter runs programs one after another, in one order, each as a single thread; a GPU runs them at once, in any order,
and each with many threads. A kernel whose result hangs on that order is right here every time, and there nearly every time:
one program reads a state that another of the same launch replaces.

The interpreter knows every address, so the order need not matter for a race to be found. In one launch

- no program may write what another one reads or writes;
- within a program, what was written in one block of addresses may not be read or written through another block before
  `tl.debug_barrier`: another thread may hold the element. Through the very same block it may, a thread sees its own order; but
  what was written to one address may not be read there, since one thread writes it and every thread reads it. A reduction
  or a product is no barrier: whether it makes threads wait is the compiler's choice.

What is not looked at: a program that writes what it has read through another block, as a window does that moves within itself.
Such a store nearly always needs the values that were read, through an exchange between threads that waits for them, and
right kernels of others rely on it. Nor launches with atomic operations, which can make an order of which nothing is known here.
A store that changes nothing is none: several programs may write the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.bounds import Buffer, line_of_the_kernel
from harness.failure import fail
from harness.watching import Innermost

#: In place of a program: several.
_SEVERAL = -1


class _Shadow:
    """Who has used each element of a buffer: programs count from 1, blocks of addresses over all programs."""

    def __init__(self, buffer: Buffer, size: int) -> None:
        self.buffer, self.size = buffer, size
        count = -(-(buffer.last - buffer.first) // size)
        self.writer, self.reader, self.written_in = (np.zeros(count, dtype=np.int32) for _ in range(3))

    def elements(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Numbers of the elements at these addresses, which are accesses of ``size`` bytes."""
        if size < self.size:
            finer = self.size // size
            for name in ("writer", "reader", "written_in"):
                setattr(self, name, np.repeat(getattr(self, name), finer))
            self.size = size
        first = (addresses - np.uint64(self.buffer.first)).astype(np.int64) // self.size
        several = size // self.size
        return first if several == 1 else (first[:, None] + np.arange(several)).reshape(-1)


class Races:
    """The accesses of a subject's launches, and the first race among them."""

    def __init__(self) -> None:
        self.launches = 0
        self._found = ""
        self._begin("", ())

    def launched(self, kernel: str, buffers: Sequence[Buffer]) -> None:
        """What follows are accesses of this kernel to these buffers."""
        self.launches += 1
        self._end()
        self._begin(kernel, buffers)

    def _begin(self, kernel: str, buffers: Sequence[Buffer]) -> None:
        self._kernel, self._buffers, self._shadows = kernel, list(dict.fromkeys(buffers)), dict[Buffer, _Shadow]()
        self._programs: dict[tuple[int, ...], int] = {}
        self._program = 0
        self._blocks: dict[tuple[tuple[int, ...], bytes], int] = {}
        #: Since the last barrier, blocks have numbers from `_since` on. That one stands for all writes to one address, which the
        #: same thread does.
        self._since, self._next = 1, 2
        self._suspected, self._ordered = "", False

    def _end(self) -> None:
        if not self._ordered:
            self._found = self._found or self._suspected

    def ordered(self) -> None:
        """The launch has an atomic operation."""
        self._ordered = True

    def barrier(self) -> None:
        """All threads of the program wait for each other."""
        self._blocks = {}
        self._since, self._next = self._next, self._next + 1

    def accessed(
        self, program: tuple[int, ...], pointers: np.ndarray, mask: np.ndarray, size: int, *, writes: bool
    ) -> None:
        """The program reads or writes elements of ``size`` bytes at these addresses, those under the mask."""
        active = pointers[mask]
        if not active.size or self._suspected:
            return
        self._program = self._programs.setdefault(program, len(self._programs) + 1)
        block = self._block(pointers)
        for buffer in self._buffers:
            # What lies outside of the buffer is out of bounds, which is worse.
            inside = (active >= buffer.first) & (active < buffer.last)
            if inside.any():
                self._use(buffer, active[inside], size, block, one=pointers.size == 1, writes=writes)

    def _block(self, pointers: np.ndarray) -> int:
        """The number of this block of addresses since the last barrier."""
        key = (pointers.shape, pointers.tobytes())
        if key not in self._blocks:
            self._blocks[key] = self._next
            self._next += 1
        return self._blocks[key]

    def _use(self, buffer: Buffer, addresses: np.ndarray, size: int, block: int, *, one: bool, writes: bool) -> None:
        """one: the block is one address."""
        shadow = self._shadows.get(buffer)
        if shadow is None:
            shadow = self._shadows[buffer] = _Shadow(buffer, size)
        at = shadow.elements(addresses, size)
        me, block = self._program, self._since if one and writes else block
        writer, written_in, reader = (each[at] for each in (shadow.writer, shadow.written_in, shadow.reader))
        self._suspect(shadow, at, (writer != 0) & (writer != me), writes, "written", writer)
        self._suspect(shadow, at, (written_in >= self._since) & (written_in != block), writes, "written", None)
        if writes:
            self._suspect(shadow, at, (reader != 0) & (reader != me), writes, "read", reader)
            shadow.writer[at], shadow.written_in[at] = me, block
        else:
            shadow.reader[at] = np.where((reader == 0) | (reader == me), me, _SEVERAL)

    def _suspect(
        self, shadow: _Shadow, at: np.ndarray, wrong: np.ndarray, writes: bool, before: str, other: np.ndarray | None
    ) -> None:
        """Keep the first pair: it counts unless an atomic operation follows. other: programs; None: this one."""
        if self._suspected or not wrong.any():
            return
        names = {number: program for program, number in self._programs.items()}
        what = (
            f"{int(wrong.sum())} elements of {shadow.buffer.name}, the first at element {at[wrong][0]} of its memory,"
        )
        if other is None:
            whose = f"that it has {before} through other pointers, with no tl.debug_barrier between"
        elif (number := int(other[wrong][0])) == _SEVERAL:
            whose = f"that other programs have {before}"
        else:
            whose = f"that program {names[number]} has {before}"
        self._suspected = (
            f"{self._kernel}: program {names[self._program]} {'writes' if writes else 'reads'} {what}"
            f" {whose}{line_of_the_kernel()}; nothing says which comes first"
        )

    def check(self) -> None:
        """Raise the `Failure` of the first race."""
        self._end()
        if self._found:
            fail("race", self._found)


_innermost = Innermost(Races)
# Launches of the interpreter are reported to it by `harness.interpreter_memory`.
watched, current = _innermost.watched, _innermost.current
