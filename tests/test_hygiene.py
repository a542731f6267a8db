"""Checks that check nothing are banned mechanically: both kinds below have shipped in well-known suites."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("references", "optimized", "harness", "properties", "serving", "accuracy", "benchmarks", "ci", "tests")
# Each returns its verdict; as a statement of its own, the verdict is thrown away.
VERDICTS = frozenset({"allclose", "array_equal", "equal", "isclose", "is_close", "array_equiv"})
RERUNS = ("reruns", "flaky", "rerun_failures")


def vacuous(source: str) -> Iterator[tuple[int, str]]:
    """Line and description of every check in `source` that cannot fail."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            name = getattr(function, "attr", None) or getattr(function, "id", None)
            if name in VERDICTS:
                yield node.lineno, f"{name}(...) as a statement: its verdict is thrown away"
        elif isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple):
            yield node.lineno, "assert of a tuple is always true"
        elif isinstance(node, ast.Assert):
            for call in (part for part in ast.walk(node.test) if isinstance(part, ast.Call)):
                name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
                if name in VERDICTS and len(call.args) >= 2 and ast.dump(call.args[0]) == ast.dump(call.args[1]):
                    yield node.lineno, f"{name}(x, x): a value compared with itself"
        elif isinstance(node, ast.ExceptHandler) and all(isinstance(part, ast.Pass) for part in node.body):
            yield node.lineno, "an exception is swallowed without a word"
        elif isinstance(node, ast.Attribute) and node.attr in RERUNS and ast.unparse(node).startswith("pytest.mark"):
            yield node.lineno, "a test is rerun until it passes"


def test_no_vacuous_check() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, what in vacuous(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.allclose(a, b)",
        "assert torch.equal(got, got)",
        "assert (a == b, 'they differ')",
        "try:\n    f()\nexcept ValueError:\n    pass",
        "@pytest.mark.flaky\ndef test(): ...",
    ],
)
def test_vacuous_check_is_seen(source: str) -> None:
    assert list(vacuous(source)) != []


@pytest.mark.parametrize("source", ["assert torch.allclose(a, b)", "same = torch.equal(a, b)", "assert (a == b)"])
def test_sound_check_is_left_alone(source: str) -> None:
    assert list(vacuous(source)) == []
