"""The engine, as the harness sees it: an operator whose cases are lives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.operators.base import Operator, plural
from harness.strategies import CHOICES, SEEDS, Scale, weighted
from serving.engine_case import SUBMITTING, Action, EngineCase, Size

NAME = "engine"
#: The actions whose count says which request, from the newest.
COUNTED = ("again", "later", "abort", "preempt")


class EngineOperator(Operator):
    name = NAME
    summary = (
        "continuous batching: every step's metadata, every slot and page, every answer as if its request were alone"
    )
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    case_type = EngineCase
    # Most places that a mutation finds in an engine are settings, checks and what reports say, which tests/serving holds on to; its
    # faults are thought of by hand.
    mutated: ClassVar[bool] = False

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[EngineCase]:
        """Lives on the toy model: small engines, so that slots and pages run out."""
        return st.builds(
            EngineCase,
            operator=st.just(self.name),
            actions=lives(4, 14),
            size=sizes(),
            choice=CHOICES,
            seed=SEEDS,
        )

    def describe(self, case: EngineCase) -> str:
        return f"{_say_size(case)}; {'; '.join(_say(case))}"

    def coverage(self, case: EngineCase) -> dict[str, list[str | int]]:
        return {
            "prompt": list(case.lengths),
            "requests": [len(case.submissions)],
            "done": [action.what for action in case.actions],
            "prefix cache": ["on" if case.size.interval else "off"],
            "model": [case.model],
        }

    def smaller(self, case: EngineCase) -> Iterator[EngineCase]:
        """Fewer actions, the boldest first; then plainer ones; then a plainer engine."""
        count = len(case.actions)
        length = count // 2
        while length:
            for start in range(0, count, length):
                kept = (*case.actions[:start], *case.actions[start + length :])
                if kept:
                    yield case.with_(actions=kept)
            length //= 2
        for place, action in enumerate(case.actions):
            for plainer in _plainer(action):
                yield case.with_(actions=(*case.actions[:place], plainer, *case.actions[place + 1 :]))
        plain = Size()
        for name, value in vars(plain).items():
            if getattr(case.size, name) != value:
                yield case.with_(size=replace(case.size, **{name: value}))
        for name in ("choice", "seed"):
            if getattr(case, name):
                yield case.with_(**{name: 0})


def sizes() -> SearchStrategy[Size]:
    """Engines in which slots, pages and budgets run out; the plainest has plenty of all."""
    return st.builds(
        _size,
        slots=st.sampled_from([4, 2, 3, 1, 6, 2]),
        length=st.sampled_from([48, 8, 12, 24]),
        requests=st.sampled_from([4, 1, 1, 1.5, 2]),
        page_size=st.sampled_from([4, 1, 2]),
        max_batch_size=st.sampled_from([4, 4, 1, 2, 3]),
        max_tokens=st.sampled_from([16, 4, 8, 5, 3, 1, 32]),
        graph_sizes=st.sampled_from([(), (1, 2, 4), (4,), (1, 2), (3,)]),
        graphs=st.booleans(),
        interval=st.sampled_from([0, 4, 4, 8]),
        cut=st.sampled_from([True, True, False]),
        hash_bits=st.sampled_from([64, 2, 64, 2]),
        random_slots=st.booleans(),
    )


def _size(*, length: int, requests: float, page_size: int, **others: Any) -> Size:
    """Pages for so many of the longest requests."""
    return Size(pages=int(requests * length) // page_size, page_size=page_size, max_length=length, **others)


def lives(least: int, most: int) -> SearchStrategy[tuple[Action, ...]]:
    """A submission, and then so many things of any kind: a life without a request would be none."""
    first, others = submissions(), st.lists(actions(), min_size=least, max_size=most)
    return st.builds(lambda begin, rest: (begin, *rest), first, others)


def submissions() -> SearchStrategy[Action]:
    """New prompts, with prefixes that others have or almost have."""
    # Around the places of snapshots, the length of a page or a step; a few tokens; anything.
    edges = [st.integers(edge - 1, edge + 2) for edge in (4, 8, 16)]
    prompts = weighted((2, st.integers(1, 40)), (1, st.integers(1, 3)), *((1, edge) for edge in edges))
    return st.builds(
        Action,
        what=st.just("submit"),
        count=prompts,
        shared=st.sampled_from([0, 40, 40, 40, 5, 9]),
        differs=st.sampled_from([0, 1, 0, 1, 4]),
        new=st.integers(1, 9),
        sampling=st.sampled_from([0, 0, 1, 2, 3]),
        stop=st.sampled_from([0, 0, 2, 6]),
        times=st.sampled_from([1, 1, 2, 3]),
    )


def families(scale: Scale, dtype: str) -> SearchStrategy[EngineCase]:
    """Lives of prompts that share prefixes, or almost do, and come again while there are few slots to remember them in."""
    size = st.builds(
        _size,
        slots=st.sampled_from([3, 6, 4, 6]),
        length=st.just(24),
        requests=st.sampled_from([4, 1.5]),
        page_size=st.sampled_from([4, 2]),
        max_batch_size=st.sampled_from([4, 2]),
        max_tokens=st.sampled_from([4, 16, 6, 4]),
        interval=st.just(4),
        hash_bits=st.sampled_from([2, 64, 2]),
        random_slots=st.booleans(),
    )
    fields = {
        "shared": st.sampled_from([40, 0, 40]),
        "differs": st.sampled_from([1, 0]),
        "times": st.sampled_from([1, 2]),
    }
    submit = st.builds(
        Action, what=st.just("submit"), count=st.sampled_from([5, 9, 9, 13, 14]), new=st.integers(1, 2), **fields
    )
    again = st.builds(
        Action, what=st.sampled_from(["later", "again"]), count=st.integers(0, 3), times=st.sampled_from([2, 1])
    )
    # Each is finished before the next one comes, so that all leave what they may; then some come again, at once or in turn.
    firsts = st.lists(submit, min_size=2, max_size=4).map(_in_turn)
    others = st.lists(st.one_of(again, submit), min_size=1, max_size=6)
    acts = st.builds(lambda begin, rest: (*begin, *rest), firsts, others)
    return st.builds(EngineCase, operator=st.just(NAME), actions=acts, size=size, seed=SEEDS)


def _in_turn(acts: list[Action]) -> list[Action]:
    return [each for action in acts for each in (action, Action("finish"))]


def actions() -> SearchStrategy[Action]:
    """What may happen to an engine; mostly something is submitted, or computed."""

    def other(what: str, most: int) -> SearchStrategy[Action]:
        least = 0 if what in COUNTED else 1
        times = st.sampled_from([1, 1, 2] if what in SUBMITTING else [1])
        return st.builds(Action, what=st.just(what), count=st.integers(least, most), times=times)

    return weighted(
        (4, submissions()),
        (5, other("step", 6)),
        (3, other("later", 3)),
        (2, other("again", 3)),
        (2, other("abort", 3)),
        (3, other("preempt", 3)),
        (1, other("budget", 32)),
        (1, st.just(Action("finish"))),
    )


def _plainer(action: Action) -> Iterator[Action]:
    if action.what in ("again", "later"):
        yield Action("submit")
    plain = Action(action.what)
    for name in ("times", "sampling", "stop", "differs", "shared"):
        if getattr(action, name) != getattr(plain, name):
            yield replace(action, **{name: getattr(plain, name)})
    for name in ("count", "new"):
        value = getattr(action, name)
        least = 0 if name == "count" and action.what in COUNTED else 1
        smaller = dict.fromkeys((least, 1, value // 2, value - 1))
        yield from (replace(action, **{name: less}) for less in smaller if least <= less < value)


# -- words ----------------------------------------------------------------------------------------------------------


def _say_size(case: EngineCase) -> str:
    size, plain = case.size, Size()
    words = [plural(size.slots, "slot"), f"{size.pages} pages of {plural(size.page_size, 'token')}"]
    words.append(f"steps of {plural(size.max_tokens, 'token')}")
    if size.max_batch_size != plain.max_batch_size:
        words.append(plural(size.max_batch_size, "request") + " at once")
    if size.graph_sizes:
        sizes_said = ", ".join(str(rows) for rows in size.graph_sizes)
        words.append(f"decodes {'replayed' if size.graphs else 'padded'} at {sizes_said} rows")
    if size.interval:
        words.append(
            f"snapshots each {plural(size.interval, 'token')}" + ("" if size.cut else ", where a piece ends by chance")
        )
        words[-1] += "" if size.hash_bits > 32 else f" by hashes of {plural(size.hash_bits, 'bit')}"
    return f"engine ({'toy' if case.model == 'toy' else case.model}) of " + ", ".join(words)


def _say(case: EngineCase) -> Iterator[str]:
    requests = iter(case.requests(16))
    for action in case.actions:
        if action.what in SUBMITTING:
            request, *others = [next(requests) for _ in range(action.times)]
            names = f"request {request.id}" + (f" to {others[-1].id}" if others else "")
            words = f"submit {names}, a prompt of {len(request.prompt)}"
            if action.what != "submit":
                words = ("until all is finished, then " if action.what == "later" else "") + words + " as before"
            elif action.shared:
                but = f" but for number {action.differs}" if 0 < action.differs <= action.shared else ""
                words += f" ({min(action.shared, len(request.prompt))} shared{but})"
            words += f", up to {request.max_new_tokens} new"
            words += "" if request.sampling.greedy else ", drawn"
            yield words + (f", {plural(len(request.stop_tokens), 'stop token')}" if request.stop_tokens else "")
        elif action.what == "step":
            yield plural(action.count, "step")
        elif action.what == "budget":
            yield f"{plural(1 + (action.count - 1) % case.size.max_tokens, 'token')} a step from here"
        elif action.what == "finish":
            yield "until all is finished"
        else:
            yield (
                f"{action.what} the newest"
                if not action.count
                else f"{action.what} one {action.count} before the newest"
            )
