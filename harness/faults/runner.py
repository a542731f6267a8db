"""Many trials at once: each fault in a process of its own, with a limit on its time (`harness.faults.forked`).

What kills a trial's process, or hangs it, is a verdict and ends nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable

from harness import inflight
from harness.faults import forked, injection, trial
from harness.faults.model import Fault
from harness.faults.verdict import Settings, Verdict, partial, partial_path, verdict_path

#: Past the time limit a trial ends itself within one case; this long after it, it is ended.
GRACE = 30.0

Listener = Callable[[Verdict], None]


def run(faults: Iterable[Fault], settings: Settings, *, workers: int, listener: Listener) -> list[Verdict]:
    """A verdict on every fault, in the order given.

    Raises `harness.faults.injection.AnchorError` before the first trial when an anchor does not occur exactly once.
    """
    faults = list(faults)
    for fault in faults:
        injection.changed_source(fault)
    shutil.rmtree(settings.folder, ignore_errors=True)
    settings.folder.mkdir(parents=True)
    verdicts = {f.id: Verdict(f, "equivalent", message=f.equivalent) for f in faults if f.equivalent}
    unseen = [f for f in faults if settings.device not in f.tiers and f.id not in verdicts]
    verdicts |= {f.id: Verdict(f, "unseen", message=f.reason) for f in unseen}
    for verdict in verdicts.values():
        listener(verdict)
    by_id = {fault.id: fault for fault in faults}
    tasks = [_task(fault, settings) for fault in faults if fault.id not in verdicts]
    for ended in forked.run(
        tasks, workers=workers, limit=settings.time_limit + trial.CASE_TIMEOUTS[settings.device] + GRACE
    ):
        verdict = _finish(by_id[ended.task.name], ended, settings)
        if _goes_on(verdict, settings):
            tasks.insert(0, _task(verdict.fault, settings, verdict))
            continue
        verdicts[verdict.fault.id] = verdict
        listener(verdict)
    return [verdicts[fault.id] for fault in faults]


def _task(fault: Fault, settings: Settings, earlier: Verdict | None = None) -> forked.Task:
    return forked.Task(fault.id, trial.main, (fault, settings, earlier))


def _goes_on(verdict: Verdict, settings: Settings) -> bool:
    """Whether a trial whose process died is to look for another witness; which property it died in is known now."""
    died = verdict.status == "killed" and not verdict_path(settings, verdict.fault).exists()
    return died and len(verdict.witnesses) < settings.witnesses and verdict.total_seconds < settings.time_limit


def _finish(fault: Fault, ended: forked.Ended, settings: Settings) -> Verdict:
    """Read the verdict, or make one out of what is known and of the way in which the process ended."""
    path, seconds = verdict_path(settings, fault), ended.seconds
    if path.exists():
        return Verdict.load(path)
    known = partial(settings, fault)
    before = known.total_seconds if known else 0.0
    if ended.exitcode is None:
        # No single case took as long as its watchdog allows, so nothing hung: the trial as a whole was too slow.
        verdict = known or Verdict(fault, "survived")
        verdict.total_seconds = before + seconds
        verdict.seconds = verdict.seconds or verdict.total_seconds
        verdict.notes.append(f"ended after {seconds:.0f} s without an answer")
        verdict.save(path)
        return verdict
    _, stack = inflight.read(settings.folder / "inflight", fault.file_name)
    if "Timeout" in stack:
        limit = trial.CASE_TIMEOUTS[settings.device]
        symptom, message = "hung", f"a case gave no answer within {limit:g} s"
    elif stack.startswith(trial.DEVICE_LOST):
        symptom, message = "crashed", stack.strip().splitlines()[0]
    else:
        symptom, message = "crashed", forked.death(ended.exitcode)
    verdict = trial.of_death(fault, settings, symptom, message, before + seconds)
    verdict.total_seconds = before + seconds
    verdict.seconds = verdict.seconds or verdict.total_seconds
    # A process that died before its first case would do so again: nothing more to learn.
    again = len(verdict.witnesses) > (len(known.witnesses) if known else 0)
    verdict.save(partial_path(settings, fault) if again else path)
    return verdict
