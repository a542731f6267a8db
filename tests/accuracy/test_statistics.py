"""The gate's statistics against closed forms, against scipy, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from accuracy.statistics import (
    Design,
    Pairs,
    equivalence,
    interval,
    mcnemar,
    mcnemar_loss,
    non_inferiority,
    paired_power,
    score,
    unpaired_detectable,
    unpaired_interval,
    wilson,
)

GSM8K = 1319


def simulated(n: int, lost: float, won: float, runs: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(5).multinomial(n, [lost, won, 1 - lost - won], size=runs)
    return drawn[:, 0], drawn[:, 1]


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 5), (6, 0), (17, 4), (4, 17), (60, 31)])
def test_mcnemar_is_the_sign_test(lost: int, won: int) -> None:
    if lost + won == 0:
        assert mcnemar(lost, won) == 1.0
        return
    assert mcnemar(lost, won) == pytest.approx(binomtest(lost, lost + won).pvalue)
    assert mcnemar_loss(lost, won) == pytest.approx(binomtest(lost, lost + won, alternative="greater").pvalue)
    assert mcnemar(6, 0) == 2 / 64


def test_score_at_no_difference_is_mcnemars_statistic() -> None:
    assert score(21, 9, 100, 0.0) == pytest.approx((9 - 21) / math.sqrt(30))


def test_score_uses_the_likeliest_rates_with_that_difference() -> None:
    """Against the likelihood maximised over a fine grid."""
    n, lost, won, difference = 200, 12, 5, -0.06
    rates = np.linspace(1e-9, (1 + difference) / 2 - 1e-9, 2_000_001)  # of winning; of losing, less the difference
    likelihood = won * np.log(rates) + lost * np.log(rates - difference)
    likelihood += (n - lost - won) * np.log(1 - 2 * rates + difference)
    best = rates[likelihood.argmax()]
    variance = n * (2 * best - difference - difference**2)
    assert score(lost, won, n, difference) == pytest.approx(
        (won - lost - n * difference) / math.sqrt(variance), rel=1e-4
    )


def test_tango_interval_where_nothing_flipped() -> None:
    """Closed form: z^2 / (n + z^2) on either side."""
    z = norm.ppf(0.975)
    low, high = interval(Pairs(90, 0, 0, 10))
    assert (low, high) == pytest.approx((-z * z / (100 + z * z), z * z / (100 + z * z)), abs=1e-7)


def test_tango_interval_agrees_with_published_example() -> None:
    """Tango's (1998) crossover trial of 44 patients: 43 concordant, 1 discordant."""
    low, high = interval(Pairs(43, 1, 0, 0))
    assert low == pytest.approx(-0.118, abs=0.001)
    assert high == pytest.approx(0.061, abs=0.002)


def test_extremes_stay_in_range() -> None:
    for pairs in (Pairs(0, 5, 0, 0), Pairs(0, 0, 5, 0), Pairs(1, 0, 0, 0), Pairs(0, 3, 3, 0)):
        low, high = interval(pairs)
        assert -1 <= low <= pairs.difference <= high <= 1
        mirror = interval(Pairs(pairs.both, pairs.won, pairs.lost, pairs.neither))
        assert mirror == pytest.approx((-high, -low), abs=1e-7)


@pytest.mark.parametrize(("lost", "won"), [(0.01, 0.01), (0.03, 0.015), (0.002, 0.001)])
def test_interval_covers_as_often_as_it_says(lost: float, won: float) -> None:
    """An interval covers the truth exactly when the score test at the truth does not reject."""
    losses, wins = simulated(GSM8K, lost, won)
    covered = np.abs(score(losses, wins, GSM8K, won - lost)) <= norm.ppf(0.975)
    assert 0.935 <= covered.mean() <= 0.975


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 9), (22, 18), (40, 12)])
def test_non_inferiority_is_the_interval_against_the_margin(lost: int, won: int) -> None:
    pairs = Pairs(1000, lost, won, GSM8K - 1000 - lost - won)
    for margin in (0.005, 0.01, 0.03):
        low, high = interval(pairs, 0.95)
        assert (non_inferiority(pairs, margin) < 0.025) == (low > -margin)
        assert (equivalence(pairs, margin) < 0.025) == (low > -margin and high < margin)


def test_non_inferiority_keeps_its_level_at_the_margin() -> None:
    margin, noise = 0.01, 0.02
    losses, wins = simulated(GSM8K, noise / 2 + margin, noise / 2)
    wrongly = score(losses, wins, GSM8K, -margin) >= norm.isf(0.025)
    assert 0.017 <= wrongly.mean() <= 0.033


@pytest.mark.parametrize(("noise", "loss"), [(0.02, 0.0), (0.02, 0.01), (0.04, 0.015), (0.0, 0.004)])
def test_power_agrees_with_simulation(noise: float, loss: float) -> None:
    design = Design(GSM8K, noise)
    losses, wins = simulated(GSM8K, noise / 2 + loss, noise / 2)
    table = {
        pair: mcnemar_loss(*pair) <= design.alpha for pair in set(zip(losses.tolist(), wins.tolist(), strict=True))
    }
    seen = np.array([table[pair] for pair in zip(losses.tolist(), wins.tolist(), strict=True)]).mean()
    error = 4 * math.sqrt(seen * (1 - seen) / len(losses)) + 1e-4
    assert design.power(loss) == pytest.approx(seen, abs=error)


def test_rate_of_as_before_agrees_with_simulation() -> None:
    design = Design(GSM8K, 0.02, margin=0.01)
    losses, wins = simulated(GSM8K, 0.01, 0.01)
    held = (score(losses, wins, GSM8K, -0.01) >= norm.isf(0.025)).mean()
    assert design.as_before_rate == pytest.approx(held, abs=0.01)


def test_false_alarms_stay_below_alpha() -> None:
    for noise in (0.0, 0.001, 0.01, 0.05, 0.3):
        for alpha in (0.01, 0.025, 0.05):
            assert Design(GSM8K, noise, alpha).false_alarm_rate <= alpha


def test_power_on_a_small_case_by_hand() -> None:
    """Six answers, all of which flip and are lost: reported at 1/64. Five cannot be at 0.025."""
    assert paired_power(6, 1.0, 1.0, 0.025) == pytest.approx(1.0)
    assert paired_power(5, 1.0, 1.0, 0.025) == 0.0
    assert paired_power(6, 1.0, 0.0, 0.025) == pytest.approx(1 / 64)


def test_power_of_a_point_and_a_half() -> None:
    """1.5 points of 1,319 where 4 % of the answers flip: 86 % one-sided at 0.05."""
    assert paired_power(GSM8K, 0.04, 0.015, 0.05) == pytest.approx(0.86, abs=0.03)


def test_detectable_loss_has_the_power_it_promises() -> None:
    design = Design(GSM8K, 0.02)
    loss = design.detectable(0.8)
    assert design.power(loss) == pytest.approx(0.8, abs=1e-3)
    assert 0.005 < loss < 0.02
    assert math.isnan(Design(5, 0.0).detectable())


def test_affordable_margin_is_the_smallest_that_is() -> None:
    design = Design(GSM8K, 0.02)
    margin = design.affordable_margin(0.95)
    assert Design(GSM8K, 0.02, margin=margin).as_before_rate >= 0.95
    assert Design(GSM8K, 0.02, margin=margin - 0.0001).as_before_rate < 0.95
    # Without a flip the interval ends at z^2 / (n + z^2).
    z = norm.isf(0.025)
    assert Design(GSM8K, 0.0).affordable_margin() == pytest.approx(z * z / (GSM8K + z * z), abs=1e-4)


def test_unpaired_gates_in_use_see_no_more_than_they_say() -> None:
    """One-sided at 0.05, power 0.8, deviation 50 points: passes 3.20 points below, detects 4.84 (TensorRT-LLM's gate)."""
    assert norm.isf(0.05) * math.sqrt(2 * 50**2 / GSM8K) == pytest.approx(3.20, abs=0.005)
    assert 100 * unpaired_detectable(0.5, GSM8K, GSM8K, alpha=0.05) == pytest.approx(4.84, abs=0.005)


def test_unpaired_interval_is_newcombes() -> None:
    """Newcombe (1998), example (a), method 10: 56/70 less 48/80 is 0.2000, from 0.0524 to 0.3339."""
    assert unpaired_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    found = binomtest(56, 70).proportion_ci(method="wilson")
    assert wilson(56, 70) == pytest.approx((found.low, found.high))


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="pairs: got"):
        Pairs(0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"margin: got 0"):
        Design(10, 0.1, margin=0.0)
    with pytest.raises(ValueError, match=r"loss: got 0\.9"):
        Design(10, 0.2).power(0.9)
