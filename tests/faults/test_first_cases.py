"""Where a property has few cases, the first, which is the plainest with every seed, shows already what it looks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness import interpreter, strategies
from harness.draws import draws
from harness.faults import injection, model
from harness.isolation import find_property
from tests.harness.support import run_cell

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter's tier; a GPU's own is `sluicegate faults`"
)

SEEN_AT_ONCE = {
    "route-scaling-of-no-use-accepted": ("bad_arguments", "not rejected"),
    "route-groups-that-are-not-there-accepted": ("bad_arguments", "not rejected"),
    "moe-padding-tiles-are-expert-0": ("unchosen_experts_are_not_read", "out of bounds"),
    "moe-sum-rounded-at-every-place": ("opposite_experts_cancel", "over budget"),
    "moe-tile-of-the-sum-follows-the-tokens": ("bounded_variants", "recompiles"),
}


@pytest.mark.parametrize("name", SEEN_AT_ONCE)
def test_the_first_case_shows_it(name: str, tmp_path: Path) -> None:
    (fault,) = model.select(model.load(), ids=[name])
    prop, symptom = SEEN_AT_ONCE[name]
    interpreter.repair()
    with injection.injected(fault, tmp_path) as target:
        result = run_cell(fault.operator, prop, target, dtype="bfloat16", examples=1)
    assert result.failure, f"{name} passed the first case of {prop}"
    assert result.failure.symptom == symptom


def test_idle_experts_lie_on_both_sides_of_the_others() -> None:
    prop = find_property("moe", "unchosen_experts_are_not_read")
    assert prop.strategy
    for case in draws(prop.strategy(strategies.CPU, "bfloat16"), 100, seed=1):
        assert case.dims["El"] == case.dims["E"] >= case.dims["k"] + 2
        few, many = case.lengths
        assert 1 <= few <= 4 < 9 <= many
