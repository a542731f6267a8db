"""The page: one self-contained HTML file that needs no script and loads nothing."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.plural import plural
from harness.report import drawings, error_figures
from harness.report.error_figures import dtype_order
from harness.report.rows import compare
from harness.report.text import CellKey, cell_key, cleaned, duration, verdict

#: More than these many properties are not drawn in the drawing of times; the smallest are summed.
MOST_TIMES = 24
#: status -> the mark in the matrix, and the word that a screen reader and the legend say.
MARKS = {
    "passed": ("✓", "passed"),
    "failed": ("✗", "failed"),
    "not_run": ("–", "not run"),
    "missing": ("!", "required, not run"),
    "known_failure": ("k", "known to fail"),
    "unexpected_pass": ("u", "passed unexpectedly"),
}
_AXES = ("length", "sequences", "dtype")


def write_html(report: dict[str, Any], path: Path | str) -> None:
    """Write the page for ``report`` to ``path``; whatever it quotes is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "thousands": "{:,}".format, "plural": plural}
    page = environment.get_template("report.html.j2").render(view(cleaned(report)))
    Path(path).write_text(page, encoding="utf-8")


def view(report: dict[str, Any]) -> dict[str, Any]:
    """What the template reads: the report, and what is drawn or rearranged from it."""
    return {
        "report": report,
        "run": report["run"],
        "summary": report["summary"],
        "verdict": verdict(report),
        "facts": _facts(report),
        "failures": [_failure(failure) for failure in report["failures"]],
        "errors": report.get("errors", []),
        "marks": MARKS,
        "legend": _legend(report["cells"]),
        "matrices": _matrices(report),
        "coverage": {operator: _coverage(axes) for operator, axes in report["coverage"].items()},
        "budgets": _budgets(report["cells"]),
        "dtypes": [(d, i) for i, d in enumerate(_budget_dtypes(report["cells"]))],
        "row_errors": error_figures.figures(report.get("row_errors", {})),
        "times": _times(report["cells"]),
        "not_run": _not_run(report["cells"]),
        "ledger": report["ledger"],
    }


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    run, environment = report["run"], report["environment"]
    named = [
        ("command", run["command"]),
        ("seed", run["seed"]),
        ("tier", run["tier"]),
        ("device", f"{run['device']}, {environment['gpu']}" if environment.get("gpu") else run["device"]),
        ("property groups", ", ".join(run["groups"])),
        ("started", run["started"]),
        ("took", f"{duration(run['seconds'])} with {plural(run['workers'], 'worker')}"),
    ]
    named += [(key, value) for key, value in environment.items() if key != "gpu"]
    return [(key, str(value)) for key, value in named if value not in (None, "")]


def _failure(failure: dict[str, Any]) -> dict[str, Any]:
    return {
        **failure,
        "rows": [compare(row) for row in failure["rows"]],
        "case": json.dumps(failure["case"], indent=1, ensure_ascii=False),
    }


# -- the matrix -------------------------------------------------------------------------------------------------------


def _status(cell: dict[str, Any]) -> str:
    return "missing" if cell["status"] == "not_run" and cell["required"] else cell["status"]


def _legend(cells: list[dict[str, Any]]) -> list[tuple[str, int]]:
    counts = Counter(map(_status, cells))
    return [(status, counts[status]) for status in MARKS if counts[status]]


def _matrices(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One table an operator: properties by subject, device and dtype; a failed cell leads to its card."""
    ids = {cell_key(failure): failure["id"] for failure in report["failures"]}
    operators: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in report["cells"]:
        operators[cell["operator"]].append(cell)
    return [_matrix(name, cells, ids) for name, cells in operators.items()]


def _matrix(operator: str, cells: list[dict[str, Any]], ids: dict[CellKey, str]) -> dict[str, Any]:
    several = len({cell["device"] for cell in cells}) > 1
    columns: dict[tuple[str, str], list[str]] = defaultdict(list)
    properties: dict[str, str] = {}
    found: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for cell in cells:
        dtypes = columns[cell["subject"], cell["device"]]
        if cell["dtype"] not in dtypes:
            dtypes.append(cell["dtype"])
        properties.setdefault(cell["property"], cell["group"])
        found[cell["property"], cell["subject"], cell["device"], cell["dtype"]] = {
            **cell,
            "mark": _status(cell),
            "link": ids.get(cell_key(cell), ""),
        }
    for dtypes in columns.values():
        dtypes.sort(key=dtype_order)
    groups = list(dict.fromkeys(properties.values()))
    return {
        "operator": operator,
        "cases": sum(cell["cases"] for cell in cells),
        "legend": _legend(cells),
        "columns": [(f"{s} on {d}" if several else s, dtypes) for (s, d), dtypes in columns.items()],
        "first": [dtype == dtypes[0] for dtypes in columns.values() for dtype in dtypes],
        "wide": sum(map(len, columns.values())) > 3,
        "rows": [
            {
                "property": name,
                "group": group,
                "cells": [found.get((name, s, d, dtype)) for (s, d), dtypes in columns.items() for dtype in dtypes],
            }
            for name, group in sorted(properties.items(), key=lambda item: groups.index(item[1]))
        ],
    }


# -- drawings ---------------------------------------------------------------------------------------------------------


def _coverage(axes: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Histograms first and then by size, so that drawings of a like height stand side by side."""
    out = []
    for axis, counts in axes.items():
        if not counts:
            continue
        numbers = [int(value) for value in counts if value.isdigit()]
        wide = drawings.is_histogram(axis, counts)
        note = f"{min(numbers)} to {max(numbers):,}" if wide else plural(len(counts), "value")
        svg = Markup(drawings.coverage(axis, counts))
        tried = sum(counts.values())
        out.append({"axis": axis, "note": note, "tried": tried, "svg": svg, "wide": wide, "bars": len(counts)})
    return sorted(out, key=lambda d: (not d["wide"], _AXES.index(d["axis"]) if d["axis"] in _AXES else 9, -d["bars"]))


def _share(cell: dict[str, Any]) -> float:
    share = float(cell["worst_share"])
    return math.inf if math.isnan(share) else share


def _budget_dtypes(cells: list[dict[str, Any]]) -> list[str]:
    return sorted({cell["dtype"] for cell in cells if _share(cell) > 0}, key=dtype_order)


def _budgets(cells: list[dict[str, Any]]) -> list[tuple[str, Markup]]:
    dtypes = _budget_dtypes(cells)
    operators: dict[str, dict[str, dict[str, float]]] = {}
    for cell in sorted(cells, key=lambda c: dtype_order(c["dtype"])):
        if _share(cell) > 0:
            of = operators.setdefault(cell["operator"], {}).setdefault(cell["property"], {})
            of[cell["dtype"]] = max(_share(cell), of.get(cell["dtype"], 0.0))
    out = []
    for operator, shares in sorted(operators.items()):
        ordered = dict(sorted(shares.items(), key=lambda item: -max(item[1].values())))
        out.append((operator, Markup(drawings.budget(operator, ordered, dtypes))))
    return out


def _times(cells: list[dict[str, Any]]) -> Markup | None:
    totals: dict[str, tuple[float, float]] = {}
    for cell in cells:
        judged, total = totals.get(cell["property"], (0.0, 0.0))
        totals[cell["property"]] = judged + cell["judged_seconds"], total + cell["seconds"]
    ordered = sorted(((name, t) for name, t in totals.items() if t[1] > 0), key=lambda item: -item[1][1])
    if not ordered:
        return None
    shown, rest = dict(ordered[:MOST_TIMES]), ordered[MOST_TIMES:]
    if rest:
        shown[f"{len(rest)} more"] = sum(t[0] for _, t in rest), sum(t[1] for _, t in rest)
    return Markup(drawings.seconds(shown, width=620))


def _not_run(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells that did not run by their reason; the required ones, which fail the run, first."""
    reasons: dict[tuple[bool, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        if cell["status"] == "not_run":
            reasons[not cell["required"], cell["reason"]].append(cell)
    return [
        {"required": not optional, "reason": reason or "no reason was given", "cells": members}
        for (optional, reason), members in sorted(reasons.items(), key=lambda item: item[0])
    ]
