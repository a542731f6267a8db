"""Many trials at once: each fault in a process forked from a warm server, with a limit on its time.

The server is multiprocessing's ``forkserver``: it has imported everything (`harness.faults.warm`) and has never touched
CUDA, so a fork costs milliseconds and may open a CUDA context of its own. What kills a trial's process, or hangs it, is
a verdict and ends nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

from harness import inflight
from harness.faults import injection, trial
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
    waiting: list[tuple[Fault, Verdict | None]] = [(f, None) for f in faults if f.id not in verdicts]
    for verdict in verdicts.values():
        listener(verdict)
    running: dict[int, tuple[Fault, ForkServerProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                fault, earlier = waiting.pop(0)
                process = _start(fault, settings, earlier)
                running[process.sentinel] = (fault, process, time.monotonic())
            wait(list(running), timeout=1.0)
            for sentinel, (fault, process, started) in list(running.items()):
                late = time.monotonic() - started > settings.time_limit + trial.CASE_TIMEOUT + GRACE
                if process.exitcode is None and not late:
                    continue
                verdict = _finish(fault, process, settings, time.monotonic() - started)
                del running[sentinel]
                if _goes_on(verdict, settings):
                    waiting.insert(0, (fault, verdict))
                    continue
                verdicts[fault.id] = verdict
                listener(verdict)
    finally:
        for _, process, _ in running.values():
            process.kill()
    return [verdicts[fault.id] for fault in faults]


def _goes_on(verdict: Verdict, settings: Settings) -> bool:
    """Whether a trial whose process died is to look for another witness; which property it died in is known now."""
    died = verdict.status == "killed" and not verdict_path(settings, verdict.fault).exists()
    return died and len(verdict.witnesses) < settings.witnesses and verdict.total_seconds < settings.time_limit


def _start(fault: Fault, settings: Settings, earlier: Verdict | None) -> ForkServerProcess:
    # Read when the server starts: one thread in each process, as many processes as there are cores.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.faults.warm"])
    process = context.Process(
        target=trial.main, args=(fault, settings, earlier), name=f"trial of {fault.id}", daemon=False
    )
    process.start()
    return process


def _finish(fault: Fault, process: ForkServerProcess, settings: Settings, seconds: float) -> Verdict:
    """Read the verdict, or make one out of what is known and of the way in which the process ended."""
    late = process.exitcode is None
    if late:
        process.kill()
    process.join()
    path = verdict_path(settings, fault)
    if path.exists():
        return Verdict.load(path)
    known = partial(settings, fault)
    before = known.total_seconds if known else 0.0
    if late:
        # No single case took as long as its watchdog allows, so nothing hung: the trial as a whole was too slow.
        verdict = known or Verdict(fault, "survived")
        verdict.total_seconds = before + seconds
        verdict.seconds = verdict.seconds or verdict.total_seconds
        verdict.notes.append(f"ended after {seconds:.0f} s without an answer")
        verdict.save(path)
        return verdict
    _, stack = inflight.read(settings.folder / "inflight", fault.file_name)
    if "Timeout" in stack:
        symptom, message = "hung", f"a case gave no answer within {trial.CASE_TIMEOUT:g} s"
    elif stack.startswith(trial.DEVICE_LOST):
        symptom, message = "crashed", stack.strip().splitlines()[0]
    else:
        code = process.exitcode or 0
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        symptom, message = "crashed", f"the process died ({reason})"
    verdict = trial.of_death(fault, settings, symptom, message, before + seconds)
    verdict.total_seconds = before + seconds
    verdict.seconds = verdict.seconds or verdict.total_seconds
    # A process that died before its first case would do so again: nothing more to learn.
    again = len(verdict.witnesses) > (len(known.witnesses) if known else 0)
    verdict.save(partial_path(settings, fault) if again else path)
    return verdict
