"""The mutation operators: each finds the places in a source where one plausible mistake fits, and says how it would look.

None is meant to be clever. Each stands for a class of mistakes that kernels really had: a mask forgotten, a bound off by
one, two strides exchanged, a cast lost, a factor left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from harness.faults.source import Source, called, name_of, walk


@dataclass(frozen=True)
class Edit:
    """From offset ``start`` to ``end``, ``replace`` instead."""

    start: int
    end: int
    replace: str


@dataclass(frozen=True)
class Mutator:
    """One kind of mistake. wrong: what has happened, for a reader. kernel, host: in what code it is made."""

    name: str
    wrong: str
    find: Callable[[ast.AST, Source], Iterator[Edit]]
    kernel: bool = True
    host: bool = True


def _whole(node: ast.expr | ast.stmt, source: Source, replace: str) -> Edit:
    return Edit(source.start(node), source.end(node), replace)


def _memory(node: ast.AST) -> ast.Call | None:
    return node if called(node) and name_of(node) in ("load", "store") and node.args else None


def _mask_dropped(node: ast.AST, source: Source) -> Iterator[Edit]:
    call = _memory(node)
    if call is None or all(k.arg != "mask" for k in call.keywords):
        return
    # `other` without a mask does not compile.
    kept = [k for k in call.keywords if k.arg not in ("mask", "other")]
    arguments = [*map(source.of, call.args), *(f"{k.arg}={source.of(k.value)}" for k in kept)]
    yield Edit(source.start(call.args[0]), source.end(call.keywords[-1].value), ", ".join(arguments))


_RELAXED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}


def _comparison_relaxed(node: ast.AST, source: Source) -> Iterator[Edit]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        start, end = source.end(node.left), source.start(node.comparators[0])
        match = re.search("[<>=!]=?", source.text[start:end])
        if match:
            yield Edit(start + match.start(), start + match.end(), _RELAXED[match.group()])


def _tail_skipped(node: ast.AST, source: Source) -> Iterator[Edit]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Lt):
        bound = node.comparators[0]
        if not isinstance(bound, ast.Constant):
            yield _whole(bound, source, f"{source.operand(bound)} - 1")


def _index_shifted(node: ast.AST, source: Source) -> Iterator[Edit]:
    if called(node) and name_of(node) == "arange":
        yield _whole(node, source, f"({source.of(node)} + 1)")


def _address_shifted(node: ast.AST, source: Source) -> Iterator[Edit]:
    call = _memory(node)
    if call is not None:
        yield _whole(call.args[0], source, f"{source.operand(call.args[0])} + 1")


def _strides(node: ast.AST) -> list[ast.Name]:
    names = [n for n in walk(node) if isinstance(n, ast.Name) and n.id.startswith("stride_")]
    return sorted(names, key=lambda n: (n.lineno, n.col_offset))


def _neighbour_loaded(node: ast.AST, source: Source) -> Iterator[Edit]:
    call = _memory(node)
    if call is not None:
        for stride in sorted({name.id for name in _strides(call.args[0])}):
            yield _whole(call.args[0], source, f"{source.operand(call.args[0])} + {stride}")


def _strides_swapped(node: ast.AST, source: Source) -> Iterator[Edit]:
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr | ast.Return):
        for one, other in pairwise(_strides(node)):
            if one.id != other.id:
                start, end = source.end(one), source.start(other)
                yield Edit(source.start(one), source.end(other), other.id + source.text[start:end] + one.id)


def _cast(node: ast.AST, dtype: str) -> ast.expr | None:
    """What is cast, where ``node`` casts to this dtype and does not merely read the bits otherwise."""
    if called(node) and name_of(node) == "to" and not node.keywords and isinstance(node.func, ast.Attribute):
        return node.func.value if [ast.unparse(a) for a in node.args] == [dtype] else None
    return None


def _int64_lost(node: ast.AST, source: Source) -> Iterator[Edit]:
    cast = _cast(node, "tl.int64")
    if cast is not None:
        assert isinstance(node, ast.Call)
        yield _whole(node, source, source.operand(cast))


def _rounded(node: ast.AST, source: Source) -> Iterator[Edit]:
    if _cast(node, "tl.float32") is not None:
        assert isinstance(node, ast.Call)
        yield _whole(node, source, f"{source.of(node)}.to(tl.bfloat16).to(tl.float32)")


def _mentions(node: ast.AST, words: tuple[str, ...]) -> bool:
    return any(isinstance(n, ast.Name) and any(word in n.id for word in words) for n in ast.walk(node))


_SCALES, _DECAYS = ("scale", "scaling"), ("decay",)


def _factors(node: ast.AST, source: Source) -> Iterator[tuple[ast.expr, Edit]]:
    """Each factor of a product, and the product without it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for factor, other in ((node.right, node.left), (node.left, node.right)):
            yield factor, _whole(node, source, source.operand(other))


def _factor_dropped(node: ast.AST, source: Source) -> Iterator[Edit]:
    yield from (edit for factor, edit in _factors(node, source) if not _mentions(factor, _SCALES + _DECAYS))


def _scale_dropped(node: ast.AST, source: Source) -> Iterator[Edit]:
    yield from (edit for factor, edit in _factors(node, source) if _mentions(factor, _SCALES))


def _decay_dropped(node: ast.AST, source: Source) -> Iterator[Edit]:
    yield from (edit for factor, edit in _factors(node, source) if _mentions(factor, _DECAYS))


def _divisor_dropped(node: ast.AST, source: Source) -> Iterator[Edit]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod):
        yield _whole(node, source, source.operand(node.left))


def _sign_swapped(node: ast.AST, source: Source) -> Iterator[Edit]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        sign = "-" if isinstance(node.op, ast.Add) else "+"
        yield _whole(node, source, f"{source.operand(node.left)} {sign} {source.operand(node.right)}")


def _alike(one: str, other: str) -> bool:
    """Whether two arguments differ in one letter, like q and k, or ``*k.stride()`` and ``*v.stride()``."""
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1


#: Exchanging their first two arguments changes nothing, not even a bit.
_COMMUTATIVE = {"fma", "maximum", "minimum", "max", "min"}


def _arguments_swapped(node: ast.AST, source: Source) -> Iterator[Edit]:
    if not called(node) or name_of(node) in _COMMUTATIVE:
        return
    for one, other in pairwise(node.args):
        if not isinstance(one, ast.Constant) and _alike(source.of(one), source.of(other)):
            between = source.text[source.end(one) : source.start(other)]
            yield Edit(source.start(one), source.end(other), source.of(other) + between + source.of(one))


def _constant_off_by_one(node: ast.AST, source: Source) -> Iterator[Edit]:
    # Of floats only what stands for "nothing" or "whole": a small term or a threshold is moved within rounding.
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, int | float) and re.fullmatch(r"\d+|[01]\.0", repr(value)):
        assert isinstance(node, ast.Constant)
        yield _whole(node, source, repr(value + 1))


def _condition_negated(node: ast.AST, source: Source) -> Iterator[Edit]:
    if isinstance(node, ast.If | ast.IfExp):
        yield _whole(node.test, source, f"not ({source.of(node.test)})")


def _arms_swapped(node: ast.AST, source: Source) -> Iterator[Edit]:
    if called(node) and name_of(node) == "where" and len(node.args) == 3:
        _, yes, no = node.args
        between = source.text[source.end(yes) : source.start(no)]
        yield Edit(source.start(yes), source.end(no), source.of(no) + between + source.of(yes))


def _statement_dropped(node: ast.AST, source: Source) -> Iterator[Edit]:
    stored = isinstance(node, ast.Expr) and called(node.value) and name_of(node.value) not in _KEPT
    if isinstance(node, ast.AugAssign) or stored:
        assert isinstance(node, ast.stmt)
        yield _whole(node, source, "pass")


#: Without them a race may be lost, which no run need ever show, or an object does not exist.
_KEPT = {"debug_barrier", "static_assert", "__init__"}


def _clamp_dropped(node: ast.AST, source: Source) -> Iterator[Edit]:
    if not called(node):
        return
    if name_of(node) in ("clamp", "clamp_") and isinstance(node.func, ast.Attribute):
        yield _whole(node, source, source.operand(node.func.value))
    if name_of(node) in ("minimum", "maximum", "min", "max") and len(node.args) == 2:
        # What is clamped is no constant; which side that is depends on the writer.
        clamped = next((a for a in node.args if not isinstance(a, ast.Constant)), node.args[0])
        yield _whole(node, source, source.operand(clamped))


def _slice_shifted(node: ast.AST, source: Source) -> Iterator[Edit]:
    # A constant bound, negative or not, is constant-off-by-one's.
    if isinstance(node, ast.Slice):
        if node.lower is not None and not isinstance(node.lower, ast.Constant | ast.UnaryOp):
            yield _whole(node.lower, source, f"{source.operand(node.lower)} + 1")
        if node.upper is not None and not isinstance(node.upper, ast.Constant | ast.UnaryOp):
            yield _whole(node.upper, source, f"{source.operand(node.upper)} - 1")


MUTATORS = (
    Mutator("mask-dropped", "A load or store lost its mask", _mask_dropped, host=False),
    Mutator("comparison-relaxed", "A comparison is off by its edge", _comparison_relaxed),
    Mutator("tail-skipped", "A bound is one too low", _tail_skipped),
    Mutator("index-shifted", "Indices are one too high", _index_shifted),
    Mutator("address-shifted", "An address is one element too high", _address_shifted, host=False),
    Mutator("neighbour-addressed", "The neighbour is read or written", _neighbour_loaded, host=False),
    Mutator("strides-swapped", "Two strides are exchanged", _strides_swapped, host=False),
    Mutator("int64-lost", "A cast to int64 is lost", _int64_lost, host=False),
    Mutator("rounded", "A value is rounded to bfloat16 on its way", _rounded, host=False),
    Mutator("factor-dropped", "A factor is left out", _factor_dropped),
    Mutator("scale-dropped", "A scale is left out", _scale_dropped),
    Mutator("decay-dropped", "A decay is left out", _decay_dropped, host=False),
    Mutator("divisor-dropped", "A division or remainder is left out", _divisor_dropped),
    Mutator("sign-swapped", "A sum is a difference, or the other way round", _sign_swapped),
    Mutator("arguments-swapped", "Two arguments are exchanged", _arguments_swapped),
    Mutator("constant-off-by-one", "A constant is off by one", _constant_off_by_one),
    Mutator("condition-negated", "A condition is negated", _condition_negated),
    Mutator("arms-swapped", "The two arms of a choice are exchanged", _arms_swapped),
    Mutator("statement-dropped", "A statement is left out", _statement_dropped),
    Mutator("clamp-dropped", "A clamp is left out", _clamp_dropped),
    Mutator("slice-shifted", "A bound of a slice is off by one", _slice_shifted, kernel=False),
)
