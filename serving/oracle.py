"""What an engine must have done, worked out beside it from what was asked of it: findings, and never an exception.

`Watch` follows an engine step by step with books of its own: from what was submitted, aborted and preempted, and from the
rows and tokens of each step, it knows of every request how many tokens are computed, where, and what must come next. What
the engine gave to the metadata's builder must follow from those books; what the model saw must be what the reference builds
from them; and after each step all slots and pages must be accounted for. Answers are judged by `serving.answers`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from references.step_metadata import step_metadata
from serving.engine import ReportRow, StepReport
from serving.on_host import on_host
from serving.request import Request
from serving.settings import EngineSettings
from serving.state import Ownership, check
from serving.step_inputs import NONE

METADATA = ("query_start_loc", "has_initial_state", "state_indices", "seq_idx", "chunk_indices", "chunk_offsets")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it must be.

    kind: "metadata", "schedule", "accounting" or "answer". step: counted from 0, -1: no step's. request: its id, "" if it is
    nobody's alone. position: the token's in its request, -1 if it is no token's.
    """

    kind: str
    what: str
    expected: Any = None
    got: Any = None
    request: str = ""
    step: int = -1
    position: int = -1

    def __str__(self) -> str:
        place = [f"request {self.request}"] if self.request else []
        place += [f"position {self.position}"] if self.position >= 0 else []
        place += [f"step {self.step}"] if self.step >= 0 else []
        told = "" if self.expected is None and self.got is None else f": got {self.got}, expected {self.expected}"
        return f"{', '.join(place) + ': ' if place else ''}{self.what}{told}"


@dataclass
class Book:
    """What is known of one request: `slot` None while it does not run."""

    request: Request
    outputs: list[int] = field(default_factory=list)
    slot: int | None = None
    computed: int = 0
    context_end: int = 0
    reason: str = ""
    #: The number of the step in which each token was chosen, a stop token's too.
    steps: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.request.prompt, *self.outputs]

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.outputs)

    def leaves(self) -> None:
        self.slot, self.computed = None, 0


def _lists(metadata: Any) -> dict[str, list[Any] | None]:
    """Each field's values; None where there is none."""
    fields: dict[str, Tensor | None] = {name: getattr(metadata, name, None) for name in METADATA}
    there = {name: field for name, field in fields.items() if field is not None}
    values = zip(there, on_host(list(there.values())), strict=True)
    return dict.fromkeys(METADATA) | {name: field.tolist() for name, field in values}


class Watch:
    """Books on one engine. Tell it all that is asked of the engine, and every report, in the order in which they happen."""

    def __init__(self, settings: EngineSettings, chunk_size: int) -> None:
        self.settings, self.chunk_size = settings, chunk_size
        self.budget = settings.max_tokens if settings.token_budget is None else settings.token_budget
        self.books: dict[str, Book] = {}
        self.findings: list[Finding] = []
        self.steps = 0
        #: Prefixes at whose ends a snapshot may have been taken.
        self.prefixes: set[tuple[int, ...]] = set()
        #: Tokens that prefix hits saved.
        self.saved = 0
        self._builder = step_metadata(settings.max_rows, chunk_size, "cpu")

    # -- what is asked ----------------------------------------------------------------------------------------------

    def submitted(self, request: Request) -> None:
        self.books[request.id] = Book(request)

    def aborted(self, request_id: str) -> None:
        book = self.books[request_id]
        if not book.reason:
            book.leaves()
            book.reason = "aborted"

    def preempted(self, request_id: str) -> None:
        self.books[request_id].leaves()

    @property
    def unfinished(self) -> list[str]:
        return [name for name, book in self.books.items() if not book.reason]

    # -- a step -----------------------------------------------------------------------------------------------------

    def stepped(self, report: StepReport, ownership: Ownership) -> None:
        """Judge a step, then enter it in the books."""
        for name in report.preempted:
            self.books[name].leaves()
        if report.rows:
            self._judge_rows(report)
            self._judge_arguments(report)
        for row in report.rows:
            self._enter(row)
        self._enter_tokens(report)
        self._judge_ownership(ownership)
        self.steps += 1

    def _found(self, kind: str, what: str, expected: Any = None, got: Any = None, request: str = "") -> None:
        self.findings.append(Finding(kind, what, expected, got, request, self.steps))

    def _judge_rows(self, report: StepReport) -> None:
        rows = report.rows
        twice = [name for name, count in Counter(row.request for row in rows).items() if count > 1]
        for name in twice:
            self._found("schedule", "in two rows of one step", request=name)
        tokens = sum(row.new for row in rows)
        if tokens > self.budget:
            self._found("schedule", "tokens of the step", f"at most {self.budget}", tokens)
        if len(rows) > self.settings.max_batch_size:
            self._found("schedule", "rows of the step", f"at most {self.settings.max_batch_size}", len(rows))
        written: dict[int, str] = {}
        for row in rows:
            self._judge_row(row)
            size = self.settings.page_size
            for page in row.pages[row.cached // size : -(-(row.cached + row.new) // size)]:
                if page in written:
                    self._found(
                        "accounting", f"page {page} is written by request {written[page]} too", request=row.request
                    )
                written[page] = row.request

        self._judge_turns(report)

    def _judge_turns(self, report: StepReport) -> None:
        """Who came last gives way, and who came first is admitted first: else two requests could take turns for ever."""
        arrivals = {name: place for place, name in enumerate(self.books)}
        here = [arrivals[row.request] for row in report.rows if row.request in arrivals]
        for name in report.preempted:
            if here and arrivals[name] < max(here):
                self._found("schedule", "preempted, while one that came later stays", request=name)
        waiting = [arrivals[name] for name in self.unfinished if self.books[name].slot is None]
        admitted = sorted(place for place in here if place in waiting)
        if admitted != waiting[: len(admitted)]:
            self._found("schedule", "admitted, by their order of arrival", waiting[: len(admitted)], admitted)

    def _judge_row(self, row: ReportRow) -> None:
        book = self.books.get(row.request)
        if book is None or book.reason:
            self._found("schedule", f"scheduled, but {book.reason if book else 'never submitted'}", request=row.request)
            return
        if book.slot is not None:
            if row.slot != book.slot:
                self._found("schedule", "slot", book.slot, row.slot, row.request)
            if row.cached != book.computed:
                self._found("schedule", "tokens computed before", book.computed, row.cached, row.request)
        else:
            self._judge_admission(book, row)
        wanted = row.cached < book.context_end
        if row.is_context != wanted:
            expected, got = ("context" if kind else "decode" for kind in (wanted, row.is_context))
            self._found("schedule", "kind of row", expected, got, row.request)
        most = book.context_end - row.cached if wanted else 1
        if not 1 <= row.new <= most:
            self._found("schedule", "new tokens", f"1 to {most}", row.new, row.request)
        held = len(row.pages) * self.settings.page_size
        if held < row.cached + row.new:
            self._found("accounting", "room in its pages", f"{row.cached + row.new} tokens", held, row.request)

    def _judge_admission(self, book: Book, row: ReportRow) -> None:
        """It begins, at its first token or behind a prefix that some request computed before."""
        book.context_end = book.length
        if row.cached:
            if not self.settings.snapshot_interval or tuple(book.tokens[: row.cached]) not in self.prefixes:
                self._found(
                    "schedule", "tokens taken from a prefix that nobody has computed", 0, row.cached, row.request
                )
            if row.cached >= book.length:
                self._found("schedule", "tokens left to compute", "at least 1", 0, row.request)
            self.saved += row.cached

    # -- metadata ---------------------------------------------------------------------------------------------------

    def _judge_arguments(self, report: StepReport) -> None:
        """The lists follow from the books, and every field of the metadata from the lists."""
        rows = report.rows
        contexts = [self._is_context(row) for row in rows]
        count = sum(contexts)
        if contexts != sorted(contexts, reverse=True):
            self._found("metadata", "contexts come first", sorted(contexts, reverse=True), contexts)
        padding = 0 if count else self.settings.padded(len(rows)) - len(rows)
        expected: dict[str, Any] = {
            "seq_lens": [*(row.new for row in rows), *[1] * padding],
            "num_contexts": count,
            "num_cached_tokens": [*(self._cached(row) for row in rows), *[0] * padding],
            "state_slots": [*(row.slot for row in rows), *[NONE] * padding],
        }
        for name, want in expected.items():
            got = report.arguments.get(name)
            if got != want:
                self._found("metadata", name, want, got)
        if len({slot for slot in expected["state_slots"] if slot >= 0}) < len(rows):
            self._found("metadata", "a slot of its own for each row", None, expected["state_slots"])
        try:
            reference = self._builder.prepare(**expected)
        except ValueError as error:
            self._found("metadata", f"the step is none: {error}")
            return
        got, want = _lists(report.metadata), _lists(reference)
        for name in METADATA:
            if got[name] != want[name]:
                self._found("metadata", f"{name} as the model saw it", want[name], got[name])

    def _is_context(self, row: ReportRow) -> bool:
        book = self.books.get(row.request)
        return row.is_context if book is None else row.cached < book.context_end

    def _cached(self, row: ReportRow) -> int:
        book = self.books.get(row.request)
        return row.cached if book is None or book.slot is None else book.computed

    # -- entering ---------------------------------------------------------------------------------------------------

    def _enter(self, row: ReportRow) -> None:
        book = self.books.get(row.request)
        if book is None:
            return
        context = row.cached < book.context_end
        book.slot, book.computed = row.slot, row.cached + row.new
        interval = self.settings.snapshot_interval
        if context and interval and book.computed % interval == 0:
            self.prefixes.add(tuple(book.tokens[: book.computed]))

    def _enter_tokens(self, report: StepReport) -> None:
        due = [row.request for row in report.rows if row.cached + row.new == self._length(row.request)]
        if [name for name, _ in report.tokens] != due:
            self._found("schedule", "requests that a token was chosen for", due, [name for name, _ in report.tokens])
        ended = []
        for name, token in report.tokens:
            book = self.books.get(name)
            if book is None:
                continue
            book.steps.append(self.steps)
            book.chosen.append(token)
            if token in book.request.stop_tokens:
                book.reason = "stop"
            else:
                book.outputs.append(token)
                if len(book.outputs) >= book.request.max_new_tokens:
                    book.reason = "length"
            if book.reason:
                ended.append((name, book.reason))
                book.leaves()
        if list(report.finished) != ended:
            self._found("schedule", "requests that end", ended, list(report.finished))

    def _length(self, name: str) -> int:
        return self.books[name].length if name in self.books else -1

    # -- accounts ---------------------------------------------------------------------------------------------------

    def _judge_ownership(self, ownership: Ownership) -> None:
        """Nothing leaked or shared, and only who runs owns anything."""
        self.findings += [Finding("accounting", what, step=self.steps) for what in check(ownership)]
        running = {f"request {name}": book for name, book in self.books.items() if book.slot is not None}
        slots = _of_requests(ownership.slot_of)
        wanted = {name: book.slot for name, book in running.items()}
        if slots != wanted:
            self._found("accounting", "slots of the requests", wanted, slots)
        owners = sorted(_of_requests(ownership.pages_of))
        if owners != sorted(running):
            self._found("accounting", "requests that own pages", sorted(running), owners)
        for name, book in running.items():
            if ownership.tokens.get(name) != book.computed:
                self._found("accounting", f"{name}: tokens computed", book.computed, ownership.tokens.get(name))

    def idle(self, ownership: Ownership) -> None:
        """At the end, when nothing waits or runs: whatever is not the prefix cache's is free."""
        self._judge_ownership(ownership)


def _of_requests(owned: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in owned.items() if name.startswith("request ")}
