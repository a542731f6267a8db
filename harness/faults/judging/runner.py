"""Runs the tests that a fault names, against a copy of the repository with that fault in it.

Before any fault, the same tests must pass in a copy without one: what fails anyway proves nothing. Killed is a fault whose
tests went red by saying no (an assertion, a failed expectation); a test that breaks, does not import or does not end is an
error of the catalogue, because nobody judged anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.faults.judging import checkout
from harness.faults.judging.model import JudgingFault
from harness.faults.verdict import Settings, Verdict, Witness

Listener = Callable[[Verdict], None]
#: Without a fault every test runs to its end, and whole files at once: so many times the limit of a fault.
PATIENCE = 5.0


@dataclass
class Session:
    """One run of pytest. failures: in the order in which tests failed. problem: why there is no answer, or nothing."""

    seconds: float
    passed: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""


def run(faults: Iterable[JudgingFault], settings: Settings, *, workers: int, listener: Listener) -> list[Verdict]:
    """A verdict on every fault, in the order given; ``property`` is the name of the file whose test failed, ``sentence`` the test.

    Raises ValueError where this is no checkout, and `harness.faults.injection.AnchorError` for an anchor that does not occur
    exactly once, before the first test runs.
    """
    faults = list(faults)
    checkout.check(faults)
    shutil.rmtree(settings.folder, ignore_errors=True)
    base = checkout.unchanged(settings.folder)
    with ThreadPoolExecutor(workers) as pool:
        wanted = _by_file(faults)
        sessions = pool.map(
            lambda tests: tested(base, tests, replace(settings, time_limit=PATIENCE * settings.time_limit)),
            wanted.values(),
        )
        sound = dict(zip(wanted, sessions, strict=True))

        def one(fault: JudgingFault) -> Verdict:
            verdict = _judge(fault, base, sound, settings)
            listener(verdict)
            return verdict

        return list(pool.map(one, faults))


def _by_file(faults: list[JudgingFault]) -> dict[str, list[str]]:
    """What must pass without a fault: for each file that some fault names, the whole of it or the tests named."""
    wanted: dict[str, list[str]] = {}
    for test in sorted({test for fault in faults for test in fault.tests}):
        # A whole file sorts before the tests in it.
        tests = wanted.setdefault(checkout.file_of(test), [])
        if tests != [checkout.file_of(test)]:
            tests.append(test)
    return wanted


def _judge(fault: JudgingFault, base: Path, sound: dict[str, Session], settings: Settings) -> Verdict:
    start = time.perf_counter()
    for name in dict.fromkeys(checkout.file_of(test) for test in fault.tests):
        reason = _unsound(sound[name])
        if reason:
            return Verdict(fault, "error", message=f"{name} does not pass without the fault: {reason}")
    root = checkout.planted(fault, base, settings.folder)
    session = tested(root, list(fault.tests), settings)
    verdict = _verdict(fault, session)
    verdict.seconds, verdict.cases = session.seconds, session.passed
    verdict.total_seconds = time.perf_counter() - start
    # Survivors and errors are what there is to look into.
    if verdict.status == "killed":
        shutil.rmtree(root)
    return verdict


def _unsound(session: Session) -> str:
    if session.problem or session.failures:
        return session.problem or f"{session.failures[0]['test']}: {session.failures[0]['message']}"
    return "" if session.passed else "no test of it passed"


def _verdict(fault: JudgingFault, session: Session) -> Verdict:
    if session.problem:
        return Verdict(fault, "error", message=session.problem)
    if not session.failures:
        return Verdict(fault, "survived", message=f"all {session.passed} tests of {', '.join(fault.tests)} passed")
    failure = session.failures[0]
    if not failure["judged"]:
        return Verdict(fault, "error", message=failure["message"], notes=[failure["test"]])
    verdict = Verdict(fault, "survived")
    name = Path(checkout.file_of(failure["test"])).name
    witness = Witness(
        name, failure["symptom"], "", failure["test"], failure["message"], session.seconds, session.passed
    )
    verdict.killed_by(witness)
    return verdict


def tested(root: Path, tests: list[str], settings: Settings) -> Session:
    """Run these tests in the copy at ``root``, to the first failure, in a process with a time limit."""
    report = root / f"reporter-{time.monotonic_ns()}.json"
    command = [
        *(sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", checkout.REPORTER),
        *(f"--hypothesis-seed={settings.seed}", *tests),
    ]
    start = time.perf_counter()
    with (root / "pytest.log").open("a") as log:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=checkout.environment(root, settings.folder, report),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(settings.time_limit)
        except subprocess.TimeoutExpired:
            return Session(time.perf_counter() - start, problem=f"no answer within {settings.time_limit:g} s")
        finally:
            # Tests start processes of their own, in this one's session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - start
    if not report.exists():
        return Session(seconds, problem=f"pytest ended with status {code} and no report; see {root / 'pytest.log'}")
    read = json.loads(report.read_text())
    session = Session(seconds, read["passed"], read["failures"])
    if code not in (0, 1) and not session.failures:
        session.problem = f"pytest ended with status {code}; see {root / 'pytest.log'}"
    return session
