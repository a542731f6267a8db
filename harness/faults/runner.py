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
    running: dict[int, tuple[Fault, ForkServerProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                fault = waiting.pop(0)
                process = _start(fault, settings)
                running[process.sentinel] = (fault, process, time.monotonic())
            wait(list(running), timeout=1.0)
            for sentinel, (fault, process, started) in list(running.items()):
                late = time.monotonic() - started > settings.time_limit + trial.CASE_TIMEOUT + GRACE
                if process.exitcode is None and not late:
                    continue
                verdicts[fault.id] = _finish(fault, process, settings, time.monotonic() - started)
                del running[sentinel]
                listener(verdicts[fault.id])
    finally:
        for _, process, _ in running.values():
            process.kill()
    return [verdicts[fault.id] for fault in faults]


def _start(fault: Fault, settings: Settings) -> ForkServerProcess:
    # Read when the server starts: one thread in each process, as many processes as there are cores.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.faults.warm"])
    process = context.Process(target=trial.main, args=(fault, settings), name=f"trial of {fault.id}", daemon=False)
    process.start()
    return process


def _finish(fault: Fault, process: ForkServerProcess, settings: Settings, seconds: float) -> Verdict:
    """Read the verdict, or make one out of the way in which the process ended."""
    late = process.exitcode is None
    if late:
        process.kill()
    process.join()
    path = trial.verdict_path(settings, fault)
    if path.exists():
        return Verdict.load(path)
    if late:
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
        code = process.exitcode or 0
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        symptom, message = "crashed", f"the process died ({reason})"
    verdict = trial.of_death(fault, settings, symptom, message)
    verdict.seconds = verdict.total_seconds = seconds
    return verdict
