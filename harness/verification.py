"""Running a plan: pytest with worker processes underneath, events as they come, dead workers turned into failures."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from harness import inflight, operators
from harness.cell import CellResult, CellSpec
from harness.context import Property
from harness.isolation import IsolatedCell, find_property, record_of_crash, suite
from harness.plan import Plan, cells
from harness.pytest_plugin import RESULT

Listener = Callable[[CellResult], None]


@dataclass
class Outcome:
    """What came back: a result for each cell, and tests that ended without one (errors of the harness itself)."""

    results: list[CellResult] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


class _Controller:
    """Collects the workers' reports; a cell whose worker died becomes a result too."""

    def __init__(self, plan: Plan, listener: Listener, events: Path) -> None:
        self.plan, self.listener = plan, listener
        self.events = events.open("a")
        self.outcome = Outcome()
        self.dead: list[CellResult] = []

    def add(self, result: CellResult) -> None:
        self.outcome.results.append(result)
        self.events.write(json.dumps(result.to_json()) + "\n")
        self.events.flush()
        self.listener(result)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = dict(report.user_properties).get(RESULT)
        if report.when == "teardown":
            return
        if found is not None and (report.when == "call" or report.skipped):
            self.add(CellResult.from_json(json.loads(str(found))))
        elif report.failed and getattr(report, "sluicegate_dead", False) is False:
            self.outcome.errors.append(f"{report.nodeid} ({report.when})\n{report.longreprtext}")

    def pytest_handlecrashitem(self, crashitem: str, report: Any, sched: Any) -> None:
        """A worker died while running this test: read from its in-flight file what it was judging."""
        report.sluicegate_dead = True
        directory = Path(self.plan.out) / "inflight"
        entry, stack = inflight.read(directory, report.node.gateway.id)
        if entry is None:
            self.outcome.errors.append(f"{crashitem}: the worker died before its first case\n{report.longreprtext}")
            return
        spec = CellSpec(**entry["spec"])
        case = operators.get(spec.operator).case_from_json(entry["case"])
        if stack.startswith("device lost"):
            symptom, message = "crashed", stack.strip().splitlines()[0]
        elif "Timeout" in stack:
            symptom, message = (
                "hung",
                f"no answer within {self.plan.case_timeout:g} s; the worker was ended by its watchdog",
            )
        else:
            symptom, message = "crashed", "the worker process died while this case ran"
        result = CellResult(spec, "failed", cases=1, reason=message)
        result.failure = record_of_crash(spec, case, symptom, message, stack)
        inflight.add_death(directory, spec)
        self.dead.append(result)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcome.errors.append(f"collection of {report.nodeid}\n{report.longreprtext}")

    def pytest_internalerror(self, excrepr: Any) -> None:
        self.outcome.errors.append(f"internal error\n{excrepr}")


def properties_folder() -> Path:
    """Where the suites are: the importable package ``properties``."""
    spec = importlib.util.find_spec("properties")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "the package `properties` is not importable; run from the checkout or install it (pip install -e .)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def run(plan: Plan, *, workers: int, listener: Listener) -> Outcome:
    """Run every cell of the plan in worker processes; afterwards look again at those that killed theirs."""
    out = Path(plan.out)
    for stale in ("inflight", "failures"):
        shutil.rmtree(out / stale, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "events.jsonl").unlink(missing_ok=True)
    plan_path = out / "plan.json"
    plan.save(plan_path)
    folder = properties_folder()
    controller = _Controller(plan, listener, out / "events.jsonl")
    start = time.perf_counter()
    arguments = [
        *(str(folder / f"test_{name}.py") for name in plan.operators),
        *("-c", str(Path(__file__).with_name("properties.ini"))),
        *("--rootdir", str(folder.parent)),
        *("-p", "harness.pytest_plugin"),
        *("--sluicegate-plan", str(plan_path)),
        *("-n", str(workers), "--dist", "load", "--maxschedchunk", "1"),
    ]
    # pytest's own output goes to a file: the terminal belongs to the reporters.
    with (out / "pytest.log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        status = pytest.main(arguments, plugins=[controller])
    for result in controller.dead:
        controller.add(_second_look(result, plan))
    controller.events.close()
    outcome = controller.outcome
    # A cell that silently gave no result must not be missing from the count of what did not run.
    came = {result.spec.key for result in outcome.results}
    wanted = [p.spec.key for name in plan.operators for _, p in cells(plan, name, suite(name).PROPERTIES)]
    if not outcome.errors:
        outcome.errors += [f"{key}: the run ended without a result for it" for key in wanted if key not in came]
    outcome.seconds = time.perf_counter() - start
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not outcome.errors:
        outcome.errors.append(f"pytest ended with status {int(status)}; see {out / 'pytest.log'}")
    return outcome


def _second_look(result: CellResult, plan: Plan) -> CellResult:
    """Run the cell again with every case in a process of its own, so that a crash can be shrunk like any failure."""
    failure = result.failure
    if failure is None or failure.symptom != "crashed":
        return result  # each look at a hang costs the whole time limit: its case stays as drawn
    spec = result.spec
    prop: Property = find_property(spec.operator, spec.property)
    try:
        again = IsolatedCell(replace(spec, examples=min(spec.examples, 200)), prop, plan.case_timeout).run()
    except RuntimeError as error:
        again = CellResult(spec, "not_run", reason=str(error))
    if again.status == "not_run":
        failure.details += f"\n(not shrunk: {again.reason})"
        return result
    if again.failure is None:
        failure.message += " (not seen again in isolation: depends on what the worker had done before)"
        return result
    again.failure.details = again.failure.details or failure.details
    return again


def default_workers(device: str) -> int:
    """One a core on a CPU; on a GPU enough to keep it busy without filling its memory with contexts."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores if device == "cpu" else min(12, cores - 2))
