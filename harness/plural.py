"""Counts in sentences, for reports and for what a case is called."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """``1 cell``, ``1,200 cells``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
