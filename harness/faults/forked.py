"""Functions run in processes of their own, forked from a warm server, some at a time, each with a limit on its time.

The server is multiprocessing's ``forkserver``: it has imported everything (`harness.faults.warm`) and has never touched
CUDA, so a fork costs milliseconds and may open a CUDA context of its own. What kills a process, or hangs it, ends nothing
else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from typing import Any


@dataclass(frozen=True)
class Task:
    name: str
    target: Callable[..., None]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Ended:
    """exitcode: None where the process was late and has been killed. seconds: that it took."""

    task: Task
    exitcode: int | None
    seconds: float


def run(waiting: list[Task], *, workers: int, limit: float) -> Iterator[Ended]:
    """Every task, ``workers`` at a time, as each ends; one that takes more than ``limit`` seconds is killed.

    Tasks are taken from the front of ``waiting``, to which more may be added while this goes on.
    """
    running: dict[int, tuple[Task, ForkServerProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task = waiting.pop(0)
                process = _start(task)
                running[process.sentinel] = (task, process, time.monotonic())
            wait(list(running), timeout=1.0)
            for sentinel, (task, process, started) in list(running.items()):
                seconds = time.monotonic() - started
                code = process.exitcode
                if code is None and seconds <= limit:
                    continue
                if code is None:
                    process.kill()
                process.join()
                del running[sentinel]
                yield Ended(task, code, seconds)
    finally:
        for _, process, _ in running.values():
            process.kill()


def _start(task: Task) -> ForkServerProcess:
    # Read when the server starts: one thread in each process, as many processes as there are cores.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.faults.warm"])
    process = context.Process(target=task.target, args=task.arguments, name=f"trial of {task.name}", daemon=False)
    process.start()
    return process


def death(exitcode: int | None) -> str:
    """In words, how a process died."""
    code = exitcode or 0
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"the process died ({reason})"
