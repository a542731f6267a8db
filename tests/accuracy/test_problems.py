"""Every answer follows from its solution's arithmetic, and no held-out problem can be learnt."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest

from accuracy.grading import grade, strict
from accuracy.problems.generator import HELD_OUT, Problem, generate, held_out, make, side, write
from accuracy.problems.template import LARGEST, TEMPLATES, Draw, Unsuitable, Work, template, value

EQUATION = re.compile(r"([0-9]+(?: [-+*/] [0-9]+)+) = \$?<<([^=]+)=([0-9]+)>>([0-9]+)")


@pytest.fixture(scope="module")
def asked() -> list[Problem]:
    return held_out()


@pytest.fixture(scope="module")
def learnt() -> list[Problem]:
    return list(islice(generate(0, "train"), 3000))


def computed(expression: str) -> Fraction:
    """Products and quotients first, then sums, from left to right: another way than the generator's."""
    words = re.findall(r"[0-9]+|[-+*/]", expression)
    terms, signs = [Fraction(words[0])], [1]
    for sign, number in zip(words[1::2], words[2::2], strict=True):
        if sign == "*":
            terms[-1] *= int(number)
        elif sign == "/":
            terms[-1] /= int(number)
        else:
            terms.append(Fraction(number))
            signs.append(1 if sign == "+" else -1)
    return sum((sign * term for sign, term in zip(signs, terms, strict=True)), Fraction())


def test_every_answer_is_recomputed(asked: list[Problem], learnt: list[Problem]) -> None:
    for problem in [*asked, *learnt]:
        lines = problem.solution.split("\n")
        known = {int(number) for number in re.findall(r"[0-9]+", problem.question)}
        result = 0
        for line in lines[:-1]:
            found = EQUATION.search(line)
            assert found is not None, line
            shown, annotated, annotated_result, text_result = found.groups()
            assert shown.replace(" ", "") == annotated
            result = int(text_result)
            assert computed(annotated) == result == int(annotated_result), line
            assert 1 <= result <= LARGEST
            known.add(result)
        assert lines[-1] == f"#### {result}"
        assert grade(problem.solution, problem.solution).right
        assert 3 <= len(lines) <= 6


def test_solutions_use_what_the_question_says(asked: list[Problem]) -> None:
    """Each number of a question is used, and what is used is in the question, a former result, or a small constant in words."""
    # half, a third, ...; twice; legs; minutes of an hour; percent; three tests.
    constants = {2, 3, 4, 5, 6, 8, 10, 60, 100}
    for problem in asked:
        given = {int(number) for number in re.findall(r"[0-9]+", problem.question)}
        results: set[int] = set()
        used: set[int] = set()
        for expression, line in zip(problem.expressions, problem.solution.split("\n"), strict=False):
            numbers = {int(number) for number in re.findall(r"[0-9]+", expression)}
            assert numbers <= given | results | constants, (problem.question, line)
            used |= numbers
            results.add(int(line.split(">>")[1].lstrip("$").split(" ")[0].rstrip(".")))
        # How long something took may be said where only a total is asked.
        assert len(given - used) <= 1, problem.question


def test_held_out_problems_cannot_be_learnt(asked: list[Problem], learnt: list[Problem]) -> None:
    assert len(asked) == HELD_OUT == len({problem.key for problem in asked}) == len({p.question for p in asked})
    assert {side(problem.key) for problem in asked} == {"test"}
    assert {side(problem.key) for problem in learnt} == {"train"}
    bodies = [{(p.template, tuple(re.findall(r"<<[^>]*>>", p.solution))) for p in one} for one in (asked, learnt)]
    assert not bodies[0] & bodies[1]
    others = {problem.question for problem in islice(generate(7, "train"), 3000)}
    assert not others & {problem.question for problem in asked}


def test_a_seed_is_a_set(asked: list[Problem]) -> None:
    assert held_out(50) == asked[:50]
    assert held_out(50, seed=1) != asked[:50]
    assert list(islice(generate(3, "train"), 20)) == list(islice(generate(3, "train"), 20))


def test_templates_are_many_and_even(asked: list[Problem]) -> None:
    assert len(TEMPLATES) >= 40
    counts = Counter(problem.template for problem in asked)
    assert set(counts) == set(TEMPLATES)
    assert max(counts.values()) <= 2 * min(counts.values())
    words = [len(re.findall(r"\w+|[^\w\s]", problem.solution)) for problem in asked]
    assert sum(words) / len(words) > 36


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_template_has_room(name: str) -> None:
    """Many problems of each, so that both sides of the line have their share."""
    source = random.Random(1)
    found = {make(name, source).key for _ in range(150)}
    assert len(found) >= 75, name
    text = make(name, source).question
    assert "@" not in text
    assert "{" not in text
    assert text.endswith("?")


def test_annotations_are_optional() -> None:
    with_them, without = held_out(30), held_out(30, annotations=False)
    assert [p.question for p in with_them] == [p.question for p in without]
    assert all("<<" in p.solution for p in with_them)
    assert all("<" not in p.solution for p in without)
    assert [strict(p.solution) for p in with_them] == [strict(p.solution) for p in without]


def test_files_are_in_gsm8ks_format(tmp_path: Path) -> None:
    write(tmp_path / "set", 40)
    train = [json.loads(line) for line in (tmp_path / "set" / "train.jsonl").read_text().split("\n")[:-1]]
    test = [json.loads(line) for line in (tmp_path / "set" / "test.jsonl").read_text().split("\n")[:-1]]
    assert (len(train), len(test)) == (40, HELD_OUT)
    assert all(list(line) == ["question", "answer"] for line in [*train, *test])


def test_value_refuses_what_is_no_sensible_number() -> None:
    assert value("90 * 90 / 100") == 81
    for expression in ("3 - 5", "7 / 2", "5 / 0", "100 * 100", "2 - 3 + 4"):
        with pytest.raises(Unsuitable):
            value(expression)
    with pytest.raises(ValueError, match="expected whole numbers"):
        value("2 ** 3")
    with pytest.raises(Unsuitable):
        Work()("So @ are left.", "3 - 3")


def test_two_templates_of_one_name_are_refused() -> None:
    def legs(d: Draw, w: Work) -> str:
        return ""

    with pytest.raises(ValueError, match="two of the name legs"):
        template(legs)


def test_nobody_is_in_a_problem_twice() -> None:
    draw = Draw(random.Random(0))
    names = [draw.person().name for _ in range(20)]
    assert len(set(names)) == 20
