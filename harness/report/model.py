"""The report as data: what ``report.json`` holds and every other reporter reads."""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import budget
from harness.cell import CellResult
from harness.context import GROUPS
from harness.distribution import RATIO_EDGES, SHARE_EDGES, Distribution
from harness.failure import SYMPTOMS, failure_id
from harness.isolation import find_property
from harness.ledger import Entry, Ledger
from harness.plan import Plan
from harness.verification import Outcome

SCHEMA_VERSION = 1


def environment() -> dict[str, Any]:
    """Versions, GPU and commit: what a figure needs beside it."""
    import hypothesis
    import torch
    import triton

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "hypothesis": hypothesis.__version__,
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit(),
    }


def commit() -> str | None:
    """The checked-out commit, with ``+`` when files differ from it; None outside a git checkout."""
    import os

    given = os.environ.get("SLUICEGATE_COMMIT")
    if given:
        return given
    root = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def build(plan: Plan, outcome: Outcome, ledger: Ledger, *, command: str, started: str, workers: int) -> dict[str, Any]:
    """The whole report from what the cells returned. Statuses are settled here, the ledger's included."""
    cells: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    unexpected: list[Entry] = []
    coverage: dict[str, dict[str, Counter[str]]] = {}
    for result in sorted(outcome.results, key=_reading_order):
        spec = result.spec
        known = ledger.match(result)
        status = "known_failure" if known else result.status
        if result.status == "passed":
            stale = _stale_entry(result, ledger)
            if stale is not None:
                status = "unexpected_pass"
                unexpected.append(stale)
        cells.append(
            {
                "operator": spec.operator,
                "subject": spec.subject,
                "property": spec.property,
                "group": find_property(spec.operator, spec.property).group,
                "device": spec.device,
                "dtype": spec.dtype,
                "status": status,
                "required": not result.reason.endswith("(not required)"),
                "cases": result.cases,
                "seconds": round(result.seconds, 4),
                "judged_seconds": round(result.judged_seconds, 4),
                "reason": result.reason,
                "worst_share": round(result.worst_share, 4),
                "measured": result.measured,
            }
        )
        for axis, counts in result.coverage.items():
            coverage.setdefault(spec.operator, {}).setdefault(axis, Counter()).update(counts)
        if result.failure is not None and not known:
            failure = result.failure
            failure.replay = f"sluicegate replay {Path(plan.out) / 'failures' / (failure.id + '.json')}"
            failures.append(failure.to_json())
    statuses = Counter(c["status"] for c in cells)
    by_operator: Counter[str] = Counter()
    for cell in cells:
        by_operator[cell["operator"]] += cell["cases"]
    matched_or_stale = {e.id for e in [*ledger.matched, *unexpected]}
    return {
        "schema_version": SCHEMA_VERSION,
        "run": {
            "command": command,
            "tier": plan.tier,
            "device": plan.device,
            "seed": plan.seed,
            "groups": list(plan.groups),
            "started": started,
            "seconds": round(outcome.seconds, 2),
            "workers": workers,
        },
        "environment": environment(),
        "summary": {
            "cases": sum(by_operator.values()),
            "passed": statuses["passed"],
            "failed": statuses["failed"] + statuses["unexpected_pass"],
            "not_run": statuses["not_run"],
            "required_not_run": sum(c["status"] == "not_run" and c["required"] for c in cells) + len(outcome.errors),
            "known_failures": statuses["known_failure"],
            "cells": len(cells),
            "cases_by_operator": dict(by_operator),
        },
        "cells": cells,
        "failures": failures,
        "errors": outcome.errors,
        "coverage": {op: {axis: dict(c) for axis, c in axes.items()} for op, axes in coverage.items()},
        "row_errors": row_errors(outcome.results),
        "ledger": {
            "matched": [asdict(e) for e in ledger.matched],
            "unexpected_passes": [asdict(e) for e in unexpected],
            "unmatched": [asdict(e) for e in ledger.entries if e.id not in matched_or_stale],
        },
    }


#: Of the rows, this part is at or below the number that is reported under this name.
PARTS = {"median": 0.5, "p99": 0.99, "p99.99": 0.9999}


def row_errors(results: Iterable[CellResult]) -> dict[str, Any]:
    """The errors of all judged rows by operator, subject, dtype and tensor: numbers, and the counts they are read from.

    ``shares`` and ``ratios`` have one count for each edge, of what lies between the edge before and it, and one for what is
    above the last. A quantile is the upper edge of its bin; beyond the last edge, of shares the largest, which is exact, and of
    ratios ``inf``.
    """
    merged: dict[tuple[str, str, str, str], Distribution] = {}
    for result in results:
        for name, counted in result.row_errors.items():
            by, _, tensor = name.rpartition(" ")
            key = (result.spec.operator, by or result.spec.subject, result.spec.dtype, tensor)
            merged.setdefault(key, Distribution()).add(counted)
    return {
        "factor": budget.FACTOR,
        "ratio_floor_ulps": budget.RATIO_FLOOR_ULPS,
        "share_edges": list(SHARE_EDGES),
        "ratio_edges": [round(edge, 6) for edge in RATIO_EDGES],
        "tensors": [
            {
                "operator": operator,
                "subject": subject,
                "dtype": dtype,
                "tensor": tensor,
                "rows": of.rows,
                "share": {name: _plain(of.share(part)) for name, part in PARTS.items()} | {"max": _plain(of.largest)},
                "ratio": {"rows": sum(of.ratios)} | {name: _plain(of.ratio(part)) for name, part in PARTS.items()},
                "shares": of.shares,
                "ratios": of.ratios,
            }
            for (operator, subject, dtype, tensor), of in sorted(merged.items())
            if of.rows
        ],
    }


def _plain(value: float) -> float | str:
    """Four digits; JSON has no infinity, which travels as a word."""
    return float(f"{value:.4g}") if value - value == 0 else str(value)


def _reading_order(result: CellResult) -> tuple[str, int, str]:
    """By operator; within it, equivalence first: what it says is the easiest to act on."""
    spec = result.spec
    return spec.operator, GROUPS.index(find_property(spec.operator, spec.property).group), spec.key


def _stale_entry(result: CellResult, ledger: Ledger) -> Entry | None:
    """An entry that lists a failure of this very cell, which has just passed."""
    spec = result.spec
    ids = {failure_id(spec.operator, spec.subject, spec.property, spec.dtype, spec.device, s) for s in SYMPTOMS}
    return next((e for e in ledger.entries if e.id in ids), None)


def exit_status(report: dict[str, Any]) -> int:
    """0: all that was required ran and held. 1: a property failed. 3: something required did not run."""
    if report["summary"]["failed"]:
        return 1
    nothing_ran = report["summary"]["cases"] == 0
    return 3 if report["summary"]["required_not_run"] or nothing_ran else 0


def save(report: dict[str, Any], out: Path) -> None:
    """``report.json`` and one file a failure, which ``sluicegate replay`` reads."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "failures").mkdir(exist_ok=True)
    for failure in report["failures"]:
        (out / "failures" / f"{failure['id']}.json").write_text(json.dumps(failure, indent=1) + "\n")
