"""A batch taken apart into its sequences, the form in which relations transform it.

Operators over packed sequences build a `Batch` from a case, pack it into hostile memory, call the subject and unpack a
`Result`. Everything a relation does (permute, split, rename, perturb) is a small function on these two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from harness.case import Case, Layout, Segment

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One call's content.

    segments: length, kind and slot of each sequence. tokens: for each sequence, its tensors [length, ...] by name.
    states: for each sequence the slot's content, or None when fresh or inactive. shared: weights and other per-call
    tensors. options, dims, layout, pool_slots, pad_slot: as in `harness.case.Case`.
    """

    case: Case
    segments: tuple[Segment, ...]
    tokens: tuple[Mapping[str, Tensor], ...]
    states: tuple[Tensor | None, ...]
    shared: Mapping[str, Tensor]
    layout: Layout
    pool_slots: int

    @property
    def size(self) -> int:
        return len(self.segments)

    @property
    def active(self) -> list[int]:
        return [i for i, segment in enumerate(self.segments) if segment.active]

    @property
    def lengths(self) -> list[int]:
        return [segment.length for segment in self.segments]

    def select(self, order: Sequence[int]) -> Batch:
        """These sequences, in this order."""
        return replace(
            self,
            segments=tuple(self.segments[i] for i in order),
            tokens=tuple(self.tokens[i] for i in order),
            states=tuple(self.states[i] for i in order),
        )

    def with_slots(self, slots: Sequence[int], pool_slots: int) -> Batch:
        segments = tuple(replace(s, slot=slot) for s, slot in zip(self.segments, slots, strict=True))
        return replace(self, segments=segments, pool_slots=pool_slots)

    def with_layout(self, layout: Layout) -> Batch:
        return replace(self, layout=layout)

    def replaced(
        self,
        index: int,
        *,
        segment: Segment | None = None,
        tokens: Mapping[str, Tensor] | None = None,
        state: Tensor | None = None,
    ) -> Batch:
        """The batch with one sequence exchanged. ``state`` None keeps the old one unless ``segment`` is not resumed."""
        new_segment = segment or self.segments[index]
        new_state = state if state is not None else self.states[index]
        if new_segment.kind != "resumed":
            new_state = None
        return replace(
            self,
            segments=_put(self.segments, index, new_segment),
            tokens=_put(self.tokens, index, tokens or self.tokens[index]),
            states=_put(self.states, index, new_state),
        )

    def map_tokens(self, transform: Callable[[str, Tensor], Tensor]) -> Batch:
        return replace(self, tokens=tuple({n: transform(n, t) for n, t in item.items()} for item in self.tokens))

    def map_states(self, transform: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, states=tuple(None if s is None else transform(s) for s in self.states))

    @property
    def device(self) -> torch.device:
        return next(iter(self.tokens[0].values())).device

    def plain(self, storage: torch.dtype | None) -> Batch:
        """The same batch for a reference: dense memory, slots numbered from 0, floats cast to ``storage`` if given."""
        active = self.active
        numbers = {i: n for n, i in enumerate(active)}
        slots = [numbers.get(i, -1) for i in range(self.size)]
        batch = self.with_slots(slots, max(len(active), 1)).with_layout(Layout(wide_indices=self.layout.wide_indices))
        if storage is None:
            return batch
        name = str(storage).removeprefix("torch.")

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(storage) if tensor.is_floating_point() else tensor

        return replace(
            batch.map_tokens(lambda _, t: cast(t)).map_states(cast),
            case=self.case.with_(dtype=name, state_dtype=name),
            shared={k: cast(v) for k, v in self.shared.items()},
        )

    def absolute(self, **options: object) -> Batch:
        """Every float replaced by its absolute value, with these options changed: for sums of |terms|."""
        batch = self.map_tokens(lambda _, t: t.abs()).map_states(torch.abs)
        return replace(
            batch,
            case=self.case.with_(options={**self.case.options, **options}),
            shared={k: v.abs() for k, v in self.shared.items()},
        )

    def packed(self, name: str) -> Tensor:
        """All sequences' tokens of one input, [T, ...]."""
        return torch.cat([item[name] for item in self.tokens], dim=0)


@dataclass(frozen=True)
class Result:
    """What one call gave: for each sequence its output rows, and its slot's content afterwards (None when inactive)."""

    outputs: tuple[Tensor, ...]
    states: tuple[Tensor | None, ...]

    def digest(self) -> str:
        """A fingerprint of every bit, to compare results of different processes."""
        total = hashlib.sha256()
        for tensor in (*self.outputs, *(s for s in self.states if s is not None)):
            total.update(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def select(self, order: Sequence[int]) -> Result:
        return Result(tuple(self.outputs[i] for i in order), tuple(self.states[i] for i in order))


def _put(items: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*items[:index], value, *items[index + 1 :])
