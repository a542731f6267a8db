"""A module's source as the mutations see it: a tree whose nodes know their text, without what cannot change a result."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TypeGuard

#: Keyword arguments by which a launch or a load is tuned, and those that a change turns into no program at all: neither
#: changes what is computed.
_KEYWORDS = {
    "num_warps", "num_stages", "maxnreg", "eviction_policy", "cache_modifier", "input_precision", "SEARCH", "STAGES",
    "axis", "bitcast", "dtype", "device", "strict",
}  # fmt: skip
#: Calls whose arguments are shapes of blocks (another one does not compile), messages, or assertions about the source.
_OPAQUE = {
    "arange", "debug_barrier", "fail", "full", "inline_asm_elementwise", "program_id", "reshape", "static_assert", "zeros",
}  # fmt: skip
#: Calls whose second argument is an axis.
_REDUCTIONS = {"sum", "cumsum"}
#: Functions that return these write messages or choose a tile, and a tile decides about nothing but time.
_RETURNS = {"str", "ValueError", "Tile", "Launch"}
#: Names that a host function gives to its tiles.
_TILES = ("tile", "launch", "block_d", "block_k", "block_v")
_ATOMS = (ast.Name, ast.Constant, ast.Call, ast.Attribute, ast.Subscript)


class Source:
    """A text and its tree; offsets are characters, while `ast` counts bytes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text)
        self._lines = text.split("\n")
        self._starts = [0, *accumulate(len(line) + 1 for line in self._lines)]

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self._offset(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset(node.end_lineno, node.end_col_offset)

    def _offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def of(self, node: ast.expr | ast.stmt) -> str:
        return self.text[self.start(node) : self.end(node)]

    def operand(self, node: ast.expr) -> str:
        """The text of an expression, as it may stand beside any operator."""
        return self.of(node) if isinstance(node, _ATOMS) else f"({self.of(node)})"


def called(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call)


def name_of(call: ast.Call) -> str:
    """The last part of what is called: ``load`` for ``tl.load(...)``; nothing for the result of another expression."""
    return str(getattr(call.func, "attr", None) or getattr(call.func, "id", ""))


def is_kernel(function: ast.AST) -> bool:
    return isinstance(function, ast.FunctionDef) and any("jit" in ast.dump(d) for d in function.decorator_list)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes in which a change may change a result.

    Left out are annotations, defaults and decorators (they declare), docstrings, raised errors and what only leads to
    them (messages; that an error is raised at all hangs on the condition, which stays), assertions, tiles, tuning.
    """
    yield node
    for child in _children(node):
        yield from walk(child)


def _children(node: ast.AST) -> Iterable[ast.AST]:
    if isinstance(node, ast.FunctionDef):
        silent = isinstance(node.returns, ast.Name | ast.Constant) and ast.unparse(node.returns) in _RETURNS
        return [] if silent else node.body
    if isinstance(node, ast.ClassDef):
        return [] if any(ast.unparse(base) == "NamedTuple" for base in node.bases) else node.body
    if isinstance(node, ast.AnnAssign):
        return [node.value] if node.value else []
    if isinstance(node, ast.Assign):
        return [] if ast.unparse(node.targets[0]) in _TILES else [*node.targets, node.value]
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return []
    if isinstance(node, ast.If | ast.ExceptHandler) and isinstance(node.body[-1], ast.Raise):
        return [node.test, *node.orelse] if isinstance(node, ast.If) else []
    if called(node):
        return _parts(node)
    return ast.iter_child_nodes(node)


def _parts(call: ast.Call) -> Iterable[ast.AST]:
    name = name_of(call)
    if name in _OPAQUE:
        return [call.func]
    arguments = call.args[:1] if name in _REDUCTIONS else call.args
    return [call.func, *arguments, *(k.value for k in call.keywords if k.arg not in _KEYWORDS)]
