"""An engine living through a case, watched by the oracle from its first step to its last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import execution, inflight
from harness.failure import Failure, fail
from serving.answers import Truth, judge
from serving.engine import StepReport
from serving.engine_case import SUBMITTING, Action, EngineCase
from serving.oracle import Finding, Watch
from serving.request import Request
from serving.settings import EngineSettings

SYMPTOMS = {
    "metadata": "wrong metadata",
    "schedule": "wrong schedule",
    "accounting": "wrong accounting",
    "answer": "wrong answer",
}


class Life:
    """One engine and its `Watch`.

    Attributes:
        reports: what each step was. watch: the books.
    """

    def __init__(self, factory: Callable[..., Any], model: Any, settings: EngineSettings) -> None:
        self.model = model
        self.watch = Watch(settings, model.kernels.chunk_size)
        self.engine = ask(lambda: factory(model, settings))
        self.reports: list[StepReport] = []
        self._most = settings.max_tokens

    # -- what is done to it -----------------------------------------------------------------------------------------

    def live(self, case: EngineCase) -> Life:
        """Every action of the case, then steps until nothing waits or runs, then the last accounts."""
        requests = iter(case.requests(self.model.config.vocab_size))
        for action in case.actions:
            self.act(action, requests)
        self.finish()
        # Nothing waits or runs: a step more must find nothing to do.
        self.step()
        return self

    def act(self, action: Action, requests: Any) -> None:
        alive = self.watch.unfinished
        if action.what in SUBMITTING:
            if action.what == "later":
                self.finish()
            for _ in range(action.times):
                self.submit(next(requests))
        elif action.what == "step":
            for _ in range(action.count):
                self.step()
        elif action.what == "budget":
            tokens = 1 + (action.count - 1) % self._most
            ask(lambda: self.engine.set_token_budget(tokens))
            self.watch.budget = tokens
        elif action.what == "finish":
            self.finish()
        elif alive:
            self._end(action.what, alive[-1 - action.count % len(alive)])

    def submit(self, request: Request) -> None:
        ask(lambda: self.engine.submit(request))
        self.watch.submitted(request)

    def _end(self, what: str, name: str) -> None:
        done = ask(lambda: getattr(self.engine, what)(name))
        running = self.watch.books[name].slot is not None
        wanted = what == "abort" or running
        if done != wanted:
            fail("wrong schedule", f"{what}({name!r}) says {done}, expected {wanted}", mark=what)
        if what == "abort":
            self.watch.aborted(name)
        elif done:
            self.watch.preempted(name)
        self._account()

    def step(self) -> StepReport:
        report: StepReport = ask(self.engine.step)
        self.reports.append(report)
        self.watch.stepped(report, ask(self.engine.ownership))
        self._require_nothing_found()
        if self.watch.unfinished and not report.rows:
            fail("stuck", f"step {len(self.reports) - 1} computes nothing, and {say(self.watch.unfinished)} unfinished")
        return report

    def finish(self) -> None:
        """Steps until nothing waits or runs: no more of them than if each token were computed alone and many times over."""
        books = [book for book in self.watch.books.values() if not book.reason]
        most = 20 + 4 * sum(len(book.request.prompt) + book.request.max_new_tokens for book in books) * (1 + len(books))
        for _ in range(most):
            if not self.watch.unfinished:
                return
            self.step()
        if self.watch.unfinished:
            fail("stuck", f"{say(self.watch.unfinished)} unfinished after {most} steps")

    # -- what is judged ---------------------------------------------------------------------------------------------

    def _account(self) -> None:
        self.watch.idle(ask(self.engine.ownership))
        self._require_nothing_found()

    def _require_nothing_found(self) -> None:
        if self.watch.findings:
            found(self.watch.findings)

    def answers(self) -> dict[str, list[int]]:
        """Request to answer, as the engine has it."""
        return {name: list(self.engine.requests[name].outputs) for name in self.watch.books}

    def require_right(self, truth: Truth) -> None:
        """Every answer, those that were cut off too, is that of the request alone."""
        findings: list[Finding] = []
        for name, book in self.watch.books.items():
            tracked = self.engine.requests[name]
            findings += judge(book, tracked.outputs, tracked.logits, truth)
        if findings:
            found(findings)


def ask(body: Callable[[], Any]) -> Any:
    """Call an engine. Whatever it raises is a finding about the engine."""
    try:
        with inflight.watched():
            return body()
    except Failure:
        raise
    except Exception as error:  # noqa: BLE001
        execution.raised(error, "engine")


def found(findings: list[Finding]) -> None:
    """Raise the failure of the first finding."""
    first = findings[0]
    others = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    fail(SYMPTOMS[first.kind], f"{first}{others}", details="\n".join(str(finding) for finding in findings[:20]))


def say(names: list[str]) -> str:
    return ("request " if len(names) == 1 else "requests ") + ", ".join(names)
