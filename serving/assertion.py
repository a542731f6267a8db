"""The serving assertion: an engine lives through a workload, and every step and every answer is compared with the oracle."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from serving.answers import judge
from serving.engine import Engine
from serving.model import HybridModel
from serving.near_ties import other_answers
from serving.oracle import Book, Finding, Watch
from serving.settings import EngineSettings
from serving.truth import ModelTruth, Told
from serving.workload import Moment

#: stage, done, of how many.
Listener = Callable[[str, int, int], None]
#: Steps without any progress after which an engine counts as stuck.
PATIENCE = 3
#: Tokens, with those that fill up the shorter ones, that the oracle computes at once.
ORACLE_TOKENS = {"cpu": 2048, "cuda": 16384}
PHASES = ("plan", "build", "forward", "choose", "account")


@dataclass
class Outcome:
    """What a run was.

    Attributes:
        findings: mismatches, in the order in which they were found.
        counts: requests, steps, tokens, prefix hits, preemptions, aborts, graph replays and so on.
        seconds: of the run and of the judging. decode_seconds: of the host, in each step of decodes alone: rows and phases.
        timeline: what each step was, for the drawing.
    """

    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    decode_seconds: list[dict[str, float]] = field(default_factory=list)
    timeline: list[dict[str, int]] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind in kinds]


class Assertion:
    """One engine, its watch and its workload.

    factory: `(model, settings) -> engine`. only: a request; the run ends when it does, and only it is judged.
    """

    def __init__(
        self,
        model: HybridModel,
        settings: EngineSettings,
        workload: list[Moment],
        *,
        factory: Callable[[Any, EngineSettings], Any] = Engine,
        truth: ModelTruth | None = None,
        listener: Listener = lambda *_: None,
        only: str = "",
    ) -> None:
        self.model, self.settings, self.workload = model, settings, workload
        self.truth, self.listener, self.only = truth, listener, only
        self.watch = Watch(settings, model.kernels.chunk_size)
        self.engine = factory(model, settings)
        self.outcome = Outcome()
        self.total = sum(len(moment.arrivals) for moment in workload)

    def run(self) -> Outcome:
        """The whole of it. What an engine raises is a finding, after which nothing more is asked of it."""
        begun = time.perf_counter()
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is a finding about the engine
            self._found(f"the engine raised {type(error).__name__}: {error}")
        self._synchronize()
        self.outcome.seconds["serving"] = time.perf_counter() - begun
        self.outcome.findings += self.watch.findings
        if self.truth is not None:
            begun = time.perf_counter()
            self._judge_answers(self.truth)
            self.outcome.seconds["judging"] = time.perf_counter() - begun
        self.outcome.findings.sort(key=lambda finding: finding.step)
        self._count()
        return self.outcome

    def _found(self, what: str) -> None:
        self.outcome.findings.append(Finding("schedule", what, step=self.watch.steps))

    # -- serving ----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        idle = 0
        step = 0
        while step < len(self.workload) or self.watch.unfinished:
            if step < len(self.workload):
                self._happen(self.workload[step])
            step += 1
            if self.only and self.watch.books.get(self.only) and self.watch.books[self.only].reason:
                return
            if not self.watch.unfinished:
                continue
            report = self.engine.step()
            self._note(report)
            self.watch.stepped(report, self.engine.ownership())
            idle = 0 if report.rows else idle + 1
            if idle >= PATIENCE:
                self._found(f"no progress: {len(self.watch.unfinished)} requests wait, and no step is planned")
                return
            done = sum(bool(book.reason) for book in self.watch.books.values())
            self.listener("requests served", done, self.total)
        self.watch.idle(self.engine.ownership())

    def _happen(self, moment: Moment) -> None:
        if moment.budget:
            tokens = max(1, int(moment.budget * self.settings.max_tokens))
            self.engine.set_token_budget(tokens)
            self.watch.budget = tokens
            self.outcome.counts["budget changes"] += 1
        for request in moment.arrivals:
            self.engine.submit(request)
            self.watch.submitted(request)
        rng = random.Random(moment.pick)
        for _ in range(moment.aborts):
            if alive := self.watch.unfinished:
                name = rng.choice(alive)
                self.engine.abort(name)
                self.watch.aborted(name)
        for _ in range(moment.preemptions):
            running = [name for name in self.watch.unfinished if self.watch.books[name].slot is not None]
            if running:
                name = rng.choice(running)
                if self.engine.preempt(name):
                    self.outcome.counts["preemptions by request"] += 1
                self.watch.preempted(name)

    def _note(self, report: Any) -> None:
        counts, rows = self.outcome.counts, report.rows
        contexts = sum(row.is_context for row in rows)
        counts["steps"] += 1
        counts["prefix hits"] += sum(row.cached > 0 and self._enters(row.request) for row in rows)
        counts["preemptions for want of memory"] += len(report.preempted)
        counts["steps replayed as graphs"] += report.replayed
        counts["padding rows"] += report.padding
        counts["context tokens"] += sum(row.new for row in rows if row.is_context)
        counts["decode rows"] += len(rows) - contexts
        counts["mixed steps"] += 0 < contexts < len(rows)
        self.outcome.timeline.append(
            {"contexts": contexts, "decodes": len(rows) - contexts, "tokens": sum(row.new for row in rows)}
        )
        if rows and not contexts:
            self.outcome.decode_seconds.append({"rows": len(rows), **report.seconds})

    def _enters(self, name: str) -> bool:
        return name in self.watch.books and self.watch.books[name].slot is None

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    # -- judging ----------------------------------------------------------------------------------------------------

    def _judge_answers(self, truth: ModelTruth) -> None:
        books = [book for name, book in self.watch.books.items() if not self.only or name == self.only]
        done = 0
        for pack in packs(books, ORACLE_TOKENS[self.model.device.type]):
            for book, told in zip(pack, truth.told([book.tokens for book in pack]), strict=True):
                self.outcome.findings += self._judge(truth, book, told)
                self.outcome.counts["answer tokens judged"] += len(book.chosen)
            done += len(pack)
            self.listener("answers judged", done, len(books))

    def _judge(self, truth: ModelTruth, book: Book, told: Told) -> list[Finding]:
        """What is wrong with one answer, and stays wrong whichever way the routers' near ties went."""
        tracked = self.engine.requests[book.request.id]
        wrong = list(judge(book, tracked.outputs, tracked.logits, told))
        if not wrong:
            return wrong
        for rows in other_answers(truth, book.tokens):
            # A token that was computed twice, as after a preemption, may have gone either way each time.
            still = {found.position for found in judge(book, tracked.outputs, tracked.logits, replace(told, rows=rows))}
            self.outcome.counts["answer tokens explained by a router's near tie"] += sum(
                found.position not in still for found in wrong
            )
            wrong = [found for found in wrong if found.position in still]
            if not wrong:
                break
        return wrong

    def _count(self) -> None:
        counts, books = self.outcome.counts, self.watch.books.values()
        counts["requests"] = len(self.watch.books)
        counts["answer tokens"] = sum(len(book.outputs) for book in books)
        counts["tokens saved by prefix hits"] = self.watch.saved
        counts["steps whose metadata was compared"] = self.watch.steps
        for reason in ("length", "stop", "aborted"):
            counts[f"finished: {reason}"] = sum(book.reason == reason for book in books)


def packs(books: list[Book], tokens: int) -> Iterator[list[Book]]:
    """All books, those of like length together, as many at a time as have so many tokens."""
    pack: list[Book] = []
    for book in sorted(books, key=lambda book: book.length):
        if pack and (len(pack) + 1) * book.length > tokens:
            yield pack
            pack = []
        pack.append(book)
    if pack:
        yield pack


def first_wrong_answer(findings: list[Finding]) -> Finding | None:
    """The earliest step at which an answer is not that of its request alone."""
    wrong = [finding for finding in findings if finding.kind == "answer" and finding.step >= 0]
    return min(wrong, key=lambda finding: (finding.step, finding.request, finding.position), default=None)
