"""Many trials at once: each fault in a process of its own, with a limit on its time (`harness.faults.forked`).

What kills a trial's process, or hangs it, is a verdict and ends nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable

from harness import inflight
from harness.faults import forked, injection, trial
from harness.faults.model import Fault
from harness.faults.trial import Settings, Verdict

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
    waiting = [f for f in faults if f.id not in verdicts]
    for verdict in verdicts.values():
        listener(verdict)
    by_id = {f.id: f for f in waiting}
    tasks = [forked.Task(f.id, trial.main, (f, settings)) for f in waiting]
    for ended in forked.run(tasks, workers=workers, limit=settings.time_limit + trial.CASE_TIMEOUT + GRACE):
        verdict = _finish(by_id[ended.task.name], ended, settings)
        verdicts[verdict.fault.id] = verdict
        listener(verdict)
    return [verdicts[fault.id] for fault in faults]


def _finish(fault: Fault, ended: forked.Ended, settings: Settings) -> Verdict:
    """Read the verdict, or make one out of the way in which the process ended."""
    path = trial.verdict_path(settings, fault)
    if path.exists():
        return Verdict.load(path)
    seconds = ended.seconds
    if ended.exitcode is None:
        # No single case took as long as its watchdog allows, so nothing hung: the trial as a whole was too slow.
        return Verdict(
            fault, "survived", total_seconds=seconds, notes=[f"ended after {seconds:.0f} s without an answer"]
        )
    _, stack = inflight.read(settings.folder / "inflight", fault.file_name)
    if "Timeout" in stack:
        symptom, message = "hung", f"a case gave no answer within {trial.CASE_TIMEOUT:g} s"
    elif stack.startswith(trial.DEVICE_LOST):
        symptom, message = "crashed", stack.strip().splitlines()[0]
    else:
        symptom, message = "crashed", forked.death(ended.exitcode)
    verdict = trial.of_death(fault, settings, symptom, message)
    verdict.seconds = verdict.total_seconds = seconds
    return verdict
