"""The cases that a GPU is given meet every way in which our mixture of experts computes there: a CPU's say nothing about that.

Properties with two cases were sized by the interpreter's limits, and on a GPU none of them reached a tile: offsets of 32 bits
in the grouped products survived there.
"""

from __future__ import annotations

import pytest
import torch
import triton

from harness import strategies
from harness.case import Case
from harness.draws import draws
from harness.isolation import find_property
from optimized import moe_launches, moe_sorting

CUDA = torch.device("cuda", 0)


def cases(name: str, count: int, seed: int) -> list[Case]:
    prop = find_property("moe", name)
    assert prop.strategy
    found: list[Case] = draws(prop.strategy(strategies.GPU, "bfloat16"), count, seed=seed)
    return found


def rows(case: Case) -> int:
    return case.tokens * case.dims["k"]


def is_tiled(case: Case) -> bool:
    return rows(case) > moe_launches.few_rows(case.dims["El"], CUDA)


def sorted_by_one_program(case: Case) -> bool:
    return case.tokens <= moe_launches.few_tokens(triton.next_power_of_2(case.dims["k"]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "name",
    [
        "experts_far_apart",
        "stretched_axes",
        "tokens_far_apart",
        "bounded_working_memory",
        "equivalence_of_many_experts",
    ],
)
def test_of_two_cases_one_has_few_rows_and_one_is_tiled(name: str, seed: int) -> None:
    assert find_property("moe", name).examples == 2
    few, many = sorted(cases(name, 2, seed), key=rows)
    assert not is_tiled(few)
    assert is_tiled(many)


def test_many_rows_are_sorted_in_rounds() -> None:
    for case in cases("equivalence_of_many_rows", 2, seed=1):
        assert rows(case) > moe_sorting.BLOCKS_A_ROUND * moe_sorting.ROWS_A_BLOCK


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [strategies.CPU, strategies.GPU], ids=lambda scale: str(scale.name))
def test_tails_have_the_rows_that_they_hold_one_and_one_too_many(scale: strategies.Scale, seed: int) -> None:
    prop = find_property("moe", "equivalence_of_tails")
    assert prop.strategy
    assert prop.examples
    left = set()
    # As many as two dtypes have.
    for case in draws(prop.strategy(scale, "bfloat16"), 2 * prop.examples, seed=seed):
        # Each of three experts has every token.
        launch = moe_launches.LARGEST[9]
        if scale is strategies.CPU:
            launch = moe_launches.launch_for(rows(case), 3, 512, 128, 3, torch.bfloat16, torch.device("cpu"))
        assert launch.tail
        left.add(case.tokens % launch.tile - launch.tail)
    assert left >= {0, 1}
    assert min(left) < 0


@pytest.mark.parametrize("seed", range(5))
def test_used_memory_meets_steps_that_one_program_plans(seed: int) -> None:
    # As many as a cell has on a GPU, at least.
    found = cases("poison_independent", 20, seed)
    assert any(is_tiled(case) and sorted_by_one_program(case) for case in found)
    assert any(case.tokens > 64 for case in found)


@pytest.mark.parametrize("seed", range(10))
def test_steps_are_of_the_sizes_that_engines_have(seed: int) -> None:
    # As many as a merge on a GPU gives the three dtypes together.
    steps = cases("equivalence_of_decode_steps", 99, seed)
    assert {case.tokens <= 64 for case in steps} == {True}
    ways = {(is_tiled(case), sorted_by_one_program(case)) for case in steps}
    assert ways >= {(False, True), (True, True), (True, False)}
    # Where Triton 3.6 added up lanes wrongly: the layout of a choice among so many experts, of which hardly any usual case has so many.
    found = [
        c for c in steps if is_tiled(c) and sorted_by_one_program(c) and c.dims["E"] in (32, 64) and c.dims["k"] > 4
    ]
    assert len(found) >= 3
