"""Judging one case in a process of its own, so that a crash or a hang is an answer.

``python -m harness.isolation`` reads one JSON request a line and writes one JSON verdict a line. The parent (`Sandbox`)
starts it, gives it a time limit, and starts a new one when it dies. ``sluicegate replay`` and the shrinking of crashes
both work through it; the worker that found a crash cannot, being dead.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from typing import Any

import torch

from harness import operators
from harness.case import AnyCase, Case
from harness.cell import Cell, CellSpec
from harness.context import Context, Property
from harness.execution import OutOfDeviceMemory, out_of_memory
from harness.failure import Failure, FailureRecord, Row, fail
from harness.subjects import Capabilities, load_target

START_SECONDS = 120.0


def suite(operator: str) -> Any:
    """The module of this operator's property suite."""
    return importlib.import_module(f"properties.test_{operator}")


def find_property(operator: str, name: str) -> Property:
    """The property of this name in the operator's suite."""
    known: tuple[Property, ...] = suite(operator).PROPERTIES
    for prop in known:
        if prop.name == name:
            return prop
    raise ValueError(f"property: {operator} has none called {name!r}; it has {', '.join(p.name for p in known)}")


class Sandbox:
    """A child process that judges cases of one cell."""

    def __init__(self, spec: CellSpec, timeout: float) -> None:
        self.spec = spec
        self.timeout = timeout
        self._child: subprocess.Popen[str] | None = None
        # A file and not a pipe: nobody empties a pipe while a subject prints, and a full one looks like a hang.
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the sandbox; closed with it

    def _start(self) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        if self.spec.device == "cpu":
            environment["TRITON_INTERPRET"] = "1"
        child = subprocess.Popen(
            [sys.executable, "-m", "harness.isolation"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._send(child, {"spec": asdict(self.spec)})
        ready = self._receive(child, START_SECONDS)
        if ready is None or "ready" not in ready:
            _end(child)
            raise RuntimeError(f"the isolated process did not start: {ready or self._tail(0) or 'no answer'}")
        return child

    @staticmethod
    def _send(child: subprocess.Popen[str], message: dict[str, Any]) -> None:
        assert child.stdin is not None
        child.stdin.write(json.dumps(message) + "\n")
        child.stdin.flush()

    @staticmethod
    def _receive(child: subprocess.Popen[str], seconds: float) -> dict[str, Any] | None:
        """The next answer, or None when the child died or took too long.

        Raises:
            OutOfDeviceMemory: the child found no room on the GPU.
        """
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], seconds)
        line = child.stdout.readline() if ready else ""
        answer: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        if answer is not None and "starved" in answer:
            raise OutOfDeviceMemory(answer["starved"])
        return answer

    def judge(self, case: AnyCase) -> None:
        """Raise the `Failure` that this case shows in a process of its own; return when it holds."""
        if self._child is None or self._child.poll() is not None:
            self._child = self._start()
        child = self._child
        printed_before = os.fstat(self._printed.fileno()).st_size
        start = time.monotonic()
        self._send(child, {"case": case.to_json()})
        answer = self._receive(child, self.timeout)
        if answer is not None:
            if "failure" in answer:
                found = answer["failure"]
                rows = [_row(row) for row in found["rows"]]
                fail(found["symptom"], found["message"], rows, details=found["details"], mark="isolated")
            if "error" in answer:
                raise RuntimeError(answer["error"])
            if "died" in answer:
                self._fail_crashed(answer["died"], self._tail(printed_before))
            return
        hung = time.monotonic() - start >= self.timeout
        if hung:
            self._stop()
            fail("hung", f"no answer within {self.timeout:g} s")
        code = child.wait()
        self._stop()
        self._fail_crashed(code, self._tail(printed_before))

    @staticmethod
    def _fail_crashed(code: int, tail: str) -> None:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        fail(
            "crashed", f"the process died ({name})" + (f": {tail.splitlines()[-1][:200]}" if tail else ""), details=tail
        )

    def _tail(self, begin: int, lines: int = 30, limit: int = 20_000) -> str:
        """The last lines that children printed since the byte ``begin``. Read in place: they write at the same offset."""
        end = os.fstat(self._printed.fileno()).st_size
        begin = max(begin, end - limit)
        text = os.pread(self._printed.fileno(), end - begin, begin).decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-lines:])

    def digest(self, case: AnyCase) -> str:
        """The fingerprint of the first call that a new process makes: nothing compiled, nothing cached."""
        child = self._start()
        try:
            self._send(child, {"case": case.to_json(), "digest": True})
            answer = self._receive(child, self.timeout)
        finally:
            _end(child)
            self.close()
        if answer is None or "digest" not in answer:
            fail("crashed", f"the first call of a new process gave no result: {answer}", mark="cold")
        return str(answer["digest"])

    def close(self) -> None:
        """The end of the sandbox. `digest` closes it by itself: it has nothing to keep warm."""
        self._stop()
        self._printed.close()

    def _stop(self) -> None:
        if self._child is not None:
            _end(self._child)
            self._child = None


def _end(child: subprocess.Popen[str]) -> None:
    """End the child and whatever it forked: they share a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _row(data: dict[str, Any]) -> Row:
    def number(value: Any) -> float:
        return float(value)

    return Row(
        data["where"],
        [number(v) for v in data["expected"]],
        [number(v) for v in data["got"]],
        number(data["error"]),
        number(data["allowed"]),
    )


class IsolatedCell(Cell):
    """A cell whose every case is judged in a sandbox; for subjects that were seen to crash or hang."""

    def __init__(self, spec: CellSpec, prop: Property, timeout: float) -> None:
        self.spec = spec
        self.property = replace(prop, body=lambda _, case: self.sandbox.judge(case))
        self.operator = operators.get(spec.operator)
        self.sandbox = Sandbox(spec, timeout)
        # The subject is never called here; what it claims to take still decides which cases are drawn.
        function = load_target(spec.target)
        self.context = Context(self.operator, function, torch.device(spec.device), Capabilities.of(function))
        self._prepare()

    def run(self) -> Any:
        try:
            return super().run()
        finally:
            self.sandbox.close()


def record_of_crash(spec: CellSpec, case: AnyCase, symptom: str, message: str, details: str) -> FailureRecord:
    """A failure for a case whose process is gone."""
    return FailureRecord(
        operator=spec.operator,
        subject=spec.subject,
        property=spec.property,
        symptom=symptom,
        message=message,
        case={"target": spec.target, **case.to_json()},
        sentence=operators.get(spec.operator).describe(case),
        device=spec.device,
        dtype=spec.dtype,
        details=details,
    )


def serve() -> None:
    """The child: a cell, then cases until the parent closes the pipe."""
    from harness import interpreter

    # The subject may print; answers go to the real stdout, everything else to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    spec = CellSpec(**json.loads(sys.stdin.readline())["spec"])
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    interpreter.repair()
    cell = Cell(spec, find_property(spec.operator, spec.property))
    answer({"ready": spec.key})
    for line in sys.stdin:
        request = json.loads(line)
        case = cell.operator.case_from_json(request["case"])
        if spec.device == "cpu":
            # A fork keeps this process warm when the case kills its own; CUDA does not survive one.
            child = os.fork()
            if child:
                _, status = os.waitpid(child, 0)
                if status:
                    answer({"died": os.waitstatus_to_exitcode(status)})
                continue
        answer(_verdict(cell, case, digest=bool(request.get("digest"))))
        if spec.device == "cpu":
            os._exit(0)


def _verdict(cell: Cell, case: AnyCase, *, digest: bool) -> dict[str, Any]:
    try:
        if digest:
            assert isinstance(case, Case)
            return {"digest": cell.context.run(cell.context.batch(case)).digest()}
        cell.property.body(cell.context, case)
    except Failure as failure:
        return {"failure": cell.record(case, failure).to_json()}
    except Exception as error:  # noqa: BLE001 - the parent decides what an error of the harness means
        return {"starved" if out_of_memory(error) else "error": f"{type(error).__name__}: {error}"}
    return {"held": True}


if __name__ == "__main__":
    serve()
