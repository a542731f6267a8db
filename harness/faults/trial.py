"""One fault on trial, in a process of its own: the properties run until enough of them find it or the tier's cases are used up."""

from __future__ import annotations

import os
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

import torch

from harness import inflight, interpreter, operators
from harness.case import AnyCase
from harness.cell import Cell, CellResult
from harness.execution import DeviceLost, device_lost
from harness.failure import Failure, FailureRecord
from harness.faults import injection, schedule
from harness.faults.model import GENERATED, Fault
from harness.faults.verdict import Settings, Verdict, Witness, partial, partial_path, verdict_path

#: Seconds after which one case counts as hung. On a GPU the changed kernels are compiled within a case, all anew, beside those
#: of the other trials: with 20 s, one case "hung" with eight faults that it has nothing to do with.
CASE_TIMEOUTS = {"cpu": 20.0, "cuda": 90.0}
#: How the note begins that a trial leaves when the device is lost.
DEVICE_LOST = "device lost"
#: What Triton raises for source that is no valid kernel. Everybody would notice; no fault was proved to be found.
INVALID = ("CompilationError", "InterpreterError")


class _Enough(BaseException):
    """The time for making a failure smaller is over. Nothing that Hypothesis would catch, since it is to stop at once."""


class TrialCell(Cell):
    """A cell in a hurry.

    It stops when its time to shrink is over, where Hypothesis would go on drawing a thousand cases that nobody judges. And it
    ends its process at once when the device is lost: nothing after that says anything about a case.
    """

    #: The last failure of the first one's kind: while shrinking, that is the smallest.
    _smallest: tuple[AnyCase, Failure] | None = None

    def stop_after(self, seconds: float) -> None:
        """Judge no case any more after so many seconds, unless a failure has been found and is being made smaller."""
        self._deadline = time.monotonic() + seconds

    def judge(self, case: AnyCase) -> None:
        if self._smallest is not None and time.monotonic() > self._deadline:
            raise _Enough
        try:
            super().judge(case)
        except DeviceLost as lost:
            inflight.note(f"{DEVICE_LOST}: {lost}")
            os._exit(1)
        except Failure as failure:
            if self._smallest is None or type(self._smallest[1]) is type(failure):
                self._smallest = case, failure
            raise

    def _search(self) -> tuple[AnyCase, Failure, str] | None:
        try:
            return super()._search()
        except _Enough:
            assert self._smallest is not None
            return (*self._smallest, "")


def main(fault: Fault, settings: Settings, earlier: Verdict | None = None) -> None:
    """The child process: a trial whose verdict goes to disk, and whose chatter goes to a log beside it.

    earlier: what is known from a process of this fault that died; the trial goes on from there.

    The clock starts when everything is imported (the server that this process was forked from has done so) and, on a GPU,
    when the unchanged subject has met a case or two: a context, and what CUDA loads at the first call of each of torch's own
    kernels, say nothing about how soon a property finds the fault.
    """
    log = (settings.folder / f"{fault.file_name}.log").open("a")
    os.dup2(log.fileno(), sys.stdout.fileno() if _real(sys.stdout) else 1)
    os.dup2(log.fileno(), sys.stderr.fileno() if _real(sys.stderr) else 2)
    torch.set_num_threads(1)
    inflight.start(settings.folder / "inflight", fault.file_name, CASE_TIMEOUTS[settings.device])
    if settings.device == "cuda" and earlier is None:
        _warm_up(fault, settings)
    start = time.perf_counter()
    before = earlier.total_seconds if earlier else 0.0
    try:
        interpreter.repair()
        with injection.injected(fault, settings.folder / "packages" / fault.file_name) as target:
            verdict = run(fault, target, settings, earlier)
    except injection.ImportFailure:
        verdict = Verdict(fault, _unusable(fault), message=traceback.format_exc())
    except Exception:  # noqa: BLE001 - an error of the harness is a verdict too: nothing was proved
        verdict = _after_error(fault, settings, traceback.format_exc())
    inflight.unwatch()
    verdict.total_seconds = before + time.perf_counter() - start
    verdict.seconds = verdict.seconds or verdict.total_seconds
    verdict.save(verdict_path(settings, fault))


def _warm_up(fault: Fault, settings: Settings) -> None:
    """Let the unchanged subject meet the first cases of its first cell. What they say is another trial's business."""
    first = next(schedule.cells(fault, fault.subject, settings.device, settings.seed, settings.tier), None)
    if first is not None:
        Cell(first.spec, first.prop).run()
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()


def _after_error(fault: Fault, settings: Settings, details: str) -> Verdict:
    """What a witness has proved stays proved."""
    known = partial(settings, fault)
    if known is None:
        return Verdict(fault, "error", message=details)
    known.notes.append(f"no further witness sought after an error of the harness: {details.strip().splitlines()[-1]}")
    return known


def _unusable(fault: Fault) -> str:
    """Someone wrote a catalogued fault, and must correct it; a generated one is one mutation too many, no more."""
    return "invalid" if fault.kind == GENERATED else "error"


def _real(stream: Any) -> bool:
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False


def run(fault: Fault, target: str, settings: Settings, earlier: Verdict | None = None) -> Verdict:
    """Judge the changed subject by one cell after the other, until enough properties have killed it or all cases are used up."""
    verdict = earlier or Verdict(fault, "survived")
    # As if an earlier process of this trial had not ended.
    start = time.perf_counter() - verdict.total_seconds
    blind = {witness.property for witness in verdict.witnesses}
    cases, aside = max((witness.cases for witness in verdict.witnesses), default=0), 0.0
    starved = ""
    for planned in schedule.cells(fault, target, settings.device, settings.seed, settings.tier):
        if planned.prop.name in blind:
            continue
        cell = TrialCell(planned.spec, planned.prop)
        cell.stop_after(start + settings.time_limit - time.perf_counter())
        cell.shrink_seconds = cell.polish_seconds = settings.shrink_seconds
        result = cell.run()
        cases += result.failure.examples if result.failure else result.cases
        if result.failure is None:
            if result.status == "not_run":
                starved = f"{planned.prop.name}: {result.reason}"
                verdict.notes.append(starved)
            if time.perf_counter() - start > settings.time_limit:
                verdict.notes.append(f"out of time after {settings.time_limit:g} s, in {planned.prop.name}")
                break
            continue
        blind.add(planned.prop.name)
        if result.failure.symptom == "raised" and any(name in result.failure.message for name in INVALID):
            if verdict.witnesses:
                continue
            verdict.status = _unusable(fault)
            verdict.message = f"the fault is no valid kernel: {result.failure.message}"
            break
        if not _holds_without(fault, planned, result):
            # The property finds the same in the unchanged subject, so it says nothing about this fault.
            verdict.notes.append(f"{planned.prop.name} fails without the fault too: {result.failure.message}")
            continue
        verdict.killed_by(_witness(result.failure, cell.first_failure_at - start - aside, cases))
        if len(verdict.witnesses) >= settings.witnesses:
            break
        # What follows may end this process.
        verdict.save(partial_path(settings, fault))
        aside += time.perf_counter() - cell.first_failure_at
    else:
        verdict.exhausted = not starved
    if not verdict.witnesses:
        verdict.seconds, verdict.cases = time.perf_counter() - start, cases
        if starved and verdict.status == "survived":
            # The property that did not run may be the one that would have found it.
            verdict.status, verdict.message = "error", starved
    return verdict


def _witness(failure: FailureRecord, seconds: float, cases: int) -> Witness:
    names = ("property", "symptom", "dtype", "sentence", "message", "case")
    return Witness(seconds=seconds, cases=cases, **{name: getattr(failure, name) for name in names})


def _holds_without(fault: Fault, planned: schedule.Planned, result: CellResult) -> bool:
    """Whether the unchanged subject passes the case that the changed one fails."""
    assert result.failure is not None
    healthy = Cell(replace(planned.spec, target=fault.subject), planned.prop)
    fields = {name: value for name, value in result.failure.case.items() if name != "target"}
    try:
        planned.prop.body(healthy.context, healthy.operator.case_from_json(fields))
    except Failure:
        return False
    except Exception as error:
        # What the fault did to the device outlives it: nothing can be tried there any more, and that is the fault's doing.
        if not device_lost(error):
            raise
    return True


def of_death(fault: Fault, settings: Settings, symptom: str, message: str, seconds: float) -> Verdict:
    """The verdict on a fault whose process died: killed, by the case that was running, unless there was none.

    seconds: that the process lived.
    """
    verdict = partial(settings, fault) or Verdict(fault, "survived")
    entry, stack = inflight.read(settings.folder / "inflight", fault.file_name)
    if entry is None:
        if not verdict.witnesses:
            return Verdict(fault, "error", message=f"{message}, before its first case")
        verdict.notes.append(f"no further witness sought: {message}, before its first case")
        return verdict
    operator = operators.get(entry["spec"]["operator"])
    verdict.killed_by(
        Witness(
            property=entry["spec"]["property"],
            symptom=symptom,
            dtype=entry["spec"]["dtype"],
            sentence=operator.describe(operator.case_from_json(entry["case"])),
            message=message,
            seconds=seconds,
            # Nobody counted those of the process that is gone.
            cases=0,
            case=entry["case"],
        )
    )
    verdict.notes.append(f"{entry['spec']['property']}: not shrunk, the process was gone\n{stack}".strip())
    return verdict
