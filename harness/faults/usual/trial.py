"""One fault before the rules, given calls of one kind, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness import inflight, interpreter, operators
from harness.faults import injection
from harness.faults.model import Fault
from harness.faults.trial import CASE_TIMEOUTS
from harness.faults.usual import calls, preparing, rules
from harness.faults.usual.inputs import Kind
from harness.faults.usual.preparing import Bench, Prepared
from harness.files import write_whole
from harness.subjects import load_target


@dataclass(frozen=True)
class Settings:
    """What the trials of one run share. cases: of our generator, a dtype. time_limit: seconds for a fault and kind."""

    seed: int
    folder: Path
    cases: int = 60
    time_limit: float = 240.0


@dataclass
class Outcome:
    """What became of a fault before the rules.

    status: ``ran``, ``died`` (caught by every rule) or ``error`` (nothing is known). caught: rule to the number of the call,
    from 0, at which it first rejected what it accepts from the unchanged subject; a rule that caught nothing is not there.
    calls: made. example: the call at which our own rule first caught it, and what each rule saw and said there.
    """

    fault: str
    kind: Kind
    status: str
    caught: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    message: str = ""
    example: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        write_whole(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Outcome:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def name_of(fault: Fault, kind: Kind) -> str:
    return f"{fault.file_name}-{kind}"


def outcome_path(settings: Settings, fault: Fault, kind: Kind) -> Path:
    return settings.folder / f"{name_of(fault, kind)}.json"


def main(fault: Fault, kind: Kind, settings: Settings) -> None:
    """The child process: an outcome that goes to disk. What the subject prints goes to a log beside it."""
    name = name_of(fault, kind)
    log = (settings.folder / f"{name}.log").open("w")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    inflight.start(settings.folder / "inflight", name, CASE_TIMEOUTS["cpu"])
    start = time.perf_counter()
    try:
        interpreter.repair()
        prepared = preparing.load(Bench.of(fault, kind), settings.folder)
        with injection.injected(fault, settings.folder / "packages" / name) as target:
            outcome = run(fault, kind, load_target(target), prepared, settings.time_limit)
    except Exception:  # noqa: BLE001 - an error of the harness: nothing is known of this fault
        outcome = Outcome(fault.id, kind, "error", message=traceback.format_exc())
    inflight.unwatch()
    outcome.seconds = time.perf_counter() - start
    outcome.save(outcome_path(settings, fault, kind))


def run(
    fault: Fault, kind: Kind, function: Callable[..., Any], prepared: list[Prepared], time_limit: float = float("inf")
) -> Outcome:
    """Call the changed subject until every rule has caught it, the calls are used up or the time is."""
    outcome = Outcome(fault.id, kind, "ran")
    deadline = time.perf_counter() + time_limit
    for number, one in enumerate(prepared):
        if len(outcome.caught) == len(rules.NAMES):
            break
        if time.perf_counter() > deadline:
            outcome.message = f"out of time before call {number} of {len(prepared)}"
            break
        outcome.calls += 1
        try:
            got = calls.call(function, kind, one.case)
        except Exception as error:  # noqa: BLE001 - whatever a subject raises, every test sees it
            outcome.message = outcome.message or f"call {number} raised {type(error).__name__}: {error}"[:500]
            said = dict.fromkeys(rules.NAMES, False)
            got = []
        else:
            said = rules.passing(got, one.parts)
        for rule, passed in said.items():
            if not passed and one.passes[rule]:
                outcome.caught.setdefault(rule, number)
        if not outcome.example and not said[rules.BUDGET]:
            outcome.example = _example(number, one, got, said)
    return outcome


def _example(number: int, one: Prepared, got: calls.Got, said: dict[str, bool]) -> dict[str, Any]:
    return {
        "call": number,
        "sentence": operators.get(one.case.operator).describe(one.case),
        "case": one.case.to_json(),
        "passed": [rule for rule, passed in said.items() if passed],
        "figures": rules.figures(got, one.parts) if got else {},
    }
