"""Lives of small engines, as Hypothesis draws them: anything in any order, and two kinds of trouble on purpose."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.strategies import SEEDS, Scale, weighted
from serving.engine_case import COUNTED, NAME, SUBMITTING, Action, EngineCase, Size


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
        slots=st.sampled_from([6, 3, 4, 6]),
        length=st.just(24),
        requests=st.sampled_from([4, 4, 1.5]),
        page_size=st.sampled_from([4, 2]),
        max_batch_size=st.sampled_from([4, 2]),
        max_tokens=st.sampled_from([4, 16, 6, 4]),
        interval=st.just(4),
        # Of two bits too few prefixes are remembered beside each other for one block to be taken for that behind another prefix.
        hash_bits=st.sampled_from([3, 64, 3]),
        random_slots=st.booleans(),
    )
    fields = {"what": st.just("submit"), "new": st.integers(1, 2)}
    anything = st.builds(
        Action,
        count=st.sampled_from([9, 5, 9, 13, 14]),
        shared=st.sampled_from([40, 0, 40]),
        differs=st.sampled_from([1, 0]),
        times=st.sampled_from([1, 2]),
        **fields,
    )
    # Two prompts of two blocks, of which the first differs and the second does not.
    twins = st.builds(Action, count=st.just(9), shared=st.just(40), differs=st.just(1), times=st.just(2), **fields)
    submit = st.one_of(anything, twins)
    again = st.builds(
        Action, what=st.sampled_from(["later", "again"]), count=st.integers(0, 3), times=st.sampled_from([2, 1])
    )
    # Each is finished before the next one comes, so that all leave what they may; then some come again, at once or in turn.
    firsts = st.lists(submit, min_size=1, max_size=3).map(_in_turn)
    others = st.lists(st.one_of(again, submit), min_size=2, max_size=6)
    acts = st.builds(lambda begin, rest: (*begin, *rest), firsts, others)
    return st.builds(EngineCase, operator=st.just(NAME), actions=acts, size=size, seed=SEEDS)


def crowds(scale: Scale, dtype: str) -> SearchStrategy[EngineCase]:
    """Lives in which pages run out, while an old request still has pieces of its prompt to compute and younger ones decode."""
    size = st.builds(
        _size,
        slots=st.sampled_from([6, 4]),
        length=st.sampled_from([24, 16]),
        requests=st.sampled_from([1, 1, 1.5]),
        page_size=st.sampled_from([4, 1, 2]),
        max_batch_size=st.sampled_from([4, 3]),
        # More than a piece up to a snapshot's place: what is left lets a younger one in.
        max_tokens=st.sampled_from([6, 5, 8, 16]),
        interval=st.sampled_from([4, 4, 0]),
        random_slots=st.booleans(),
    )
    fields = {"what": st.just("submit")}
    long = st.builds(Action, count=st.integers(8, 20), new=st.integers(1, 4), shared=st.sampled_from([0, 40]), **fields)
    short = st.builds(
        Action, count=st.integers(1, 4), new=st.integers(4, 9), times=st.sampled_from([1, 2, 3]), **fields
    )
    step = st.builds(Action, what=st.just("step"), count=st.integers(1, 4))
    preempt = st.builds(Action, what=st.just("preempt"), count=st.integers(0, 3))
    others = st.lists(st.one_of(long, short, step, preempt), max_size=4)
    acts = st.builds(lambda first, second, rest: (first, second, *rest), long, short, others)
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
