"""The compile matrix: every kernel that a subject launches, for every architecture, dtype and published shape.

Subjects are called in worker processes, which say what they would launch; then each distinct kernel is compiled once, and
the cells that share it share its figures.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from harness import operators
from harness.compiling.device import ARCHITECTURES
from harness.compiling.judge import exceeded, spilled
from harness.compiling.resources import Figures
from harness.compiling.worker import TIMEOUT, Worker, WorkerDied
from harness.subjects import Capabilities, Subject

Status = Literal["passed", "known", "failed", "not_run", "not_covered"]


@dataclass
class Cell:
    """One launch of one subject on one architecture, or the reason why there is none.

    kernel: its name, with ``#2`` for the second launch of that name in a call; empty where nothing is launched. case:
    the shape, in words. variant: equal where Triton compiles once. faults: why it failed, or would have failed were it not
    ``known``: it spills no more than the baseline says. regressions: against the baseline.
    """

    operator: str
    subject: str
    dtype: str
    arch: str
    case: str = ""
    kernel: str = ""
    status: Status = "passed"
    reason: str = ""
    faults: list[str] = field(default_factory=list)
    regressions: list[str] = field(default_factory=list)
    details: str = ""
    variant: str = ""
    figures: Figures | None = None

    @property
    def line(self) -> tuple[str, str, str]:
        """Where it is found in a baseline, but for the architecture."""
        return f"{self.operator}/{self.subject}", f"{self.kernel}", f"{self.dtype}, {self.case}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Task:
    """A request, and the cells that its answer settles."""

    request: dict[str, Any]
    cells: list[Cell]


#: Called with what is being done, how much of it is done, and how much there is.
Listener = Callable[[str, int, int], None]


def run(
    subjects: Iterable[Subject],
    archs: Iterable[str],
    dtypes: Iterable[str] | None = None,
    *,
    jobs: int = 1,
    listener: Listener = lambda *_: None,
    timeout: float = TIMEOUT,
) -> list[Cell]:
    """Every cell of these subjects, settled."""
    cells: list[Cell] = []
    workers = [Worker(timeout) for _ in range(jobs)]
    try:
        captures = [task for subject in subjects for task in _captures(subject, list(archs), dtypes, cells)]
        compilations: dict[str, _Task] = {}

        def captured(task: _Task, answer: dict[str, Any]) -> None:
            for one in _launched(task, answer):
                cells.extend(one.cells)
                for cell in one.cells:
                    compilations.setdefault(cell.variant, _Task(one.request, [])).cells.append(cell)
            cells.extend(_without_launch(task, answer))

        _each(workers, captures, captured, lambda done: listener("calling subjects", done, len(captures)))
        tasks = list(compilations.values())
        _each(workers, tasks, _settle, lambda done: listener("compiling", done, len(tasks)))
    finally:
        for worker in workers:
            worker.close()
    order = {name: place for place, name in enumerate(operators.OPERATORS)}
    return sorted(
        cells, key=lambda c: (order[c.operator], c.subject, c.kernel, c.dtype, c.case, list(archs).index(c.arch))
    )


def _captures(subject: Subject, archs: list[str], dtypes: Iterable[str] | None, cells: list[Cell]) -> Iterable[_Task]:
    """What to ask for one subject. Cells for what it does not claim are settled here."""
    operator, capabilities = operators.get(subject.operator), Capabilities.of(subject.load())
    for dtype in operator.dtypes:
        # Metadata has one dtype, its own: it is not among those that a user chooses from.
        if dtypes is not None and len(operator.dtypes) > 1 and dtype not in dtypes:
            continue
        wanted = []
        for arch in archs:
            cell = Cell(subject.operator, subject.name, dtype, arch, status="not_covered")
            if "cuda" not in capabilities.devices:
                cell.reason = "the subject does not run on cuda"
            elif dtype not in capabilities.dtypes:
                cell.reason = f"the subject does not take {dtype}"
            elif ARCHITECTURES[arch].capability < tuple(capabilities.min_capability):
                cell.reason = f"the subject needs compute capability {capabilities.min_capability}"
            else:
                wanted.append(arch)
                continue
            cells.append(cell)
        if wanted:
            request = {"what": "capture", "operator": subject.operator, "target": subject.target, "dtype": dtype}
            blank = [Cell(subject.operator, subject.name, dtype, arch) for arch in wanted]
            yield _Task({**request, "archs": wanted}, blank)


def _launched(task: _Task, answer: dict[str, Any]) -> Iterable[_Task]:
    """A compilation for each launch that the subject made."""
    seen: dict[tuple[int, str, str], int] = {}
    subject = {name: task.request[name] for name in ("operator", "target", "dtype")}
    for launch in answer.get("launches", ()):
        arch, kernel = launch["arch"], launch["kernel"]
        count = seen[launch["number"], arch, kernel] = seen.get((launch["number"], arch, kernel), 0) + 1
        (blank,) = (c for c in task.cells if c.arch == arch)
        cell = Cell(blank.operator, blank.subject, blank.dtype, arch, launch["case"])
        cell.kernel, cell.variant = kernel + (f"#{count}" if count > 1 else ""), launch["variant"]
        place = {"number": launch["number"], "arch": arch, "order": launch["order"]}
        yield _Task({"what": "compile", **subject, **place}, [cell])


def _without_launch(task: _Task, answer: dict[str, Any]) -> Iterable[Cell]:
    """Cells for what could not be called, and for subjects that launch nothing."""
    for blank in task.cells:
        place = (blank.operator, blank.subject, blank.dtype, blank.arch)
        if "raised" in answer:
            yield Cell(*place, status="not_run", reason=answer["raised"], details=answer.get("details", ""))
            continue
        obstacles = [o for o in answer["obstacles"] if o["arch"] == blank.arch]
        for obstacle in obstacles:
            yield Cell(*place, case=obstacle["case"], status="not_run", reason=obstacle["reason"])
        if not obstacles and not any(launch["arch"] == blank.arch for launch in answer["launches"]):
            yield Cell(*place, status="not_covered", reason="launches no Triton kernel")


def _settle(task: _Task, answer: dict[str, Any]) -> None:
    """Figures and verdict for all cells that share one compiled kernel."""
    for cell in task.cells:
        if "figures" in answer:
            cell.figures = Figures(**answer["figures"])
            cell.faults = spilled(cell.figures) + exceeded(cell.figures, ARCHITECTURES[cell.arch])
        else:
            error = str(answer.get("error") or answer["raised"]).strip()
            lines = error.splitlines() or ["no message"]
            # Triton ends its message with what is wrong; the lines before quote the kernel.
            cell.faults = [f"does not compile: {lines[-1] if lines[0].endswith(':') else lines[0]}"]
            cell.details = answer.get("details") or error
        cell.status = "failed" if cell.faults else "passed"


def _each(
    workers: list[Worker],
    tasks: list[_Task],
    settle: Callable[[_Task, dict[str, Any]], None],
    progress: Callable[[int], None],
) -> None:
    """Ask the workers for all tasks. A task that kills its worker is answered with how it died."""
    waiting: queue.SimpleQueue[_Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    lock, done, errors = threading.Lock(), 0, list[BaseException]()
    progress(0)

    def work(worker: Worker) -> None:
        nonlocal done
        while not errors:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answer = worker.ask(task.request)
            except WorkerDied as death:
                answer = {"raised": str(death), "details": death.details}
            with lock:
                try:
                    settle(task, answer)
                except Exception as error:  # noqa: BLE001 - raised again below: an error in a thread is otherwise lost
                    errors.append(error)
                    return
                done += 1
                progress(done)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def summary(cells: list[Cell]) -> dict[str, int]:
    """Counts by status, of kernels compiled, and of cells with a regression."""
    return {
        "cells": len(cells),
        "kernels": len({cell.variant for cell in cells if cell.variant}),
        **{
            name: sum(cell.status == name for cell in cells)
            for name in ("passed", "known", "failed", "not_run", "not_covered")
        },
        "regressed": sum(bool(cell.regressions) for cell in cells),
    }


def exit_status(cells: list[Cell]) -> int:
    """0: every kernel compiled, and within its limits. 1: one failed or regressed. 3: something could not be compiled."""
    counts = summary(cells)
    if counts["failed"]:
        return 1
    nothing = counts["passed"] + counts["known"] == 0 and not any(
        cell.reason == "launches no Triton kernel" for cell in cells
    )
    return 3 if counts["not_run"] or nothing else 0
