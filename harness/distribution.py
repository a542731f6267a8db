"""How the errors of judged rows are distributed: counts in fixed bins, cheap to collect and to merge.

Two numbers are counted for each row that the budget judges (see `harness.budget`): the share of its allowance that it
used, and its error over the model kernel's. A bin is what lies above one edge, up to and including the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

#: Above the last edge, which is the limit, a row fails.
SHARE_EDGES = tuple(i / 40 for i in range(1, 41))
#: 1/64 to 64, four bins for each doubling.
RATIO_EDGES = tuple(2.0 ** (i / 4) for i in range(-24, 25))
#: So many rows are kept before they are counted at once: a case costs nothing but the two numbers themselves.
PENDING_ROWS = 1 << 16


def _empty(edges: Sequence[float]) -> list[int]:
    return [0] * (len(edges) + 1)


@dataclass
class Distribution:
    """Counts of rows by bin, the last of them above all edges. Rows on which the model kernel is exact have no ratio."""

    shares: list[int] = field(default_factory=lambda: _empty(SHARE_EDGES))
    ratios: list[int] = field(default_factory=lambda: _empty(RATIO_EDGES))
    largest: float = 0.0

    @property
    def rows(self) -> int:
        return sum(self.shares)

    def add(self, other: Distribution) -> None:
        self.shares = [a + b for a, b in zip(self.shares, other.shares, strict=True)]
        self.ratios = [a + b for a, b in zip(self.ratios, other.ratios, strict=True)]
        self.largest = max(self.largest, other.largest)

    def count(self, shares: Tensor, ratios: Tensor) -> None:
        """The rows of these ``shares`` and ``ratios``, NaN where a row has no ratio."""
        self.add(
            Distribution(
                _counts(shares, SHARE_EDGES), _counts(ratios[~ratios.isnan()], RATIO_EDGES), float(shares.max())
            )
        )

    def share(self, part: float) -> float:
        """What this part of the rows does not exceed, to the next edge."""
        return min(quantile(self.shares, SHARE_EDGES, part), self.largest)

    def ratio(self, part: float) -> float:
        """The same of the ratios; infinite above the last edge."""
        return quantile(self.ratios, RATIO_EDGES, part)

    def to_json(self) -> dict[str, Any]:
        # JSON has no infinity: it travels as a word.
        finite = self.largest - self.largest == 0
        return {
            "shares": self.shares,
            "ratios": self.ratios,
            "largest": self.largest if finite else str(self.largest),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Distribution:
        return cls(list(data["shares"]), list(data["ratios"]), float(data["largest"]))


def _counts(values: Tensor, edges: Sequence[float]) -> list[int]:
    bins = torch.bucketize(values, torch.tensor(edges, dtype=values.dtype, device=values.device))
    return torch.bincount(bins, minlength=len(edges) + 1).tolist()


def quantile(counts: Sequence[int], edges: Sequence[float], part: float) -> float:
    """The edge below which this part of what was counted lies; 0 where nothing was."""
    needed = part * sum(counts)
    upper = zip(accumulate(counts), (*edges, float("inf")), strict=True)
    return next(edge for total, edge in upper if total >= needed) if needed else 0.0


class Tally:
    """Collects the rows of a cell where they were judged, by name: ``output`` and ``state``, or ``baseline output``.

    open: whether rows are taken. A cell closes it with its first failure, because what shrinking tries tells nothing.
    """

    def __init__(self) -> None:
        self.open = True
        self._counted: dict[str, Distribution] = {}
        self._pending: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._rows = 0

    def add(self, name: str, shares: Tensor, ratios: Tensor) -> None:
        if not self.open:
            return
        self._pending.setdefault(name, []).append((shares, ratios))
        self._rows += shares.numel()
        if self._rows >= PENDING_ROWS:
            self._count()

    def _count(self) -> None:
        for name, parts in self._pending.items():
            shares, ratios = (torch.cat(column) for column in zip(*parts, strict=True))
            self._counted.setdefault(name, Distribution()).count(shares, ratios)
        self._pending, self._rows = {}, 0

    def read(self) -> dict[str, Distribution]:
        """What was counted so far."""
        self._count()
        return dict(self._counted)
