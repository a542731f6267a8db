"""One fault on trial, in a process of its own: the properties run until one finds it or time is up."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from harness import inflight, interpreter, operators
from harness.case import AnyCase
from harness.cell import Cell, CellResult
from harness.execution import DeviceLost, device_lost
from harness.failure import Failure, FailureRecord
from harness.faults import injection, schedule
from harness.faults.model import GENERATED, Fault

#: Seconds after which one case counts as hung.
CASE_TIMEOUT = 20.0
#: How the note begins that a trial leaves when the device is lost.
DEVICE_LOST = "device lost"
#: What Triton raises for source that is no valid kernel. Everybody would notice; no fault was proved to be found.
INVALID = ("CompilationError", "InterpreterError")


@dataclass(frozen=True)
class Settings:
    """What the trials of one run share.

    time_limit: seconds for a fault. shrink_seconds: the most that Hypothesis spends on making a case smaller, and again
    the most that the hand-made passes of `harness.shrink` spend.
    """

    device: str
    seed: int
    folder: Path
    time_limit: float = 60.0
    shrink_seconds: float = 0.75


@dataclass
class Verdict:
    """What became of a fault.

    status: ``killed``, ``survived``, ``unseen`` (this tier cannot see it), ``equivalent`` (proven to change nothing),
    ``invalid`` (generated, and neither Python nor a kernel) or ``error``. seconds: from the start of the trial to the
    first failing case; cases: judged until then, over all properties.
    """

    fault: Fault
    status: str
    property: str = ""
    symptom: str = ""
    dtype: str = ""
    sentence: str = ""
    message: str = ""
    seconds: float = 0.0
    total_seconds: float = 0.0
    cases: int = 0
    case: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        data = {name: value for name, value in asdict(self).items() if name != "fault"}
        return {**self.fault.to_json(), **data}

    def save(self, path: Path) -> None:
        """Whole or not at all: the parent reads it when this process is gone, however it went."""
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self)), encoding="utf-8")
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Verdict:
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(Fault.from_json(data.pop("fault")), **data)


class TrialCell(Cell):
    """A cell that ends its process at once when the device is lost: nothing after that says anything about a case."""

    def judge(self, case: AnyCase) -> None:
        try:
            super().judge(case)
        except DeviceLost as lost:
            inflight.note(f"{DEVICE_LOST}: {lost}")
            os._exit(1)


def verdict_path(settings: Settings, fault: Fault) -> Path:
    return settings.folder / f"{fault.file_name}.json"


def main(fault: Fault, settings: Settings) -> None:
    """The child process: a trial whose verdict goes to disk, and whose chatter goes to a log beside it."""
    log = (settings.folder / f"{fault.file_name}.log").open("w")
    os.dup2(log.fileno(), sys.stdout.fileno() if _real(sys.stdout) else 1)
    os.dup2(log.fileno(), sys.stderr.fileno() if _real(sys.stderr) else 2)
    torch.set_num_threads(1)
    inflight.start(settings.folder / "inflight", fault.file_name, CASE_TIMEOUT)
    start = time.perf_counter()
    try:
        interpreter.repair()
        with injection.injected(fault, settings.folder / "packages" / fault.file_name) as target:
            verdict = run(fault, target, settings)
    except injection.ImportFailure:
        verdict = Verdict(fault, _unusable(fault), message=traceback.format_exc())
    except Exception:  # noqa: BLE001 - an error of the harness is a verdict too: nothing was proved
        verdict = Verdict(fault, "error", message=traceback.format_exc())
    inflight.unwatch()
    verdict.total_seconds = time.perf_counter() - start
    verdict.seconds = verdict.seconds or verdict.total_seconds
    verdict.save(verdict_path(settings, fault))


def _unusable(fault: Fault) -> str:
    """Someone wrote a catalogued fault, and must correct it; a generated one is one mutation too many, no more."""
    return "invalid" if fault.kind == GENERATED else "error"


def _real(stream: Any) -> bool:
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False


def run(fault: Fault, target: str, settings: Settings) -> Verdict:
    """Judge the changed subject by one cell after the other."""
    start = time.perf_counter()
    verdict = Verdict(fault, "survived")
    blind: set[str] = set()
    for planned in schedule.cells(fault, target, settings.device, settings.seed):
        if planned.prop.name in blind:
            continue
        if time.perf_counter() - start > settings.time_limit:
            verdict.notes.append(f"out of time after {settings.time_limit:g} s, before {planned.prop.name}")
            break
        cell = TrialCell(planned.spec, planned.prop)
        cell.shrink_seconds = cell.polish_seconds = settings.shrink_seconds
        result = cell.run()
        verdict.cases += result.failure.examples if result.failure else result.cases
        if result.failure is None:
            if result.status == "not_run":
                verdict.notes.append(f"{planned.prop.name}: {result.reason}")
            continue
        if result.failure.symptom == "raised" and any(name in result.failure.message for name in INVALID):
            verdict.status = _unusable(fault)
            verdict.message = f"the fault is no valid kernel: {result.failure.message}"
            break
        if _holds_without(fault, planned, result):
            return _killed(verdict, result.failure, cell.first_failure_at - start)
        # The property finds the same in the unchanged subject, so it says nothing about this fault.
        blind.add(planned.prop.name)
        verdict.notes.append(f"{planned.prop.name} fails without the fault too: {result.failure.message}")
    verdict.seconds = time.perf_counter() - start
    return verdict


def _killed(verdict: Verdict, failure: FailureRecord, seconds: float) -> Verdict:
    verdict.status, verdict.seconds = "killed", seconds
    for name in ("property", "symptom", "dtype", "sentence", "message", "case"):
        setattr(verdict, name, getattr(failure, name))
    return verdict


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


def of_death(fault: Fault, settings: Settings, symptom: str, message: str) -> Verdict:
    """The verdict on a fault whose process died: killed, by the case that was running, unless there was none."""
    entry, stack = inflight.read(settings.folder / "inflight", fault.file_name)
    if entry is None:
        return Verdict(fault, "error", message=f"{message}, before its first case")
    operator = operators.get(entry["spec"]["operator"])
    return Verdict(
        fault,
        "killed",
        property=entry["spec"]["property"],
        symptom=symptom,
        dtype=entry["spec"]["dtype"],
        sentence=operator.describe(operator.case_from_json(entry["case"])),
        message=message,
        case=entry["case"],
        notes=[f"not shrunk: the process was gone\n{stack}".strip()],
    )
