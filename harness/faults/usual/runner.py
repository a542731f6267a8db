"""Every fault before every rule, with calls of every kind; isolated and in parallel (`harness.faults.forked`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness import inflight
from harness.faults import forked, injection
from harness.faults.model import Fault
from harness.faults.trial import CASE_TIMEOUTS
from harness.faults.usual import demonstration, preparing, rules, trial
from harness.faults.usual.inputs import KINDS, Kind
from harness.faults.usual.preparing import Bench
from harness.faults.usual.trial import Outcome, Settings

#: Past its time limit a trial ends itself within one call; this long after it, it is ended.
GRACE = 30.0
#: Seconds for the truths of one subject's calls.
PREPARING = 1800.0


@dataclass
class Measured:
    """What one run found. outcomes: in the order of the faults, kind by kind. alarms: of each bench the calls, and by rule
    those of whose right results the rule said that they are wrong. demonstrated: see `demonstration`."""

    outcomes: list[Outcome]
    calls: dict[Bench, int]
    alarms: dict[Bench, dict[str, int]]
    demonstrated: list[demonstration.Shown]


def run(
    faults: Sequence[Fault], settings: Settings, *, workers: int, listener: Callable[[str, int, int], None]
) -> Measured:
    """``listener`` is told what is being done, how much of it is done and how much there is.

    Raises `harness.faults.injection.AnchorError` before the first trial, and RuntimeError where a subject's calls could not
    be prepared.
    """
    for fault in faults:
        injection.changed_source(fault)
    shutil.rmtree(settings.folder, ignore_errors=True)
    settings.folder.mkdir(parents=True)
    # The longest first, so that nothing long is left alone at the end.
    benches = sorted(
        dict.fromkeys(Bench.of(fault, kind) for fault in faults for kind in KINDS), key=lambda b: b.kind != "ours"
    )
    tasks = [
        forked.Task(f"{b.subject} {b.kind}", preparing.main, (b, settings.cases, settings.seed, settings.folder))
        for b in benches
    ]
    for done, ended in enumerate(forked.run(list(tasks), workers=workers, limit=PREPARING), start=1):
        listener("calls prepared", done, len(tasks))
        if ended.exitcode != 0:
            raise RuntimeError(f"the calls of {ended.task.name} could not be prepared: {forked.death(ended.exitcode)}")
    pairs = {trial.name_of(f, kind): (f, kind) for f in faults for kind in KINDS}
    tasks = [forked.Task(name, trial.main, (f, kind, settings)) for name, (f, kind) in pairs.items()]
    outcomes = {}
    limit = settings.time_limit + CASE_TIMEOUTS["cpu"] + GRACE
    for done, ended in enumerate(forked.run(list(tasks), workers=workers, limit=limit), start=1):
        outcomes[ended.task.name] = _finish(*pairs[ended.task.name], ended, settings)
        listener("faults tried", done, len(tasks))
    prepared = {bench: preparing.load(bench, settings.folder) for bench in benches}
    return Measured(
        [outcomes[name] for name in pairs],
        {bench: len(calls) for bench, calls in prepared.items()},
        {bench: preparing.false_alarms(calls) for bench, calls in prepared.items()},
        [shown for bench, calls in prepared.items() for shown in demonstration.show(bench, calls)],
    )


def _finish(fault: Fault, kind: Kind, ended: forked.Ended, settings: Settings) -> Outcome:
    """Read the outcome, or make one out of the way in which the process ended: every test notices that it died."""
    path = trial.outcome_path(settings, fault, kind)
    if path.exists():
        return Outcome.load(path)
    if ended.exitcode is None:
        return Outcome(fault.id, kind, "error", message=f"ended after {ended.seconds:.0f} s without an answer")
    _, stack = inflight.read(settings.folder / "inflight", trial.name_of(fault, kind))
    message = f"no answer within {CASE_TIMEOUTS['cpu']:g} s" if "Timeout" in stack else forked.death(ended.exitcode)
    return Outcome(fault.id, kind, "died", dict.fromkeys(rules.NAMES, 0), message=message, seconds=ended.seconds)
