"""Hypothesis strategies for structure: sequences, slots, layouts. Contents come later, from a seed.

Written to shrink well (Hypothesis' guide): a batch is a list of segments, so deleting a sequence is deleting a list
element; every choice lists its plainest value first; nothing is drawn only to be thrown away.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.case import Kind, Layout, Segment

SEEDS = st.integers(0, 2**31 - 1)
CHOICES = st.integers(0, 2**16 - 1)


@dataclass(frozen=True)
class Scale:
    """How large cases may be where they run.

    The interpreter pays about 0.1 ms for each operation of each program, so a CPU gets many small cases; a GPU gets
    sizes at which grids have many programs and loops many rounds.
    """

    name: str
    max_sequences: int
    max_tokens: int
    #: Lengths around these are drawn on purpose: block sizes of kernels, chunk sizes, vector widths.
    boundaries: tuple[int, ...]
    channels: tuple[int, ...]
    head_dims: tuple[int, ...]
    max_heads: int
    slots: int


CPU = Scale(
    name="cpu",
    max_sequences=5,
    max_tokens=72,
    boundaries=(4, 8, 16, 32, 64),
    channels=(1, 2, 3, 8, 20, 130),
    head_dims=(4, 8, 16, 20, 32),
    max_heads=2,
    slots=12,
)
GPU = Scale(
    name="cuda",
    max_sequences=200,
    max_tokens=6000,
    boundaries=(4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    channels=(1, 2, 3, 8, 20, 130, 192, 513, 2054, 8192),
    head_dims=(8, 16, 24, 64, 100, 128),
    max_heads=4,
    slots=260,
)


def lengths(scale: Scale, boundaries: Sequence[int] | None = None) -> SearchStrategy[int]:
    """Tokens of one sequence: the corner cases 0-3, around boundaries, and anything up to the limit."""
    return near(boundaries or scale.boundaries, scale.max_tokens)


def near(boundaries: Sequence[int], limit: int) -> SearchStrategy[int]:
    """Numbers up to ``limit``: two in five are 0-3, one in five small, one within 2 of a boundary, one anything.

    Every branch is a range of plain integers, the widest first: whichever branch found a fault, shrinking can move the number
    to the first one as it is and lower it from there.
    """
    edges = [st.integers(max(0, b - 2), min(limit, b + 2)) for b in boundaries if b - 2 <= limit]
    count = len(edges)
    anything, small, tiny = st.integers(0, limit), st.integers(0, min(24, limit)), st.integers(0, min(3, limit))
    return weighted((count, anything), (2 * count, tiny), *((1, edge) for edge in edges), (count, small))


def weighted(*branches: tuple[int, SearchStrategy[Any]]) -> SearchStrategy[Any]:
    """One of these strategies, in proportion to their weights; the first is the plainest.

    ``st.one_of`` drops repeated branches, so a weight cannot be written as a repetition.
    """
    chosen = [branch for weight, branch in branches for _ in range(weight)]
    return st.integers(0, len(chosen) - 1).flatmap(chosen.__getitem__)


def segments(
    scale: Scale,
    *,
    length: SearchStrategy[int],
    kinds: Sequence[Kind] = ("fresh", "resumed", "inactive"),
    max_tokens: int | None = None,
    empties: bool = False,
    least: int = 1,
) -> SearchStrategy[tuple[Segment, ...]]:
    """A packed batch: sequences of these lengths in distinct slots, ``least`` of them, two or more as a rule.

    When the drawn lengths exceed the token limit the later ones are cut to single tokens, which keeps the list's
    structure (and so its shrinking) instead of rejecting the draw. ``empties``: now and then no sequence has a token.
    """
    limit = max_tokens or scale.max_tokens
    kind, slot = st.sampled_from([*kinds, *(k for k in kinds if k != "inactive")]), st.integers(0, scale.slots - 1)
    one = st.tuples(length, kind, slot)

    def fit(drawn: list[tuple[int, Kind, int]]) -> tuple[Segment, ...]:
        total, out = 0, []
        for tokens, kind, slot in drawn:
            kept = tokens if total + tokens <= limit else min(tokens, 1)
            total += kept
            out.append(Segment(kept, kind, slot if kind != "inactive" else -1))
        return tuple(out)

    few = st.lists(one, min_size=least, max_size=min(5, scale.max_sequences), unique_by=lambda s: s[2])
    # Length by length, a batch without any token would be drawn once in hundreds.
    empty = st.lists(st.tuples(st.just(0), kind, slot), min_size=1, max_size=4, unique_by=lambda s: s[2])
    rare = [(1, empty)] if empties else []
    if scale.max_sequences <= 5:
        return weighted((15, few), *rare).map(fit)
    many = st.lists(one, min_size=6, max_size=40, unique_by=lambda s: s[2])
    # Hundreds of sequences drawn element by element are slow to draw; they follow from a size and a seed. They come on top of a
    # drawn list: alone they would be fewer choices than a list of one, and everything would shrink towards a crowd.
    models = st.lists(one, min_size=4, max_size=5, unique_by=lambda s: s[2])
    extra = st.tuples(st.integers(41, scale.max_sequences - 5), SEEDS)
    crowded = st.builds(_crowd, models, extra, st.just(scale.slots))
    return weighted((8, few), (4, many), (4, crowded), *rare).map(fit)


def _crowd(models: list[tuple[int, Kind, int]], extra: tuple[int, int], slots: int) -> list[tuple[int, Kind, int]]:
    """The models, followed by hundreds of short sequences like them in other slots.

    What fails in the crowd mostly fails among its models too, so that shrinking can leave the crowd out.
    """
    size, seed = extra
    rng = random.Random(seed)
    taken = {slot for _, _, slot in models}
    free = [slot for slot in range(slots) if slot not in taken]
    like = rng.choices(models, k=size)
    return [
        *models,
        *((min(n, 24), kind, slot) for (n, kind, _), slot in zip(like, rng.sample(free, size), strict=True)),
    ]


def layouts(*, heads: bool, fused: bool, slots: bool = True) -> SearchStrategy[Layout]:
    """Dense most of the time; otherwise padded rows, shifted bases, padded slots, column slices of a wider buffer.

    ``slots``: there is a state pool, with indices into it.
    """
    pads = st.sampled_from([0, 0, 1, 8, 16])
    return st.one_of(
        st.just(Layout()),
        st.builds(
            Layout,
            row_pad=pads,
            head_pad=st.sampled_from([0, 0, 8]) if heads else st.just(0),
            base_offset=st.sampled_from([0, 0, 1, 8]),
            slot_pad=st.sampled_from([0, 0, 1, 64]) if slots else st.just(0),
            fused=st.booleans() if fused else st.just(False),
            strided_indices=st.booleans() if slots else st.just(False),
            wide_indices=st.booleans() if slots else st.just(False),
        ),
    )


PAD_SLOTS = st.sampled_from([-1, -1, -1, -2, -(2**31)])
