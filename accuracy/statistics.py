"""The statistics of two runs over the same questions, and what they can and cannot see.

Questions that both runs answer alike say nothing about a difference; those that flipped do. McNemar's exact test is the sign test on
them. Of the intervals of a paired difference we take Tango's score interval (Statistics in Medicine 17, 1998): it keeps its
coverage where few answers flip, which is the usual night; it is no point when none flips, as Wald's is; and it is the
inversion of a score test, so that the interval, non-inferiority and equivalence cannot contradict each other.
Everything that is called a rate or a power is computed exactly, by summation over all that may happen, not from a normal curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm

Array = NDArray[np.float64]
#: What happens more rarely than this is left out of a sum.
_NEVER = 1e-12


@dataclass(frozen=True)
class Pairs:
    """How often each pair of outcomes came: right in both, in the baseline alone, in the new run alone, in neither."""

    both: int
    lost: int
    won: int
    neither: int

    def __post_init__(self) -> None:
        if min(self.both, self.lost, self.won, self.neither) < 0 or self.n == 0:
            raise ValueError(f"pairs: got {self}, expected counts from 0, and at least one question")

    @property
    def n(self) -> int:
        return self.both + self.lost + self.won + self.neither

    @property
    def flips(self) -> int:
        return self.lost + self.won

    @property
    def flip_rate(self) -> float:
        return self.flips / self.n

    @property
    def difference(self) -> float:
        """The new run's accuracy less the baseline's."""
        return (self.won - self.lost) / self.n


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p-value: the chance of flips at least as lopsided, were either direction as likely."""
    return min(1.0, 2.0 * float(binom.cdf(min(lost, won), lost + won, 0.5)))


def mcnemar_loss(lost: int, won: int) -> float:
    """Exact one-sided p-value: the chance of so few won among the flips, were either direction as likely."""
    return float(binom.cdf(won, lost + won, 0.5))


def score(lost: Array | float, won: Array | float, n: int, difference: float) -> Array:
    """Tango's score statistic of the hypothesis that the true difference is this; standard normal where it is.

    The variance is that of the likeliest pair of rates with this difference. Where it is 0 the statistic is 0 or infinite.
    """
    lost, won = np.asarray(lost, np.float64), np.asarray(won, np.float64)
    b = -won - lost + (2 * n - won + lost) * difference
    c = -lost * difference * (1 - difference)
    rate = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)
    variance = np.maximum(n * (2 * rate + difference * (1 - difference)), 0)
    distance = won - lost - n * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / np.sqrt(variance))


def interval(pairs: Pairs, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval of the difference of accuracies."""
    _share("confidence", confidence)
    z = float(norm.ppf((1 + confidence) / 2))
    centre = pairs.difference

    def beyond(difference: float, sign: float) -> float:
        statistic = float(score(pairs.lost, pairs.won, pairs.n, difference))
        # Infinite at an impossible difference; the search for a root needs a finite value on the same side.
        return sign * max(-1e9, min(1e9, statistic)) - z

    near_one = 1 - 1e-12
    low = -1.0 if beyond(-near_one, 1) < 0 else brentq(beyond, -near_one, centre, args=(1,), xtol=1e-10)
    high = 1.0 if beyond(near_one, -1) < 0 else brentq(beyond, centre, near_one, args=(-1,), xtol=1e-10)
    return float(low), float(high)


def non_inferiority(pairs: Pairs, margin: float) -> float:
    """One-sided p-value of "the new run is worse by the margin or more"; small says that it is not."""
    _share("margin", margin)
    return float(norm.sf(score(pairs.lost, pairs.won, pairs.n, -margin)))


def equivalence(pairs: Pairs, margin: float) -> float:
    """p-value of "they differ by the margin or more": two one-sided tests, the worse of which counts."""
    better = float(norm.cdf(score(pairs.lost, pairs.won, pairs.n, margin)))
    return max(non_inferiority(pairs, margin), better)


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: got {value}, expected a share between 0 and 1")


@dataclass(frozen=True)
class Design:
    """A paired test before it is run.

    Attributes:
        n: questions.
        noise: share of the answers that flip between two right runs (other kernels round otherwise), half of them each way.
        alpha: level of each one-sided test, so of a false alarm at most.
        margin: loss of accuracy that must not be missed.
    """

    n: int
    noise: float
    alpha: float = 0.025
    margin: float = 0.01

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.noise < 1:
            raise ValueError(f"design: got {self}, expected at least one question and a noise from 0 to below 1")
        _share("alpha", self.alpha)
        _share("margin", self.margin)

    def power(self, loss: float) -> float:
        """Chance that McNemar's test reports a regression when a fault takes this share of the right answers besides."""
        if not 0 <= loss <= 1 - self.noise:
            raise ValueError(
                f"loss: got {loss}, expected 0 to {1 - self.noise:g}: no more can be lost than is answered"
            )
        return paired_power(self.n, self.noise + loss, loss, self.alpha)

    @property
    def false_alarm_rate(self) -> float:
        """Chance of a regression being reported when nothing was lost."""
        return self.power(0.0)

    @property
    def as_before_rate(self) -> float:
        """Chance that a right run is found non-inferior: with less, the gate would often have to say that it cannot say."""
        flips, chances = _spread(self.n, self.noise)
        z = float(norm.isf(self.alpha))
        total = 0.0
        for count, chance in zip(flips, chances, strict=True):
            won = np.arange(count + 1)
            held = score(count - won, won.astype(np.float64), self.n, -self.margin) >= z
            total += chance * float(binom.pmf(won, count, 0.5)[held].sum())
        return total

    def affordable_margin(self, rate: float = 0.95) -> float:
        """The smallest margin, to a hundredth of a point, at which a right run is found as before this often; 1 where none is."""
        _share("rate", rate)
        low, high = 0, 10_000
        while high - low > 1:
            middle = (low + high) // 2
            enough = replace(self, margin=middle / 10_000).as_before_rate >= rate
            low, high = (low, middle) if enough else (middle, high)
        return high / 10_000

    def detectable(self, power: float = 0.8) -> float:
        """The smallest loss that is reported with this chance; nan where not even the largest is."""
        _share("power", power)
        most = 1 - self.noise
        if self.power(most) < power:
            return math.nan
        if self.false_alarm_rate >= power:
            return 0.0
        return float(brentq(lambda loss: self.power(loss) - power, 0.0, most, xtol=1e-6))


def paired_power(n: int, flip_rate: float, loss: float, alpha: float) -> float:
    """Chance that the one-sided exact test at `alpha` sees a loss when this share of n answers flips, both ways together.

    Right answers become wrong at (flip_rate + loss) / 2, wrong ones right at (flip_rate - loss) / 2.
    """
    if not 0 <= loss <= flip_rate <= 1:
        raise ValueError(f"loss: got {loss} with a flip rate of {flip_rate}, expected 0 <= loss <= flip rate <= 1")
    if flip_rate == 0:
        return 0.0
    flips, chances = _spread(n, flip_rate)
    most = _critical(flips, alpha)
    return float((chances * binom.cdf(most, flips, (flip_rate - loss) / flip_rate / 2)).sum())


def _critical(flips: NDArray[np.int64], alpha: float) -> NDArray[np.int64]:
    """For each number of flips the most that may be won for a loss to be reported; -1: no outcome reports one."""
    most = binom.ppf(alpha, flips, 0.5).astype(np.int64)
    return np.where(binom.cdf(most, flips, 0.5) <= alpha, most, most - 1)


def _spread(n: int, rate: float) -> tuple[NDArray[np.int64], Array]:
    """Numbers of flips that may come, and their chances."""
    low, high = (int(x) for x in binom.ppf([_NEVER, 1 - _NEVER], n, rate))
    flips = np.arange(max(0, low), high + 1)
    return flips, binom.pmf(flips, n, rate)


# -- unpaired: weaker, for a reference of which only the score is known ---------------------------------------------------


def wilson(right: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of one proportion."""
    _share("confidence", confidence)
    z = float(norm.ppf((1 + confidence) / 2))
    p, zz = right / n, z * z
    middle, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return (middle - half) / (1 + zz / n), (middle + half) / (1 + zz / n)


def unpaired_interval(
    right: float, n: int, reference_right: float, reference_n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's interval (1998, method 10) of the difference of two independent accuracies, new less reference."""
    low, high = wilson(right, n, confidence)
    reference_low, reference_high = wilson(reference_right, reference_n, confidence)
    p, q = right / n, reference_right / reference_n
    return p - q - math.hypot(p - low, reference_high - q), p - q + math.hypot(high - p, q - reference_low)


def unpaired_detectable(rate: float, n: int, reference_n: int, alpha: float = 0.025, power: float = 0.8) -> float:
    """The smallest loss that two independent runs show with this chance, by the usual normal approximation."""
    deviation = math.sqrt(rate * (1 - rate) * (1 / n + 1 / reference_n))
    return float(norm.isf(alpha) + norm.ppf(power)) * deviation
