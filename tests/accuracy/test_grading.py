"""GSM8K's answer extraction: by hand, and beside lm-eval's own filters and metric where it is installed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accuracy.grading import INVALID, flexible, grade, normalised, strict


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 * 3 = 18\n#### 18", "18"),
        ("#### 1,234.", "1,234."),
        ("#### -7 and then #### 8", "-7"),
        ("#### $18", INVALID),
        ("####18", INVALID),
        ("The answer is 18.", INVALID),
        ("", INVALID),
    ],
)
def test_strict(text: str, number: str) -> None:
    assert strict(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 apples and 14 pears", "14"),
        ("It costs $1,200.", "$1,200."),
        ("From 5 down to -3", "-3"),
        ("one 7", "7"),
        ("none", INVALID),
        ("18. That is it ...", "..."),
    ],
)
def test_flexible(text: str, number: str) -> None:
    assert flexible(text) == number


def test_normalised() -> None:
    assert normalised("$1,234.") == "1234"
    assert normalised("1,234,567") == "1234567"
    assert normalised("He ran 5 + 6 = 11\n#### 11") == "11"
    assert normalised("3.50") == "3.50"
    assert normalised("5..") == "5."


def test_grade() -> None:
    assert grade("so 1,234\n#### 1,234", "as 1234\n#### 1234").right
    other = grade("The answer is $18.", "#### 18")
    assert (other.right, other.right_flexible, other.strict, other.flexible) == (False, True, INVALID, "18")
    assert not grade("#### 18.0", "18").right
    later = grade("#### 18\nQuestion 19", "18")
    assert (later.right, later.right_flexible) == (True, False)


def test_target_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a number"):
        grade("#### 3", "no idea")


@given(st.text(alphabet="# 0123456789.,$-a\n", max_size=30), st.integers(-99, 9999))
def test_as_lm_eval_does(text: str, target: int) -> None:
    extraction = pytest.importorskip("lm_eval.filters.extraction", reason="lm-eval is not installed")
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="lm-eval is not installed")
    found = {}
    for name, pattern, group in (
        ("strict", "#### (\\-?[0-9\\.\\,]+)", 0),
        ("flexible", "(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
    ):
        taken = extraction.RegexFilter(regex_pattern=pattern, group_select=group).apply([[text]], [{}])[0][0]
        right = metrics.exact_match_hf_evaluate(
            predictions=[taken],
            references=[f"so\n#### {target}"],
            regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"],
            ignore_case=True,
        )["exact_match"]
        found[name] = (taken, bool(right))
    graded = grade(text, f"so\n#### {target}")
    assert found["strict"] == (strict(text), graded.right)
    assert found["flexible"] == (flexible(text), graded.right_flexible)
