from __future__ import annotations

from typing import Any

import pytest

from harness.plural import plural
from harness.report.rows import ABSENT, compare
from harness.report.text import clean, cleaned, compact, duration, verdict


def row(
    expected: list[Any], got: list[Any], error: float | str = "nan", allowed: float | str = "nan"
) -> dict[str, Any]:
    return {"where": "row 0", "expected": expected, "got": got, "error": error, "allowed": allowed}


def marked(*args: Any) -> list[bool]:
    return [element.differs for element in compare(row(*args)).elements]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;file:///x\x07link\x1b]8;;\x1b\\", "link"),
        ("a\x00b\x08c\x7fd\x9be", "abcde"),
        ("\ud800lone\udfff \ufffe", "lone "),
        ("α 日本 🙂", "α 日本 🙂"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_cleaned_reaches_keys_and_lists() -> None:
    assert cleaned({"a\x00": ["b\x00", ("c\x00", 1, None)]}) == {"a": ["b", ["c", 1, None]]}


def test_words() -> None:
    assert [plural(n, "case") for n in (0, 1, 1200)] == ["0 cases", "1 case", "1,200 cases"]
    said = {0.04: "0.04 s", 12.34: "12.3 s", 99.97: "1 min 40 s", 185: "3 min 05 s", 7800: "2 h 10 min"}
    assert {seconds: duration(seconds) for seconds in said} == said
    short = {0: "0", 999: "999", 1000: "1k", 1234: "1.2k", 34_400: "34k", 999_900: "1M", 5_100_000: "5.1M"}
    assert {count: compact(count) for count in short} == short


def test_beyond_the_allowance_is_marked() -> None:
    assert marked([1.0, 2.0, 3.0], [1.0005, 2.1, 3.0], 0.1, 0.01) == [False, True, False]


def test_rms_failure_marks_the_largest_error() -> None:
    assert marked([1.0, 2.0], [1.001, 2.002], 0.002, 0.01) == [False, True]


def test_without_an_allowance_every_bit_counts() -> None:
    assert marked([1.0, 0.0, "nan", "inf"], [1.0, -0.0, "nan", "-inf"]) == [False, True, False, True]


def test_a_difference_in_the_last_digits_is_visible() -> None:
    element = compare(row([1.0000001], [1.0000002])).elements[0]
    assert (element.expected, element.got) == ("1.0000001", "1.0000002")


def test_integers_and_lists_of_unequal_length() -> None:
    found = compare(row([0, 1.0, 70000.0], [0, 2.0]))
    assert [(e.expected, e.got) for e in found.elements] == [("0", "0"), ("1", "2"), ("70000", ABSENT)]
    assert [e.differs for e in found.elements] == [False, True, True]


@pytest.mark.parametrize(
    ("error", "allowed", "said"),
    [
        (0.25, 0.001, "off by 0.25, 250 times the 0.001 allowed"),
        (0.25, 0.5, "largest error 0.25, within the 0.5 allowed for one element"),
        (0.25, 0.0, "off by 0.25, allowed 0"),
        (0.25, "nan", "off by 0.25"),
        ("inf", 0.1, "not finite where it must be"),
        ("nan", "nan", ""),
    ],
)
def test_how_far_off(error: float | str, allowed: float | str, said: str) -> None:
    assert compare(row([1.0], [2.0], error, allowed)).verdict == said


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"failed": 0, "required_not_run": 0}, "held", "ran and held"),
        ({"failed": 2, "required_not_run": 0}, "failed", "2 of 5 cells failed"),
        ({"failed": 1, "required_not_run": 3}, "failed", "3 required did not run"),
        ({"failed": 0, "required_not_run": 3}, "incomplete", "3 required did not run"),
        ({"failed": 0, "required_not_run": 0, "cases": 0}, "incomplete", "nothing is known"),
    ],
)
def test_verdict(report: dict[str, Any], changes: dict[str, int], status: str, words: str) -> None:
    report["summary"] |= changes
    assert verdict(report).status == status
    assert words in verdict(report).headline
