"""A report made by hand: one failure, one cell not run, and everything that could break a page."""

from __future__ import annotations

from typing import Any

import pytest

REPLAY = "sluicegate replay out/latest/failures/conv_prefill-packed_equals_alone-with-a-rather-long-name-0123abcd.json"


def cell(prop: str, dtype: str, status: str, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "operator": "conv_prefill",
        "subject": "optimized",
        "property": prop,
        "group": "relations",
        "device": "cpu",
        "dtype": dtype,
        "status": status,
        "required": True,
        "cases": 40,
        "seconds": 1.25,
        "judged_seconds": 1.0,
        "reason": "",
        "worst_share": 0.5,
    }
    return base | changes


@pytest.fixture
def failure() -> dict[str, Any]:
    return {
        "id": "conv_prefill-packed_equals_alone-0123abcd",
        "operator": "conv_prefill",
        "subject": "optimized",
        "property": "packed_equals_alone",
        "symptom": "over budget",
        "message": "α differs <script>alert('x')</script> & \x1b[31mred\x1b[0m \x00\x08\ud800 end",
        "sentence": "2 sequences: 3 fresh tokens in slot 5, 1 resumed token in slot 0; D=8 W=4; bfloat16, 日本語",
        "case": {"target": "m:f", "sequences": [[3, "fresh", 5], [1, "resumed", 0]], "note": "</pre><b>"},
        "device": "cpu",
        "dtype": "bfloat16",
        "rows": [
            {
                "where": "output of sequence 1, row 0, elements 0-5",
                "expected": [0.5, 1.25, -3.0, 1e-9, "inf", "nan"],
                "got": [0.5, "nan", -3.5, 1e-9, "inf", "nan"],
                "error": "inf",
                "allowed": 0.001,
            },
            {"where": "offsets", "expected": [0, 1], "got": [0, 2, 3], "error": "nan", "allowed": "nan"},
        ],
        "details": "\n".join(
            ["Traceback (most recent call last):", *(f"  frame {i} <i>" for i in range(30)), "ValueError: no"]
        ),
        "replay": REPLAY,
        "seconds": 2.5,
        "examples": 17,
    }


@pytest.fixture
def report(failure: dict[str, Any]) -> dict[str, Any]:
    idle: dict[str, Any] = {"cases": 0, "seconds": 0.0, "judged_seconds": 0.0, "worst_share": 0.0}
    cells = [
        cell("equivalence", "float32", "passed", group="equivalence"),
        cell("packed_equals_alone", "bfloat16", "failed"),
        cell("hostile_memory", "float16", "not_run", **idle, reason="the probe failed for <float16>"),
        cell("no_host_sync", "float16", "not_run", **idle, required=False, reason="not claimed (not required)"),
        cell("repeated", "float32", "known_failure", worst_share=0.0),
    ]
    return {
        "schema_version": 1,
        "run": {
            "command": "sluicegate verify conv_prefill --seed 7",
            "tier": "quick",
            "device": "cpu",
            "seed": 7,
            "groups": ["equivalence", "relations"],
            "started": "2026-01-02T03:04:05+00:00",
            "seconds": 61.5,
            "workers": 2,
        },
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "triton": "3.9.0",
            "gpu": None,
            "commit": None,
            "platform": "Linux",
            "hypothesis": "6.140",
        },
        "summary": {
            "cases": 120,
            "passed": 1,
            "failed": 1,
            "not_run": 2,
            "required_not_run": 1,
            "cells": 5,
            "cases_by_operator": {"conv_prefill": 120},
            "known_failures": 1,
        },
        "cells": cells,
        "failures": [failure],
        "errors": [],
        "coverage": {
            "conv_prefill": {
                "length": {str(n): n % 5 + 1 for n in [*range(20), 64, 300]},
                "sequences": {"1": 4, "2": 9},
                "dtype": {"float32": 60, "bfloat16": 60},
                "K x V": {"16x8": 1, "8x16": 2},
                "decay": {"mixed $x_1$ <b>": 3},
            }
        },
        "ledger": {
            "matched": [{"id": "conv_prefill-repeated-9", "tracker": "https://tracker.example/1", "reason": "known"}],
            "unexpected_passes": [],
            "unmatched": [{"id": "gone-0", "tracker": "javascript:alert(1)", "reason": ""}],
        },
    }


@pytest.fixture
def held(report: dict[str, Any]) -> dict[str, Any]:
    """The same run, had everything held."""
    cells = [c for c in report["cells"] if c["status"] == "passed"]
    summary = report["summary"] | {"failed": 0, "not_run": 0, "required_not_run": 0, "known_failures": 0, "cells": 1}
    ledger: dict[str, list[Any]] = {"matched": [], "unexpected_passes": [], "unmatched": []}
    return report | {"cells": cells, "failures": [], "summary": summary, "ledger": ledger}
