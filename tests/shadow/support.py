"""Reading a shadow's counts."""

from __future__ import annotations

from typing import Any

from harness.shadow import Shadow


def counts(of: Shadow) -> dict[str, Any]:
    """The counts when all comparisons have ended; every observed call has become one of the things that it can become."""
    assert of.flush(60), "comparisons did not end"
    report = of.report()
    found: dict[str, Any] = report["counts"]
    ended = found["compared"] + found["dropped"] + found["errors"] + found["raised"] + sum(found["skipped"].values())
    assert ended == found["observed"], report
    return found


def clean(of: Shadow, compared: int) -> None:
    """So many calls were compared, and nothing else happened."""
    found = counts(of)
    assert (found["compared"], found["mismatches"]) == (compared, 0), of.report()
    assert (found["dropped"], found["errors"], found["skipped"]) == (0, 0, {}), of.report()
