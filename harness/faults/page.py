"""The kill matrix as one self-contained HTML page that needs no script and loads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import harness.report
from harness.faults import drawing
from harness.faults.matrix import APART
from harness.faults.merge import Column, Matrix
from harness.faults.model import Fault
from harness.faults.reverse import Reverse, Standing
from harness.faults.verdict import Verdict
from harness.plural import plural
from harness.report.text import cleaned, duration

_STYLES = ("solid", "dashed", "dotted")
#: The mark of each `Standing.status` in the table of properties, and what it means.
MARKS = {
    "alone": ("●", "kills alone"),
    "undecided": ("◐", "perhaps alone: time ran out"),
    "never alone": ("○", "kills, but never alone"),
    "no witness": ("–", "never a witness"),
}


def write(matrix: Matrix, reverse: Reverse, folder: Path) -> tuple[Path, Path]:
    """Write ``matrix.json`` and ``matrix.html`` into ``folder``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "matrix.json", folder / "matrix.html"
    content = {**matrix.to_json(), "reverse": reverse.to_json()}
    data.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(harness.report.__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "plural": plural}
    page.write_text(environment.get_template("matrix.html.j2").render(view(matrix, reverse)), encoding="utf-8")
    return data, page


def headline(matrix: Matrix) -> tuple[str, str]:
    """The status of the page, ``held``, ``failed`` or ``incomplete``, and the sentence that says why."""
    alive, missing = len(matrix.survivors), sum(column.missing for column in matrix.columns)
    seen = matrix.visible
    status = {0: "held", 1: "failed", 3: "incomplete"}[matrix.exit_status]
    if alive:
        ids = len({verdict.fault.id for _, verdict in matrix.survivors})
        return status, f"{ids:,} of {plural(len(seen), 'visible fault')} survived or went wrong"
    if missing:
        return status, f"No fault survived, but {missing:,} were not tried"
    if matrix.blind:
        return (
            status,
            f"No fault counts on {', '.join(column.name for column in matrix.blind)}, so nothing is known of it",
        )
    return status, f"All {plural(len(seen), 'visible fault')} killed"


def view(matrix: Matrix, reverse: Reverse) -> dict[str, Any]:
    """What the template reads; whatever is quoted is cleaned, and the template escapes it."""
    status, sentence = headline(matrix)
    names = [column.name for column in matrix.columns]
    return {
        "status": status,
        "headline": sentence,
        "columns": [_column(column, i) for i, column in enumerate(matrix.columns)],
        "names": names,
        "words": drawing.WORDS,
        "scale": Markup(drawing.scale()),
        "operators": [_operator(operator, faults, matrix) for operator, faults in _by_operator(matrix).items()],
        "caught": Markup(
            drawing.caught(
                {c.name: [v.seconds for v in c.verdicts.values() if v.status == "killed"] for c in matrix.columns},
                {c.name: sum(c.sees(f) for f in matrix.faults) for c in matrix.columns},
            )
        ),
        "kills": Markup(drawing.kills(_kills(reverse.standings))),
        "survivors": [cleaned(_survivor(column, verdict)) for column, verdict in matrix.survivors],
        "reverse": _reverse(reverse),
        "marks": MARKS,
    }


def _by_operator(matrix: Matrix) -> dict[str, list[Fault]]:
    return {
        operator: [fault for fault in matrix.faults if fault.operator == operator]
        for operator in dict.fromkeys(fault.operator for fault in matrix.faults)
    }


def _column(column: Column, index: int) -> dict[str, Any]:
    summary = column.summary
    return {
        "name": column.name,
        **summary,
        "visible": summary["faults"] - sum(summary[status] for status in APART),
        "missing": column.missing,
        "runs": [
            f"seed {run.seed}, {run.witnesses} {'witness' if run.witnesses == 1 else 'witnesses'} a fault,"
            f" {duration(run.wall_seconds)}, {run.name}"
            for run in column.runs
        ],
        "color": index % 3 + 1,
        "line": _STYLES[(index + index // 3) % 3],
    }


def _operator(operator: str, faults: list[Fault], matrix: Matrix) -> dict[str, Any]:
    rows = {f.id: {c.name: c.verdicts[f.id] for c in matrix.columns if f.id in c.verdicts} for f in faults}
    return {
        "name": operator,
        "faults": len(faults),
        "heat": Markup(drawing.heat(operator, rows, [column.name for column in matrix.columns])),
        "rows": [cleaned(_row(fault, rows[fault.id])) for fault in faults],
    }


def _row(fault: Fault, verdicts: dict[str, Verdict]) -> dict[str, Any]:
    return {
        "id": fault.id,
        "wrong": fault.wrong,
        "link": fault.source if fault.historical else "",
        "verdicts": [
            {
                "column": name,
                "status": verdict.status,
                "property": verdict.first.property if verdict.first else "",
                "symptom": verdict.first.symptom if verdict.first else "",
                "cases": (verdict.cases or "") if verdict.first or verdict.status == "survived" else "",
                "seconds": f"{verdict.seconds:.1f}" if verdict.status not in APART else "",
                "batch": verdict.first.sentence if verdict.first else _why(verdict),
                "others": [f"{w.property}: {w.symptom}, {w.seconds:.1f} s" for w in verdict.witnesses[1:]],
            }
            for name, verdict in verdicts.items()
        ],
    }


def _why(verdict: Verdict) -> str:
    lines = verdict.message.strip().splitlines()
    return lines[-1] if lines else "; ".join(verdict.notes)


def _survivor(column: Column, verdict: Verdict) -> dict[str, Any]:
    fault = verdict.fault
    return {
        "id": fault.id,
        "column": column.name,
        "status": verdict.status,
        "operator": fault.operator,
        "wrong": fault.wrong,
        "link": fault.source if fault.historical else "",
        "subject": fault.subject,
        "module": fault.module,
        "line": fault.span.line if fault.span else None,
        "find": fault.find,
        "replace": fault.replace,
        "cases": verdict.cases,
        "seconds": verdict.total_seconds,
        "exhausted": verdict.exhausted,
        "notes": verdict.notes,
        "message": verdict.message,
    }


def _kills(standings: list[Standing]) -> dict[str, tuple[int, int]]:
    """property -> faults killed first and at all, over all operators; the most first, those without a kill left out."""
    first: dict[str, set[str]] = {}
    every: dict[str, set[str]] = {}
    for standing in standings:
        first.setdefault(standing.property, set()).update(standing.first)
        every.setdefault(standing.property, set()).update(standing.first, standing.further)
    counts = {name: (len(first[name]), len(every[name])) for name in every if every[name]}
    return dict(sorted(counts.items(), key=lambda item: (-item[1][1], -item[1][0], item[0])))


def _reverse(reverse: Reverse) -> dict[str, Any]:
    operators = list(dict.fromkeys(standing.operator for standing in reverse.standings))
    properties = list(dict.fromkeys(standing.property for standing in reverse.standings))
    found = {(standing.property, standing.operator): standing for standing in reverse.standings}
    rows = [(name, [found.get((name, operator)) for operator in operators]) for name in properties]
    # Those that kill alone come first, then by the faults that they kill.
    rows.sort(key=lambda row: (-sum(len(of.alone) for of in row[1] if of), -_total(row[1])))
    return {
        "asked": reverse.asked,
        "operators": operators,
        "rows": rows,
        "alone": [(standing, [fault for fault, _ in standing.alone]) for standing in reverse.named("alone")],
        "never_alone": summed(reverse, "never alone"),
        "no_witness": summed(reverse, "no witness"),
        "undecided": [(s, [fault for fault, _ in s.undecided]) for s in reverse.standings if s.undecided],
        "axes": [
            {
                "operator": operator,
                "drawn": reverse.drawn[operator],
                "killing": reverse.killing[operator],
                "axes": axes,
            }
            for operator, axes in reverse.axes.items()
        ],
    }


def _total(standings: list[Standing | None]) -> int:
    return sum(len(of.first) + len(of.further) for of in standings if of)


def summed(reverse: Reverse, status: str) -> list[str]:
    """The names of properties that have this status in every operator that has them; without a witness counts as less."""
    ranks = ("no witness", "never alone", "undecided", "alone")
    best: dict[str, int] = {}
    for standing in reverse.standings:
        best[standing.property] = max(best.get(standing.property, 0), ranks.index(standing.status))
    return [name for name, rank in best.items() if ranks[rank] == status]
