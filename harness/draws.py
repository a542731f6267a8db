"""Cases drawn without judging them: for measurements, and to see what a strategy draws."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.strategies import SearchStrategy

from harness.case import AnyCase


def draws(strategy: SearchStrategy[Any], count: int, seed: int) -> list[AnyCase]:
    """So many cases of a seed, fewer where the strategy knows no more; none of them shrunk."""
    drawn: list[AnyCase] = []

    @seeded(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def collect(case: AnyCase) -> None:
        drawn.append(case)

    collect()
    return drawn
