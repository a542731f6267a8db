"""Who judges a changed definition: the subject that uses it most, found by names, without running anything.

A definition is a function, class or constant of a module. A subject uses what its own function mentions, and so on from
there; the function itself is nobody else's. A helper that several subjects share belongs to the one whose code mentions it
most often, as that has most to say about it; then to the nearest, so that `optimized.chunk_metadata:_chunk_kernel` belongs
to the subject that launches it and not to the one that would choose it on a GPU; then to the last, in the order of the
operators: metadata come first in it, and have fewer arguments to be wrong about.
What no subject reaches (a baseline, an adapter) has no judge, nor has a twin, which stands for the code of somebody else.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from harness import operators
from harness.faults.injection import source_of
from harness.faults.source import Source
from harness.subjects import registered

#: A definition: its module and its name there.
Definition = tuple[str, str]

#: Flags of kernels that the host sets to one value on a CPU, whatever the case.
CPU_FLAGS = {"PTX": False, "VALUES_FIRST": True, "is_cuda": False, "interpret": True, "interpreted": True}


@dataclass(frozen=True)
class Judge:
    """The subject that judges a definition, and whether it gets there on a CPU."""

    operator: str
    subject: str
    on_cpu: bool


@dataclass(frozen=True)
class Module:
    """A module's definitions, where its imported names come from, and the nodes that only a GPU runs."""

    source: Source
    definitions: dict[str, ast.stmt]
    imported: dict[str, tuple[str, str]]
    cuda_only: frozenset[ast.AST]


@cache
def module(name: str) -> Module:
    source = Source(source_of(name).read_text(encoding="utf-8"))
    definitions: dict[str, ast.stmt] = {}
    imported: dict[str, tuple[str, str]] = {}
    for statement in source.tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            definitions[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            definitions |= {t.id: statement for t in statement.targets if isinstance(t, ast.Name)}
        elif isinstance(statement, ast.ImportFrom):
            package = ".".join(name.split(".")[: -statement.level]) if statement.level else ""
            origin = ".".join(part for part in (package, statement.module) if part)
            imported |= {alias.asname or alias.name: (origin, alias.name) for alias in statement.names}
    return Module(source, definitions, imported, frozenset(cuda_only(source.tree)))


def judges() -> dict[Definition, Judge]:
    """The judge of every definition that some registered subject reaches, of operators whose sources are mutated."""
    best: dict[Definition, tuple[tuple[bool, int, int], Judge]] = {}
    for operator in (name for name, one in operators.OPERATORS.items() if one.mutated):
        for subject in registered(operator):
            module_name, _, function = subject.target.partition(":")
            if ".peers." in module_name:
                continue
            everywhere = _uses((module_name, function), cpu=False)
            on_cpu = _uses((module_name, function), cpu=True)
            for definition, rank in everywhere.items():
                if definition not in best or rank <= best[definition][0]:
                    best[definition] = (rank, Judge(operator, subject.target, definition in on_cpu))
    return {definition: judge for definition, (_, judge) in sorted(best.items())}


def _uses(start: Definition, *, cpu: bool) -> dict[Definition, tuple[bool, int, int]]:
    """What is reached from a definition, ranked: less for itself, for what is mentioned more often, for what is nearer."""
    distances, front = {start: 0}, [start]
    mentions: Counter[Definition] = Counter()
    while front:
        place = front.pop(0)
        for definition in _mentioned(place, cpu=cpu):
            mentions[definition] += 1
            if definition not in distances:
                distances[definition] = distances[place] + 1
                front.append(definition)
    return {definition: (definition != start, -mentions[definition], far) for definition, far in distances.items()}


def _mentioned(place: Definition, *, cpu: bool) -> Iterator[Definition]:
    """The definitions of the same package that a definition mentions; ``cpu``: where a CPU gets to."""
    name, package = place[0], place[0].partition(".")[0]
    here = module(name)
    for node in ast.walk(here.definitions[place[1]]):
        if cpu and node in here.cuda_only:
            continue
        if isinstance(node, ast.Name) and node.id in here.definitions:
            yield name, node.id
        elif isinstance(node, ast.Name) and node.id in here.imported:
            origin, inner = here.imported[node.id]
            if origin.partition(".")[0] == package and origin != package and inner in module(origin).definitions:
                yield origin, inner
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in here.imported:
            origin, inner = here.imported[node.value.id]
            if origin == package and node.attr in module(f"{package}.{inner}").definitions:
                yield f"{package}.{inner}", node.attr


def cuda_only(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that a CPU never comes to, as far as conditions on the device and `CPU_FLAGS` tell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp) and (truth := _on_cpu(node.test)) is not None:
            yield from ast.walk(node.orelse if truth else node.body)
        if isinstance(node, ast.BoolOp):
            yield from _decided(node)
        for block in (value for _, value in ast.iter_fields(node) if isinstance(value, list)):
            for statement in _dead(block):
                yield from ast.walk(statement)


def _decided(choice: ast.BoolOp) -> Iterator[ast.AST]:
    """The operands of a conjunction that is false on a CPU (a disjunction that is true) whatever they say."""
    deciding = [value for value in choice.values if _on_cpu(value) is isinstance(choice.op, ast.Or)]
    for value in choice.values if deciding else ():
        # What decides cannot be seen to change either where another one decides the same.
        if value not in deciding or len(deciding) > 1:
            yield from ast.walk(value)


def _dead(block: list[ast.AST]) -> Iterator[ast.AST]:
    """The statements of a block, or of a choice in it, that a CPU never comes to."""
    for place, statement in enumerate(block):
        if isinstance(statement, ast.If) and (truth := _on_cpu(statement.test)) is not None:
            yield from statement.orelse if truth else statement.body
            if truth and isinstance(statement.body[-1], ast.Return):
                yield from block[place + 1 :]


def _on_cpu(test: ast.expr) -> bool | None:
    """What a condition comes to on a CPU; None where that depends on the case."""
    if isinstance(test, ast.Name | ast.Attribute):
        return CPU_FLAGS.get(test.id if isinstance(test, ast.Name) else test.attr)
    if isinstance(test, ast.Call) and ast.unparse(test.func) == "getattr" and isinstance(test.args[1], ast.Constant):
        return CPU_FLAGS.get(str(test.args[1].value))
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _on_cpu(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.Compare) and ast.unparse(test.left).endswith(".type"):
        device = ast.literal_eval(test.comparators[0])
        return (device == "cpu") == isinstance(test.ops[0], ast.Eq)
    return None
