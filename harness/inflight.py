"""What a worker is doing right now, on disk, and the clock that ends it when a subject hangs.

Before each case a worker writes it to its in-flight file; if the process then dies, the parent finds the case there.
The watchdog is `faulthandler.dump_traceback_later`: it runs on a C thread, so it also ends a subject that hangs while
holding the interpreter's lock, and leaves the stack behind.
"""

from __future__ import annotations

import faulthandler
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.case import AnyCase

if TYPE_CHECKING:
    from harness.cell import CellSpec

DEFAULT_TIMEOUT = 60.0


class _Recorder:
    def __init__(self) -> None:
        self.case_file: int | None = None
        self.stack_file: IO[str] | None = None
        self.timeout = DEFAULT_TIMEOUT
        self.armed_at = float("-inf")


_recorder = _Recorder()
#: Arming starts a thread, which costs as much as a small case. With a long limit it is enough to arm now and then: a case
#: then gets at least this part of it.
_REARM = 0.25
_LONG = 20.0


def start(directory: Path, worker: str, timeout: float) -> None:
    """Record the cases of this process under ``directory`` as ``<worker>.json``; stacks of hangs as ``<worker>.stack``."""
    directory.mkdir(parents=True, exist_ok=True)
    _recorder.case_file = os.open(directory / f"{worker}.json", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    _recorder.stack_file = (directory / f"{worker}.stack").open("w")
    _recorder.timeout = timeout
    # A segmentation fault leaves its stack there too, and not on the terminal.
    faulthandler.enable(file=_recorder.stack_file)


def record(spec_json: str, case: AnyCase) -> None:
    """Note the case about to run. It reaches the kernel at once, which outlives the process."""
    file = _recorder.case_file
    if file is not None:
        data = f'{{"spec": {spec_json}, "case": {json.dumps(case.to_json())}}}'.encode()
        os.pwrite(file, data, 0)
        os.ftruncate(file, len(data))


@contextmanager
def watched() -> Iterator[None]:
    """End the process, with its stack on disk, when the body takes longer than the time limit of a case."""
    if _recorder.stack_file is None:
        yield
        return
    now = time.monotonic()
    if _recorder.timeout < _LONG or now - _recorder.armed_at > _REARM * _recorder.timeout:
        faulthandler.dump_traceback_later(_recorder.timeout, exit=True, file=_recorder.stack_file)
        _recorder.armed_at = now
    try:
        yield
    finally:
        if _recorder.timeout < _LONG:
            unwatch()


def unwatch() -> None:
    """Nothing of a subject runs from here on."""
    faulthandler.cancel_dump_traceback_later()
    _recorder.armed_at = float("-inf")


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


_DEATHS = "deaths.jsonl"


def add_death(directory: Path, spec: CellSpec) -> None:
    """The parent notes that this cell's subject ended a worker."""
    with (directory / _DEATHS).open("a") as file:
        file.write(json.dumps([spec.operator, spec.subject]) + "\n")


def deaths(directory: Path, spec: CellSpec) -> int:
    """How many workers this cell's subject has ended so far."""
    path = directory / _DEATHS
    lines = path.read_text().splitlines() if path.exists() else []
    return lines.count(json.dumps([spec.operator, spec.subject]))
