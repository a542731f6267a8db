"""The usual rules pass and reject exactly where their sources do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.faults.usual import rules
from harness.faults.usual.rules import Part

ONES = torch.ones(100)


def with_wrong(count: int, error: float = 1e9) -> Tensor:
    return torch.cat([ONES[count:], ONES[:count] + error])


@pytest.mark.parametrize(("error", "passes"), [(0.0199, True), (0.0201, False), (-0.0199, True), (-0.0201, False)])
def test_allclose_adds_both_tolerances(error: float, passes: bool) -> None:
    assert rules.allclose(with_wrong(1, error), ONES) is passes


def test_allclose_cannot_see_results_of_its_own_size() -> None:
    small = torch.linspace(-0.0099, 0.0099, 50)
    assert rules.allclose(torch.zeros(50), small)
    assert rules.allclose(-0.005 * ONES, 0.005 * ONES)
    assert not rules.allclose(torch.full((1,), torch.nan), torch.ones(1))


def test_cosine_sees_directions_only() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert rules.cosine(1000 * values, values)
    assert rules.cosine(values + 0.13 * values.roll(1), values)
    assert not rules.cosine(values + 0.16 * values.roll(1), values)
    assert not rules.cosine(-values, values)
    assert not rules.cosine(values * torch.nan, values)
    # Where all is zero it has no direction to compare: the right result is rejected.
    assert not rules.cosine(torch.zeros(9), torch.zeros(9))


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (5, True), (6, False)])
def test_matched_forgives_one_element_in_twenty_whatever_its_error(wrong: int, passes: bool) -> None:
    assert rules.matched(with_wrong(wrong), ONES) is passes


@pytest.mark.parametrize(
    ("got", "expected", "passes"),
    [(0.0099, 0.0, True), (0.0101, 0.0, False), (100.9, 100.0, True), (101.1, 100.0, False), (1.0101, 1.0, False)],
)
def test_matched_takes_either_tolerance_and_not_their_sum(got: float, expected: float, passes: bool) -> None:
    assert rules.matched(torch.tensor([got]), torch.tensor([expected])) is passes


def test_matched_wants_every_element_finite() -> None:
    assert not rules.matched(with_wrong(1, torch.inf), ONES)
    assert not rules.matched(with_wrong(1, torch.nan), ONES)


def test_the_ratio_is_of_the_whole_tensor() -> None:
    assert rules.rms_ratio(ONES * 1.0049, ONES)
    assert not rules.rms_ratio(ONES * 1.0051, ONES)
    # One of 100 elements may be off by ten times as much.
    assert rules.rms_ratio(with_wrong(1, 0.049), ONES)
    assert not rules.rms_ratio(with_wrong(1, 0.051), ONES)
    assert not rules.rms_ratio(torch.zeros(100), ONES)
    assert not rules.rms_ratio(with_wrong(1, torch.nan), ONES)


def test_the_ratio_is_not_asked_below_a_millionth() -> None:
    assert rules.rms_ratio(torch.zeros(4), torch.full((4,), 9e-7))
    assert not rules.rms_ratio(torch.zeros(4), torch.full((4,), 1.1e-6))


def test_in_ci_a_result_of_zeros_passes_where_all_is_small() -> None:
    small = 0.299 * torch.linspace(-1, 1, 21)
    assert rules.rms_ratio_in_ci(torch.zeros(21), small)
    assert rules.rms_ratio_in_ci(-small / 2, small / 2)
    assert not rules.rms_ratio_in_ci(torch.zeros(21), 1.02 * small)
    assert not rules.rms_ratio(torch.zeros(21), small)


def test_in_ci_one_of_both_suffices() -> None:
    large = 1000 * ONES
    assert rules.rms_ratio_in_ci(large * 1.0099, large)
    assert not rules.rms_ratio_in_ci(large * 1.0101, large)
    assert not rules.rms_ratio_in_ci(with_wrong(1, torch.nan), ONES)


def rounded(rows: int) -> Part:
    """A part that a right kernel in bfloat16 would give."""
    oracle = torch.randn(rows, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right = oracle.to(torch.bfloat16)
    return Part("output", right, exact=False, oracle=oracle, model=right, magnitude=oracle.abs())


def test_one_wrong_row_of_two_thousand_is_seen_by_our_rule_only() -> None:
    part = rounded(2000)
    assert part.expected is not None
    got = part.expected.clone()
    assert all(rules.passing([got], (part,)).values())
    got[77] *= 1.2
    said = rules.passing([got], (part,))
    assert said.pop("budget") is False
    assert said == {"rms_ratio_in_ci": True, "cosine": True, "matched": True, "allclose": False, "rms_ratio": True}
    # Of a size that no tolerance of 1e-2 can see.
    tiny = replace(part, expected=part.expected / 128, oracle=part.oracle / 128, model=part.model / 128)
    assert not rules.passing([got / 128], (tiny,))["budget"]
    assert rules.passing([got / 128], (tiny,))["allclose"]


def test_copies_and_integers_are_exact_to_our_rule() -> None:
    right = torch.arange(100, dtype=torch.int32)
    wrong = right.clone()
    wrong[50] = 52
    said = rules.passing([wrong], (Part("chunk_indices", right),))
    assert {name for name, passed in said.items() if not passed} == {"allclose", "budget"}


def test_what_is_missing_or_of_another_kind_passes_no_rule() -> None:
    part = Part("x", ONES)
    for got in ([], [None], [ONES[:50]], [ONES.double()], [ONES, ONES]):
        assert not any(rules.passing(got, (part,)).values()), got
    assert all(rules.passing([None], (replace(part, expected=None),)).values())
    assert not any(rules.passing([ONES], (replace(part, expected=None),)).values())


def test_nothing_to_compare_is_no_reason_to_reject() -> None:
    assert all(rules.passing([ONES[:0], ONES], (Part("none", ONES[:0]), Part("x", ONES))).values())


def test_figures_say_what_the_rules_looked_at() -> None:
    (figures,) = rules.figures([with_wrong(10, 1.0)], (Part("x", ONES),)).values()
    assert figures["largest_error"] == 1.0
    assert figures["matched"] == pytest.approx(0.9)
    assert figures["rms_ratio"] == pytest.approx(0.1**0.5)
