"""Shadows that are gone after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.shadow import Shadow, shadow


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Shadow]]:
    """`shadow` with a folder of its own; every shadow is removed afterwards."""
    all_made: list[Shadow] = []

    def make(*arguments: Any, **options: Any) -> Shadow:
        all_made.append(shadow(*arguments, **{"out": tmp_path / "shadow", "quiet": True, **options}))
        return all_made[-1]

    yield make
    for each in reversed(all_made):
        each.remove()
