"""The rows that prove a failure: expected beside got, with the elements that matter marked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

ABSENT = "—"
Number = float | str


@dataclass(frozen=True)
class Element:
    """One element of a row, written out. differs: it is one of those for which the row was reported."""

    expected: str
    got: str
    differs: bool


@dataclass(frozen=True)
class Comparison:
    """A row ready to print. verdict: how far off it is, as a clause; empty where no allowance applies."""

    where: str
    elements: list[Element]
    verdict: str


def compare(row: dict[str, Any]) -> Comparison:
    """Write out a row of a failure record; NaN and infinities come as words, and lists may differ in length."""
    pairs = list(zip_longest(row["expected"], row["got"]))
    integral = all(_integral(value) for pair in pairs for value in pair)
    marked = _marked(pairs, float(row["allowed"]))
    elements = [
        Element(*_written(expected, got, integral), differs)
        for (expected, got), differs in zip(pairs, marked, strict=True)
    ]
    return Comparison(row["where"], elements, _clause(float(row["error"]), float(row["allowed"])))


def _marked(pairs: list[tuple[Number | None, Number | None]], allowed: float) -> list[bool]:
    """Beyond the allowance where there is one, different in any bit where there is none.

    A row may be over budget by its RMS with every element within the peak allowance: then the largest error is marked.
    """
    errors = [_error(expected, got) for expected, got in pairs]
    limit = 0.0 if math.isnan(allowed) else allowed
    marked = [error > limit for error in errors]
    if not any(marked) and max(errors, default=0.0) > 0:
        marked[errors.index(max(errors))] = True
    return marked


def _error(expected: Number | None, got: Number | None) -> float:
    if expected is None or got is None:
        return math.inf
    want, have = float(expected), float(got)
    if math.isnan(want) and math.isnan(have):
        return 0.0
    if want == have:
        # Equal, yet not the same bits: a zero that lost its sign.
        return 0.0 if math.copysign(1, want) == math.copysign(1, have) else 5e-324
    difference = abs(want - have)
    return math.inf if math.isnan(difference) else difference


def _integral(value: Number | None) -> bool:
    if value is None:
        return True
    number = float(value)
    negative_zero = number == 0 and math.copysign(1, number) < 0
    return number.is_integer() and abs(number) < 2**53 and not negative_zero


def _written(expected: Number | None, got: Number | None, integral: bool) -> tuple[str, str]:
    """Both numbers with as few digits as still tell them apart."""
    first, second = "", ""
    for digits in (5, 9, 17):
        first, second = _number(expected, digits, integral), _number(got, digits, integral)
        if first != second or expected == got:
            break
    return first, second


def _number(value: Number | None, digits: int, integral: bool) -> str:
    if value is None:
        return ABSENT
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    return str(int(value)) if integral else f"{value:.{digits}g}"


def _clause(error: float, allowed: float) -> str:
    if math.isnan(error):
        return ""
    if math.isinf(error):
        return "not finite where it must be"
    if math.isnan(allowed):
        return f"off by {error:.3g}"
    if allowed <= 0:
        return f"off by {error:.3g}, allowed {allowed:.3g}"
    ratio = error / allowed
    if ratio <= 1:
        # The row is here for its RMS, which has an allowance of its own.
        return f"largest error {error:.3g}, within the {allowed:.3g} allowed for one element"
    return f"off by {error:.3g}, {ratio:.3g} times the {allowed:.3g} allowed"
