"""Generated faults: every place in the registered subjects' sources where a mutation operator fits, and samples of them.

Constants of a module are left alone: they are tiles, limits of checks and layouts that kernel and host share.
"""

from __future__ import annotations

import ast
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from harness.faults import equivalents, reach
from harness.faults.model import OWN, TIERS, Fault, Span
from harness.faults.mutators import MUTATORS, Edit, Mutator
from harness.faults.source import Source, is_kernel, walk

UNSEEN = "Only a GPU comes to this place."


def every() -> list[Fault]:
    """All generated faults, by module, then by place; an id is module, function, line, operator and a number."""
    faults = []
    for (name, definition), judge in reach.judges().items():
        module = reach.module(name)
        for function, node in _functions(module.definitions[definition]):
            numbers: Counter[tuple[int, str]] = Counter()
            for mutator, edit, cuda in _edits(module.source, node, module.cuda_only):
                span = Span.between(module.source.text, edit.start, edit.end)
                numbers[span.line, mutator.name] += 1
                number = numbers[span.line, mutator.name]
                seen_on_cpu = judge.on_cpu and not cuda
                find = module.source.text[edit.start : edit.end]
                faults.append(
                    Fault(
                        id=f"{name}:{function}:L{span.line}:{mutator.name}:{number}",
                        operator=judge.operator,
                        source=OWN,
                        wrong=f"{mutator.wrong}: `{_flat(find)}` is `{_flat(edit.replace)}`.",
                        subject=judge.subject,
                        module=name,
                        find=find,
                        replace=edit.replace,
                        tiers=TIERS if seen_on_cpu else ("cuda",),
                        reason="" if seen_on_cpu else UNSEEN,
                        span=span,
                    )
                )
    return equivalents.mark(faults)


def mutate(text: str) -> Iterator[tuple[str, str]]:
    """The name of a mutation operator and what it makes of ``text``, for every place where one fits."""
    source = Source(text)
    for statement in source.tree.body:
        for _, node in _functions(statement):
            for mutator, edit, _ in _edits(source, node, frozenset()):
                yield mutator.name, text[: edit.start] + edit.replace + text[edit.end :]


def _functions(definition: ast.stmt) -> Iterator[tuple[str, ast.FunctionDef]]:
    """A function, or the methods of a class."""
    if isinstance(definition, ast.FunctionDef):
        yield definition.name, definition
    elif isinstance(definition, ast.ClassDef):
        for method in definition.body:
            if isinstance(method, ast.FunctionDef):
                yield f"{definition.name}.{method.name}", method


def _edits(
    source: Source, function: ast.FunctionDef, cuda_only: frozenset[ast.AST]
) -> Iterator[tuple[Mutator, Edit, bool]]:
    """What fits in a function, and whether only a GPU runs the place. Of two operators that do the same, the first."""
    kernel = is_kernel(function)
    seen: set[Edit] = set()
    for node in walk(function):
        for mutator in MUTATORS:
            if mutator.kernel if kernel else mutator.host:
                for edit in mutator.find(node, source):
                    if edit not in seen:
                        seen.add(edit)
                        yield mutator, edit, node in cuda_only


def _flat(text: str) -> str:
    return " ".join(text.split())


def sample(faults: Iterable[Fault], count: int, seed: int) -> list[Fault]:
    """``count`` faults (all, if there are fewer): modules take turns, each with the kind of mistake that is rarest so far.

    Within a module and a kind the seed chooses. The first faults of a larger sample are those of a smaller one.
    """
    chance = random.Random(seed)
    heaps: dict[str, dict[str, list[Fault]]] = defaultdict(lambda: defaultdict(list))
    for fault in faults:
        heaps[fault.module][kind(fault)].append(fault)
    for kinds in heaps.values():
        for heap in kinds.values():
            chance.shuffle(heap)
    ranks = {mutator.name: chance.random() for mutator in MUTATORS}
    used: Counter[str] = Counter()
    chosen: list[Fault] = []
    while heaps and len(chosen) < count:
        for name in list(heaps):
            if len(chosen) == count:
                break
            kinds = heaps[name]
            rarest = min(kinds, key=lambda one: (used[one], ranks[one]))
            chosen.append(kinds[rarest].pop())
            used[rarest] += 1
            if not kinds[rarest]:
                del kinds[rarest]
            if not kinds:
                del heaps[name]
    return chosen


def kind(fault: Fault) -> str:
    """The mutation operator that made a generated fault."""
    return fault.id.split(":")[3]
