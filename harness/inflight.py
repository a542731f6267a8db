"""What a worker is doing right now, on disk, and the clock that ends it when a subject hangs.

Before each case a worker writes it to its in-flight file; if the process then dies, the parent finds the case there.
The watchdog is `faulthandler.dump_traceback_later`: it runs on a C thread, so it also ends a subject that hangs while
holding the interpreter's lock, and leaves the stack behind.
"""

from __future__ import annotations

import faulthandler
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

DEFAULT_TIMEOUT = 60.0


class _Recorder:
    def __init__(self) -> None:
        self.case_file: IO[str] | None = None
        self.stack_file: IO[str] | None = None
        self.timeout = DEFAULT_TIMEOUT


_recorder = _Recorder()


def start(directory: Path, worker: str, timeout: float) -> None:
    """Record the cases of this process under ``directory`` as ``<worker>.json``; stacks of hangs as ``<worker>.stack``."""
    directory.mkdir(parents=True, exist_ok=True)
    _recorder.case_file = (directory / f"{worker}.json").open("w")
    _recorder.stack_file = (directory / f"{worker}.stack").open("w")
    _recorder.timeout = timeout


def record(entry: dict[str, Any]) -> None:
    """Note the case about to run. Flushed to the kernel, which outlives the process."""
    file = _recorder.case_file
    if file is not None:
        file.seek(0)
        file.truncate()
        file.write(json.dumps(entry))
        file.flush()


@contextmanager
def watched() -> Iterator[None]:
    """End the process, with its stack on disk, when the body takes longer than the time limit of a case."""
    if _recorder.stack_file is None:
        yield
        return
    faulthandler.dump_traceback_later(_recorder.timeout, exit=True, file=_recorder.stack_file)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def read(directory: Path, worker: str) -> tuple[dict[str, Any] | None, str]:
    """The last case of a dead worker, and the stack if its watchdog ended it."""
    case_path, stack_path = directory / f"{worker}.json", directory / f"{worker}.stack"
    text = case_path.read_text() if case_path.exists() else ""
    stack = stack_path.read_text() if stack_path.exists() else ""
    return (json.loads(text) if text else None), stack


def note(text: str) -> None:
    """Leave a line beside the case for the parent, before this process ends itself."""
    if _recorder.stack_file is not None:
        _recorder.stack_file.write(text + "\n")
        _recorder.stack_file.flush()
