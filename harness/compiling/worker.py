"""A process that calls subjects and compiles kernels, so that a compiler which crashes or hangs is an answer.

``python -m harness.compiling.worker`` reads one JSON request a line and writes one JSON answer a line. It runs without
TRITON_INTERPRET, whatever its parent does: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import Any

from harness import operators
from harness.case import AnyCase, Case, StepCase
from harness.compiling.capture import NotCapturable, launches_in
from harness.compiling.device import ARCHITECTURES
from harness.compiling.resources import compiled
from harness.operators.moe_routing import say_tokens
from harness.subjects import load_target

#: A compilation takes seconds at most; one that takes this long hangs.
TIMEOUT = 300.0
_LINES = 30


class WorkerDied(Exception):
    """The process ended or gave no answer. details: the last lines that it printed."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


class Worker:
    """The parent's end. A process that died is replaced at the next request."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self._child: subprocess.Popen[str] | None = None
        # A file and not a pipe: nobody empties a pipe while a compiler prints, and a full one looks like a hang.
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker; closed with it

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            WorkerDied: there is none.
        """
        if self._child is None:
            self._child = self._start()
        child, begin = self._child, os.fstat(self._printed.fileno()).st_size
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            ready, _, _ = select.select([child.stdout], [], [], self.timeout)
            line = child.stdout.readline() if ready else ""
        except BrokenPipeError:
            ready, line = [child.stdout], ""
        if line.endswith("\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        if not ready:
            self._stop()
            raise WorkerDied(f"no answer within {self.timeout:g} s", self._tail(begin))
        code = child.wait()
        self._stop()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise WorkerDied(f"the compiling process died ({name})", self._tail(begin))

    def close(self) -> None:
        self._stop()
        self._printed.close()

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        return subprocess.Popen(
            [sys.executable, "-m", "harness.compiling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def _stop(self) -> None:
        """End the child and the assemblers that it started: they share a session of their own."""
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._child = None

    def _tail(self, begin: int, limit: int = 20_000) -> str:
        end = os.fstat(self._printed.fileno()).st_size
        begin = max(begin, end - limit)
        text = os.pread(self._printed.fileno(), end - begin, begin).decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-_LINES:])


# -- the child --------------------------------------------------------------------------------------------------------


def label(case: AnyCase) -> str:
    """What tells the cases of one operator and dtype apart: ``H=16 HV=32 K=128 V=128, float32 state, int64 indices``."""
    if isinstance(case, StepCase):
        return f"chunks of {case.chunk_size}"
    assert isinstance(case, Case)
    words = [" ".join(f"{name}={size}" for name, size in case.dims.items())]
    words += [f"{case.state_dtype} state"] if case.state_dtype != case.dtype and len(case.dims) > 1 else []
    # How an expert mixture is launched depends on how many tokens there are.
    words += [say_tokens(case)] if "E" in case.dims else []
    words += ["int64 indices"] if case.layout.wide_indices else []
    words += [f"{k}={v}".replace("_", " ") for k, v in case.options.items() if k in _TOLD and v not in _TOLD[k]]
    return ", ".join(words)


#: Options that change the kernel, and what goes without saying: a convolution has a bias and a router has none.
_TOLD: dict[str, tuple[Any, ...]] = {"activation": ("silu",), "bias": (True, None), "float32_weight": (False,)}


def _launches(operator: str, target: str, case: AnyCase, arch: str) -> Any:
    return launches_in(operators.get(operator), load_target(target), case, ARCHITECTURES[arch])


def _capture(operator: str, target: str, dtype: str, archs: list[str]) -> dict[str, Any]:
    """Every launch of every case, and why some case has none."""
    launches, obstacles = [], []
    for number, case in enumerate(operators.get(operator).compile_cases(dtype)):
        for arch in archs:
            place = {"case": label(case), "number": number, "arch": arch}
            try:
                found = _launches(operator, target, case, arch)
            except NotCapturable as error:
                obstacles.append({**place, "reason": str(error)})
                continue
            for order, launch in enumerate(found):
                variant = hashlib.sha256(launch.key.encode()).hexdigest()
                launches.append({**place, "order": order, "kernel": launch.kernel, "variant": variant})
    return {"launches": launches, "obstacles": obstacles}


def _compile(operator: str, target: str, dtype: str, number: int, arch: str, order: int) -> dict[str, Any]:
    case = next(itertools.islice(operators.get(operator).compile_cases(dtype), number, None))
    launch = _launches(operator, target, case, arch)[order]
    try:
        return {"figures": asdict(compiled(launch))}
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is a finding about the kernel
        return {"error": f"{type(error).__name__}: {error}"}


def serve() -> None:
    """Requests until the parent closes the pipe."""
    # Compilers and subjects print; answers go to the real stdout, everything else to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("what")
        try:
            answer = _capture(**request) if what == "capture" else _compile(**request)
        except Exception as error:  # noqa: BLE001 - the parent decides what an error of the harness means
            answer = {"raised": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
