"""The oracle has nothing to say of a right engine, and names each thing that a wrong one does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from references.step_metadata import step_metadata
from serving.answers import judge
from serving.engine import StepReport
from serving.oracle import METADATA, Finding, Watch
from serving.state import Ownership
from serving.truth import ToyTruth
from tests.serving.engines import engine, request, settings

SIZE: dict[str, Any] = {"max_tokens": 6, "graph_sizes": (2, 4), "snapshot_interval": 4}
Tamper = Callable[[StepReport, Ownership], tuple[StepReport, Ownership]]


def watched(tamper: Tamper | None = None, at: int = -1) -> Watch:
    """Two requests of which the second takes two steps to begin, watched; step `at` is reported wrongly."""
    served, watch = engine(**SIZE), Watch(settings(**SIZE), 4)
    for asked in (request("a", 3, new=3), request("b", 5, new=2)):
        served.submit(asked)
        watch.submitted(asked)
    while served.unfinished:
        report, ownership = served.step(), served.ownership()
        if tamper is not None and watch.steps == at:
            report, ownership = tamper(report, ownership)
        watch.stepped(report, ownership)
    return watch


def test_a_right_engine_has_no_findings() -> None:
    watch = watched()
    assert watch.findings == []
    assert watch.steps == 4
    assert {name: book.reason for name, book in watch.books.items()} == {"a": "length", "b": "length"}


def rows(number: int = 0, **changes: Any) -> Tamper:
    """A row of the step, changed; the first one where nothing else is said."""

    def tamper(report: StepReport, own: Ownership) -> tuple[StepReport, Ownership]:
        changed = list(report.rows)
        changed[number] = replace(changed[number], **changes)
        return replace(report, rows=tuple(changed)), own

    return tamper


def twice(report: StepReport, own: Ownership) -> tuple[StepReport, Ownership]:
    return replace(report, rows=(report.rows[0], *report.rows)), own


def second_alone(report: StepReport, own: Ownership) -> tuple[StepReport, Ownership]:
    return replace(report, rows=report.rows[1:]), own


def pages_of_the_first(report: StepReport, own: Ownership) -> tuple[StepReport, Ownership]:
    return rows(1, pages=report.rows[0].pages)(report, own)


def owner_that_is_gone(report: StepReport, own: Ownership) -> tuple[StepReport, Ownership]:
    return accounts(pages_of={**own.pages_of, "request a": ()})(report, own)


def nobody_ends(report: StepReport, own: Ownership) -> tuple[StepReport, Ownership]:
    return replace(report, finished=()), own


def arguments(**changes: Any) -> Tamper:
    return lambda report, own: (replace(report, arguments=report.arguments | changes), own)


def accounts(**changes: Any) -> Tamper:
    return lambda report, own: (report, replace(own, **changes))


def metadata(name: str, number: int = -1) -> Tamper:
    """One number of a field that the model saw, changed."""

    def tamper(report: StepReport, own: Ownership) -> tuple[StepReport, Ownership]:
        wrong = getattr(report.metadata, name).clone()
        wrong[number] = not wrong[number] if wrong.dtype == torch.bool else wrong[number] + 1
        return replace(report, metadata=replace(report.metadata, **{name: wrong})), own

    return tamper


def other_metadata(report: StepReport, own: Ownership) -> tuple[StepReport, Ownership]:
    lists = report.arguments | {"num_cached_tokens": [0] * len(report.arguments["seq_lens"])}
    return replace(report, metadata=step_metadata(4, 4, "cpu").prepare(**lists)), own


@pytest.mark.parametrize(
    ("at", "tamper", "kind", "said"),
    [
        (0, rows(request="c"), "schedule", "request c, step 0: scheduled, but never submitted"),
        (1, rows(slot=3), "schedule", "request b, step 1: slot: got 3, expected 1"),
        (1, rows(cached=4), "schedule", "request b, step 1: tokens computed before: got 4, expected 3"),
        (1, rows(cached=2), "schedule", "request b, step 1: tokens computed before: got 2, expected 3"),
        (0, twice, "schedule", "request a, step 0: in two rows of one step"),
        (0, second_alone, "schedule", "step 0: admitted, by their order of arrival: got [1], expected [0]"),
        (0, pages_of_the_first, "accounting", "is written by request a too"),
        (0, rows(1, cached=4), "schedule", "tokens taken from a prefix that nobody has computed: got 4, expected 0"),
        (3, nobody_ends, "schedule", "step 3: requests that end: got [], expected [('b', 'length')]"),
        (3, owner_that_is_gone, "accounting", "step 3: requests that own pages: got ['request a'], expected []"),
        (0, rows(cached=2), "schedule", "tokens taken from a prefix that nobody has computed: got 2, expected 0"),
        (0, rows(is_context=False), "schedule", "request a, step 0: kind of row: got decode, expected context"),
        (0, rows(new=4), "schedule", "step 0: tokens of the step: got 7, expected at most 6"),
        (0, rows(pages=()), "accounting", "request a, step 0: room in its pages: got 0, expected 3 tokens"),
        (0, arguments(num_contexts=1), "metadata", "step 0: num_contexts: got 1, expected 2"),
        (1, arguments(num_cached_tokens=[0, 3]), "metadata", "step 1: num_cached_tokens: got [0, 3], expected [3, 3]"),
        (
            1,
            other_metadata,
            "metadata",
            "has_initial_state as the model saw it: got [False, False], expected [True, True]",
        ),
        *((1, metadata(name), "metadata", f"step 1: {name} as the model saw it: got [") for name in METADATA),
        (1, accounts(free_slots=()), "accounting", "slot 3: leaked, neither free nor owned"),
        (1, accounts(slot_of={}), "accounting", "slots of the requests: got {}, expected"),
        (1, accounts(tokens={}), "accounting", "request a: tokens computed: got None, expected 4"),
    ],
)
def test_each_wrong_thing_is_named(at: int, tamper: Tamper, kind: str, said: str) -> None:
    findings = [f for f in watched(tamper, at).findings if f.kind == kind]
    assert any(said in str(finding) for finding in findings), [str(finding) for finding in findings]


def test_a_token_too_many_or_too_few_is_named() -> None:
    lost = watched(lambda report, own: (replace(report, tokens=()), own), at=0)
    assert any("requests that a token was chosen for: got [], expected ['a']" in str(f) for f in lost.findings)
    ended = watched(lambda report, own: (replace(report, finished=(("a", "stop"),)), own), at=0)
    assert any("requests that end: got [('a', 'stop')], expected []" in str(f) for f in ended.findings)


def test_a_budget_that_was_lowered_holds() -> None:
    served, watch = engine(**SIZE), Watch(settings(**SIZE), 4)
    served.submit(request("a", 5))
    watch.submitted(request("a", 5))
    watch.budget = 3
    watch.stepped(served.step(), served.ownership())
    assert "step 0: tokens of the step: got 4, expected at most 3" in [str(finding) for finding in watch.findings]


def test_who_came_last_gives_way() -> None:
    watch = watched(lambda report, own: (replace(report, preempted=("a",)), own), at=1)
    assert any("request a, step 1: preempted, while one that came later stays" in str(f) for f in watch.findings)


def test_answers_are_judged_token_by_token() -> None:
    served, watch = engine(), Watch(settings(), 4)
    asked = request("a", 4, new=4)
    served.submit(asked)
    watch.submitted(asked)
    while served.unfinished:
        watch.stepped(served.step(), served.ownership())
    book, tracked = watch.books["a"], served.requests["a"]
    assert list(judge(book, tracked.outputs, tracked.logits, ToyTruth())) == []
    assert list(judge(book, tracked.outputs, [], ToyTruth())) == []

    others = [str(other) for other in judge(book, tracked.outputs[:-1], tracked.logits, ToyTruth())]
    assert len(others) == 1
    assert "the answer, by the reports of its steps" in others[0]

    wrong = [row.clone() for row in tracked.logits]
    wrong[2][5] += 0.125
    found = next(judge(book, tracked.outputs, wrong, ToyTruth()))
    assert (found.position, found.step, found.kind) == (6, 2, "answer")
    assert "got 0.125, expected at most 0" in str(found)

    nowhere = [torch.full_like(row, torch.nan) for row in tracked.logits]
    errors = [
        found.what for found in judge(book, tracked.outputs, nowhere, ToyTruth()) if "largest error" in found.what
    ]
    assert len(errors) == 4

    # The last token is not the one that the engine's own logits, which are right, lead to.
    right = book.chosen[-1]
    book.chosen[-1] = book.outputs[-1] = (right + 1) % 16
    unlike = [str(found) for found in judge(book, book.outputs, tracked.logits, ToyTruth())]
    assert len(unlike) == 1
    assert unlike[0].endswith(f"token, by the engine's own logits: got {(right + 1) % 16}, expected {right}")
    book.chosen[-1] = book.outputs[-1] = right

    # A wrong token, of which nothing is recorded: one finding at its place, and those behind it are judged by what came.
    book.chosen[1] = book.outputs[1] = (book.outputs[1] + 1) % 16
    findings = list(judge(book, book.outputs, [], ToyTruth()))
    assert findings[0].position == 5
    assert findings[0].what == "token"


def test_a_finding_reads_as_a_sentence() -> None:
    finding = Finding("answer", "token", 3, 5, "7", step=2, position=9)
    assert str(finding) == "request 7, position 9, step 2: token: got 5, expected 3"
    assert str(Finding("accounting", "slot 1: leaked")) == "slot 1: leaked"
