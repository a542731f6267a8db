"""What a template of problems works with: draws from a seed, and a solution whose every equation is computed."""

from __future__ import annotations

import ast
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

#: No number in a problem or a solution is larger.
LARGEST = 9999
_OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Unsuitable(Exception):
    """These numbers make no sensible problem; others must be drawn."""


def value(expression: str) -> int:
    """Of sums, differences, products and quotients of whole numbers.

    Raises:
        Unsuitable: an intermediate result is negative, a fraction, or too large.
        ValueError: the expression has something else in it.
    """

    def of(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            left, right = of(node.left), of(node.right)
            if isinstance(node.op, ast.Div) and right == 0:
                raise Unsuitable(expression)
            found = _OPERATIONS[type(node.op)](left, right)
            if found.denominator != 1 or not 0 <= found <= LARGEST:
                raise Unsuitable(expression)
            return found
        raise ValueError(f"expression: got {expression!r}, expected whole numbers and + - * /")

    return int(of(ast.parse(expression, mode="eval").body))


@dataclass(frozen=True)
class Person:
    """he, his, him: the pronouns, whoever it is."""

    name: str
    he: str
    his: str
    him: str

    @property
    def He(self) -> str:
        return self.he.capitalize()

    def __str__(self) -> str:
        return self.name


_WOMEN = [
    "Anna",
    "Bella",
    "Carla",
    "Daisy",
    "Elena",
    "Fiona",
    "Grace",
    "Hanna",
    "Ines",
    "Julia",
    "Kira",
    "Lena",
    "Maria",
    "Nora",
    "Olga",
    "Paula",
    "Rosa",
    "Sara",
    "Tina",
    "Vera",
    "Wanda",
    "Yuna",
    "Zoe",
    "Amina",
    "Mei",
    "Priya",
    "Leila",
    "Ruth",
    "Edith",
    "Clara",
]
_MEN = [
    "Adam",
    "Ben",
    "Carl",
    "David",
    "Emil",
    "Felix",
    "Georg",
    "Hugo",
    "Ivan",
    "Jack",
    "Kurt",
    "Leo",
    "Mark",
    "Nils",
    "Oscar",
    "Paul",
    "Ravi",
    "Sam",
    "Tom",
    "Victor",
    "Walter",
    "Yusuf",
    "Zack",
    "Ahmed",
    "Kenji",
    "Pedro",
    "Luis",
    "Omar",
    "Simon",
    "Jonas",
]


@dataclass
class Draw:
    """Draws of one problem."""

    random: random.Random
    _used: set[str] = field(default_factory=set)

    def n(self, low: int, high: int, step: int = 1) -> int:
        """A whole number from `low` to `high`."""
        return self.random.randrange(low, high + 1, step)

    def one_of(self, *numbers: int) -> int:
        return self.random.choice(numbers)

    def pick(self, words: str) -> str:
        """One of these, which stand between bars."""
        return self.random.choice(words.split("|"))

    def person(self) -> Person:
        """Somebody who is not in the problem yet."""
        she = self.random.random() < 0.5
        name = self.random.choice([name for name in (_WOMEN if she else _MEN) if name not in self._used])
        self._used.add(name)
        return Person(name, "she", "her", "her") if she else Person(name, "he", "his", "him")


@dataclass
class Work:
    """The solution as it is written. expressions: what is computed, line by line; last: the last result."""

    lines: list[str] = field(default_factory=list)
    expressions: list[str] = field(default_factory=list)
    last: int = 0

    def __call__(self, sentence: str, expression: str) -> int:
        """Add a line: the equation, with its result, comes in place of the sentence's ``@``.

        Raises Unsuitable where the result is no whole number from 1.
        """
        result = value(expression)
        if result < 1:
            raise Unsuitable(expression)
        before, after = sentence.split("@")
        self.expressions.append(expression.replace(" ", ""))
        annotation = f"<<{self.expressions[-1]}={result}>>"
        # A currency stands before the result, as it does before every amount.
        sign = "$" if before.endswith("$") else ""
        self.lines.append(f"{before.removesuffix('$')}{expression} = {sign}{annotation}{result}{after}")
        self.last = result
        return result


Template = Callable[[Draw, Work], str]
#: All templates by name. A template writes the solution and returns the question.
TEMPLATES: dict[str, Template] = {}


def template(function: Template) -> Template:
    if function.__name__ in TEMPLATES:
        raise ValueError(f"template: there are two of the name {function.__name__}")
    TEMPLATES[function.__name__] = function
    return function
