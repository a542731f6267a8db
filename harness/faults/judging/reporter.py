"""A pytest plugin that writes what failed, and how, to the file named by SLUICEGATE_JUDGING_REPORT.

It is copied out of this package and loaded alone, so it imports nothing of it: what it reports on is this package, changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis.errors import NoSuchExample

#: How a test says no. A search through a generator's draws that finds nothing says so by its own exception.
SAYS_NO = (AssertionError, pytest.fail.Exception, NoSuchExample)
_failures: list[dict[str, Any]] = []
_passed = 0


def _judged(error: BaseException) -> bool:
    """Whether the test itself said no, rather than something breaking under it."""
    if isinstance(error, BaseExceptionGroup):  # Hypothesis found several
        return all(_judged(one) for one in error.exceptions)
    return isinstance(error, SAYS_NO)


def _add(test: str, when: str, error: BaseException | None, text: str) -> None:
    kind = "" if error is None else type(error).__name__
    _failures.append(
        {
            "test": test,
            "judged": when == "call" and error is not None and _judged(error),
            "symptom": kind,
            "message": f"{when}: {kind}: {text}"[:2000],
        }
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    global _passed
    report: Any = yield
    if report.failed:
        error = None if call.excinfo is None else call.excinfo.value
        _add(item.nodeid, report.when, error, str(error) or report.longreprtext)
    _passed += report.when == "call" and report.passed
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _add(report.nodeid, "collection", None, report.longreprtext)


def pytest_sessionfinish() -> None:
    path = Path(os.environ["SLUICEGATE_JUDGING_REPORT"])
    path.write_text(json.dumps({"passed": _passed, "failures": _failures}))
