"""Hostile memory: every buffer poisoned, fenced, and compared bit by bit after the call.

`Arena` places the inputs and the state pool of one call; `PoisonedAllocations` does the same for whatever the subject
allocates through torch while it runs. Poison is NaN for floating dtypes, so that reading what nobody wrote shows up in
the result, and a small negative number for integers, which as a slot means "inactive" and as a boundary is absurd, so
that a stray read gives a wrong answer rather than a wild pointer.

Who takes a largest number loses NaN, and who skips inactive rows skips poison. So memory can be `Stale` instead: it holds
numbers that look right, as an earlier call leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness import bounds
from harness.failure import fail

#: Bytes on each side of a buffer. A multiple of the widest vector access keeps the buffer itself aligned.
GUARD_BYTES = 256
INTEGER_POISON = -77


def poison_value(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else INTEGER_POISON


#: What memory of this shape, dtype and device holds that nobody wrote.
Fill = Callable[[Sequence[int], torch.dtype, torch.device], Tensor]


def poisoned(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(tuple(shape), poison_value(dtype), dtype=dtype, device=device)


class Stale:
    """What an earlier call left: standard normal numbers, and whole ones that may be ids, places or lengths. Always the same."""

    #: Whole numbers are smaller: as ids and places most of them lead somewhere near.
    BELOW = 16

    def __init__(self) -> None:
        self._draws: dict[str, torch.Generator] = {}

    def __call__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        draw = self._draws.get(device.type)
        if draw is None:
            draw = self._draws[device.type] = torch.Generator(device).manual_seed(0)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(tuple(shape), generator=draw, device=device).to(dtype)
        below = 2 if dtype == torch.bool else self.BELOW
        return torch.randint(below, tuple(shape), generator=draw, dtype=dtype, device=device)


def as_bits(tensor: Tensor) -> Tensor:
    """The same elements as integers of their width, so that NaN equals NaN and -0.0 differs from 0.0."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(as_bits(left), as_bits(right))


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to just past the last of a strided view."""
    if any(size == 0 for size in shape):
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


@dataclass
class _Buffer:
    name: str
    storage: Tensor
    view: Tensor
    first: int
    last: int
    before: Tensor | None = None
    #: Rows of the view's first axis that the call may change (the active slots of a pool).
    writable_rows: list[int] = field(default_factory=list)


class Arena:
    """The buffers of one call on one device. ``fill``: what memory holds that nobody may read, the subject's own too."""

    def __init__(self, device: torch.device | str, fill: Fill = poisoned) -> None:
        self.device = torch.device(device)
        self.fill = fill
        self.buffers: list[_Buffer] = []

    def _storage(self, elements: int, dtype: torch.dtype) -> tuple[Tensor, int]:
        guard = GUARD_BYTES // dtype.itemsize
        return self.fill((elements + 2 * guard,), dtype, self.device), guard

    def place(
        self,
        name: str,
        content: Tensor,
        *,
        strides: Sequence[int] | None = None,
        offset: int = 0,
        writable_rows: Sequence[int] = (),
    ) -> Tensor:
        """A copy of ``content`` with these element strides, ``offset`` elements behind an aligned address."""
        strides = list(strides) if strides is not None else list(content.contiguous().stride())
        length = span(content.shape, strides)
        storage, guard = self._storage(length + offset, content.dtype)
        view = storage.as_strided(content.shape, strides, guard + offset)
        view.copy_(content)
        first = guard + offset
        self.buffers.append(_Buffer(name, storage, view, first, first + length, None, list(writable_rows)))
        return view

    def place_fused(self, parts: dict[str, Tensor], *, row_pad: int = 0, offset: int = 0) -> dict[str, Tensor]:
        """Several [T, ...] tensors of one dtype as column slices of one buffer, as a projection's output holds them."""
        tokens = next(iter(parts.values())).shape[0]
        widths = {name: part[0].numel() if tokens else part.flatten(1).shape[1] for name, part in parts.items()}
        pitch = sum(widths.values()) + row_pad
        joined = torch.cat([part.reshape(tokens, widths[name]) for name, part in parts.items()], dim=1)
        whole = self.place("+".join(parts), joined, strides=(pitch, 1), offset=offset)
        views, column = {}, 0
        for name, part in parts.items():
            inner = part.contiguous().stride()[1:]
            views[name] = whole.as_strided(part.shape, (pitch, *inner), whole.storage_offset() + column)
            column += widths[name]
        return views

    def permit(self, name: str, rows: Sequence[int]) -> None:
        """These rows too of the buffer ``name`` may change, beside those that it was placed with."""
        (buffer,) = (buffer for buffer in self.buffers if buffer.name == name)
        buffer.writable_rows = sorted({*buffer.writable_rows, *rows})

    def arm(self) -> None:
        """Remember every byte. Call last before the subject runs."""
        for buffer in self.buffers:
            buffer.before = buffer.storage.clone()

    def check(self) -> None:
        """Compare every byte that the call had no right to change; raise the `Failure` of the first difference."""
        for buffer in self.buffers:
            if buffer.before is None:
                raise RuntimeError("Arena.check before Arena.arm: arm the arena after placing the last buffer")
            before, after = buffer.before, buffer.storage
            if buffer.writable_rows:
                # What may change is taken out of the comparison by copying it from the one to the other.
                rows = torch.tensor(buffer.writable_rows, device=after.device)
                view = before.as_strided(buffer.view.shape, buffer.view.stride(), buffer.first)
                view[rows] = buffer.view[rows]
            if same_bits(before, after):
                continue
            self._report(buffer, before, after)

    @staticmethod
    def _report(buffer: _Buffer, before: Tensor, after: Tensor) -> None:
        changed = torch.nonzero(as_bits(before) != as_bits(after)).flatten().tolist()
        outside = [i for i in changed if i < buffer.first or i >= buffer.last]
        if outside:
            where = outside[0] - (buffer.first if outside[0] < buffer.first else buffer.last - 1)
            fail(
                "guard band written",
                f"{buffer.name}: {len(outside)} elements outside the buffer were written, the first one {where:+d} elements"
                " from its edge",
                mark=buffer.name,
            )
        stride = buffer.view.stride(0) if buffer.view.dim() else 1
        row = (changed[0] - buffer.first) // max(stride, 1)
        old, new = before[changed[0]].item(), after[changed[0]].item()
        # A pool without active rows; the flags, whose name ends alike, are an input.
        pool = buffer.name.endswith("state") and buffer.storage.dtype.is_floating_point
        if buffer.writable_rows or pool:
            fail(
                "untouched slot changed",
                f"{buffer.name}: slot {row} belongs to no active row of this batch, yet {len(changed)} of its bytes' elements"
                f" changed (first: {old} became {new}); active slots: {sorted(buffer.writable_rows)}",
            )
        fail(
            "input changed",
            f"{buffer.name}: the call changed its input in row {row} ({old} became {new})",
            mark=buffer.name,
        )


class EagerMode(TorchDispatchMode):
    """A dispatch mode that never meets torch.compile: the default would import all of it at the first dispatch (2 s)."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class PoisonedAllocations(EagerMode):
    """While active, memory that the subject allocates uninitialised is poisoned and fenced; `check` verifies the fences.

    ``fill``: what it holds instead of poison; the fences are poison always.
    """

    _ALLOCATORS = frozenset(
        {
            torch.ops.aten.empty.memory_format,
            torch.ops.aten.empty_strided.default,
            torch.ops.aten.empty_like.default,
            torch.ops.aten.new_empty.default,
            torch.ops.aten.new_empty_strided.default,
        }
    )

    def __init__(self, fill: Fill = poisoned) -> None:
        super().__init__()
        self._fill = fill
        self._fenced: list[tuple[Tensor, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in self._ALLOCATORS or out.numel() == 0 or out.is_pinned() or out.device.type == "meta":
            return out
        guard = GUARD_BYTES // out.element_size()
        length = span(out.shape, out.stride())
        storage = poisoned((length + 2 * guard,), out.dtype, out.device)
        if self._fill is not poisoned:
            storage[guard : guard + length] = self._fill((length,), out.dtype, out.device)
        self._fenced.append((storage, guard, guard + length))
        if watch := bounds.current():
            watch.fence(storage, guard, guard + length, "a buffer of the subject's own")
        return storage.as_strided(out.shape, out.stride(), guard)

    @property
    def bytes(self) -> int:
        """Allocated so far, without the fences."""
        return sum((last - first) * storage.element_size() for storage, first, last in self._fenced)

    def check(self) -> None:
        for storage, first, last in self._fenced:
            edges = torch.cat([storage[:first], storage[last:]])
            intact = torch.full_like(edges, poison_value(storage.dtype))
            if not same_bits(edges, intact):
                fail(
                    "guard band written",
                    f"the subject wrote outside a buffer of {last - first} {storage.dtype} elements that it allocated itself",
                    mark="own allocation",
                )
