"""What became of the calls of one target."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """calls: all of them. observed: every n-th. Of these: compared, skipped (by reason), dropped (no room in the queue),
    errors (of the shadow itself), raised (by the host's function), or still waiting. mismatches: of those compared."""

    calls: int = 0
    observed: int = 0
    compared: int = 0
    mismatches: int = 0
    dropped: int = 0
    errors: int = 0
    raised: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "skipped": dict(self.skipped)}
