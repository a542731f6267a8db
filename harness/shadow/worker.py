"""The background thread in which calls are compared, one for all shadows of a process."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: A thread that works for the host goes first, where the system can be told.
NICENESS = 10

_busy = threading.local()


def busy() -> bool:
    """Whether this thread is at the shadow's own work, whose calls are not the host's."""
    return getattr(_busy, "flag", False)


@contextmanager
def own_work() -> Iterator[None]:
    before, _busy.flag = busy(), True
    try:
        yield
    finally:
        _busy.flag = before


class Worker:
    """Runs jobs in order. A job must not raise; how many may wait is its shadow's business."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As new: in a forked child there is no thread, and what waited is the parent's."""
        self._jobs: deque[Callable[[], None]] = deque()
        self._ready = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def stop(self) -> None:
        """Forget what waits, and let the running job end.

        A daemon thread that is still inside torch when the interpreter goes away takes the whole process down with it.
        """
        with self._ready:
            self._jobs.clear()
            self._stopping = True
            self._ready.notify()
        if self._thread is not None:
            self._thread.join()

    def put(self, job: Callable[[], None]) -> None:
        with self._ready:
            if self._stopping:
                raise RuntimeError("the process is ending: no more calls are compared")
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sluicegate-shadow", daemon=True)
                self._thread.start()
            self._ready.notify()

    def _run(self) -> None:
        with suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        with own_work():
            while True:
                with self._ready:
                    while not self._jobs and not self._stopping:
                        self._ready.wait()
                    if self._stopping:
                        return
                    job = self._jobs.popleft()
                job()
                # Nothing of a call outlives its comparison while the next one is waited for.
                del job


WORKER = Worker()
