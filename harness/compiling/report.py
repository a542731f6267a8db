"""The compile matrix for a person and for a machine: a table, cards for what failed, a JSON file, a page."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from harness.compiling import drawing, matrix
from harness.compiling.matrix import Cell
from harness.plural import plural
from harness.report.text import Verdict, clean, duration

SCHEMA_VERSION = 1
#: Lines of a compiler's message that a card shows; the report has all of them.
DETAIL_LINES = 16
#: Shapes that a card names; further ones are counted.
SHAPES = 4
FIGURES_WIDTH = 16

STYLES = {"held": "bold green", "failed": "bold red", "incomplete": "bold yellow"}


def build(cells: list[Cell], environment: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """What ``compile.json`` holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "environment": environment,
        "summary": matrix.summary(cells),
        "cells": [cell.to_json() for cell in cells],
    }


def save(report: dict[str, Any], cells: list[Cell], out: Path) -> list[Path]:
    """Write ``compile.json`` and ``compile.html`` into ``out``; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    data, page = out / "compile.json", out / "compile.html"
    data.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "report" / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    said, archs = verdict(cells), report["run"]["archs"]
    page.write_text(
        environment.get_template("compile.html.j2").render(
            verdict=said,
            report=report,
            archs=archs,
            failures=[{**group, "details": clean(group["details"])} for group in failures(cells)],
            missing=missing(cells),
            drawing=Markup(drawing.registers(worst(cells), archs)),
            lines=worst(cells),
        ),
        encoding="utf-8",
    )
    return [data, page]


def verdict(cells: list[Cell]) -> Verdict:
    counts, status = matrix.summary(cells), matrix.exit_status(cells)
    if status == 1:
        also = f", {counts['regressed']:,} of them worse than the baseline" if counts["regressed"] else ""
        return Verdict("failed", f"{counts['failed']:,} of {plural(counts['cells'], 'cell')} failed{also}")
    if status == 3:
        return Verdict("incomplete", f"Nothing failed, but {counts['not_run']:,} required could not be compiled")
    spills = f"{plural(counts['known'], 'cell')} spill as the baseline says" if counts["known"] else "none spills"
    return Verdict("held", f"{plural(counts['kernels'], 'kernel')} compiled, all fit, {spills}")


def worst(cells: Iterable[Cell]) -> dict[tuple[str, str, str], dict[str, dict[str, int]]]:
    """(subject, kernel, dtypes) -> architecture -> the largest figures over all shapes."""
    lines: dict[tuple[str, str, str], dict[str, dict[str, int]]] = defaultdict(dict)
    for cell in cells:
        if cell.figures is None:
            continue
        line = lines[f"{cell.operator}/{cell.subject}", cell.kernel, cell.dtype]
        one = line.setdefault(cell.arch, dict.fromkeys(("registers", "spills", "shared"), 0))
        for name in one:
            one[name] = max(one[name], getattr(cell.figures, name))
    return dict(lines)


def failures(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """What failed, cells with the same words and kernel put together."""
    groups: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in (c for c in cells if c.status == "failed"):
        for words in (*cell.faults, *cell.regressions):
            groups[f"{cell.operator}/{cell.subject}", cell.kernel, cell.dtype, words].append(cell)
    return [
        {
            "subject": subject,
            "kernel": kernel,
            "dtype": dtype,
            "message": clean(words),
            "archs": list(dict.fromkeys(cell.arch for cell in of)),
            "cases": list(dict.fromkeys(cell.case for cell in of)),
            "details": next((cell.details for cell in of if cell.details), ""),
        }
        for (subject, kernel, dtype, words), of in groups.items()
    ]


def missing(cells: Iterable[Cell]) -> list[tuple[str, str, int]]:
    """(subject, reason, cells) of what was not compiled; what was required comes first."""
    counts = Counter(
        (cell.status == "not_covered", f"{cell.operator}/{cell.subject}", clean(cell.reason))
        for cell in cells
        if cell.status in ("not_run", "not_covered")
    )
    return [
        (subject, reason if optional else f"required, but {reason}", count)
        for (optional, subject, reason), count in sorted(counts.items())
    ]


# -- terminal ---------------------------------------------------------------------------------------------------------


def show(console: Console, cells: list[Cell], run: dict[str, Any], paths: Iterable[Path]) -> None:
    """The table, what failed, what was not compiled, the verdict, and where the reports are."""
    for part in _tables(worst(cells), run["archs"]):
        console.print(part)
    for failure in failures(cells):
        console.print(_card(failure), crop=False)
    absent = missing(cells)
    if absent:
        console.print(Text("\nNot compiled", style="bold"))
        for subject, reason, count in absent:
            style = "yellow" if reason.startswith("required") else "dim"
            console.print(Text(f"  {subject}: {reason} ({plural(count, 'cell')})", style=style))
    if run["baseline"]:
        console.print(Text(f"\n{run['baseline']}", style="dim"))
    said, counts = verdict(cells), matrix.summary(cells)
    console.print()
    console.print(Text(said.headline, style=STYLES[said.status]))
    console.print(
        Text(
            f"{plural(counts['kernels'], 'kernel')} for {plural(counts['cells'], 'cell')}, {duration(run['seconds'])} with"
            f" {plural(run['jobs'], 'job')}, Triton {run['triton']}"
        )
    )
    for path in paths:
        console.print(Text(f"  {path}", style="cyan"), soft_wrap=True)


def _tables(lines: dict[tuple[str, str, str], dict[str, dict[str, int]]], archs: list[str]) -> Iterable[RenderableType]:
    """A heading for each kernel, and under it a line for each dtype. All columns have one width, so that they line up."""
    heads = ("", *archs)
    yield Text.assemble(
        *(name.rjust(FIGURES_WIDTH) if i else name.ljust(12) for i, name in enumerate(heads)), style="dim"
    )
    kernels: dict[tuple[str, str], list[tuple[str, dict[str, dict[str, int]]]]] = defaultdict(list)
    for (subject, kernel, dtype), by_arch in lines.items():
        kernels[subject, kernel].append((dtype, by_arch))
    for (subject, kernel), of in kernels.items():
        yield Text.assemble((subject, "bold"), "  ", kernel)
        table = Table(box=None, show_header=False, pad_edge=False, padding=0)
        table.add_column(width=12)
        for _ in archs:
            table.add_column(justify="right", width=FIGURES_WIDTH)
        for dtype, by_arch in of:
            table.add_row(f"  {dtype}", *(_figures(by_arch[arch]) if arch in by_arch else "–" for arch in archs))
        yield table
    yield Text(
        "registers a thread, KiB of shared memory a block, bytes spilled a thread; the worst over all shapes", "dim"
    )


def _figures(figures: dict[str, int]) -> Text:
    text = Text.assemble(f"{figures['registers']}", (f"{figures['shared'] / 1024:8.3g}K", "dim"))
    if figures["spills"]:
        text.append(f"\n{figures['spills']:,} spilled", style="bold red")
    return text


def _card(failure: dict[str, Any]) -> RenderableType:
    head = Text.assemble((failure["subject"], "bold"), " / ", (failure["kernel"], "bold red"))
    cases = "; ".join(failure["cases"][:SHAPES])
    more = len(failure["cases"]) - SHAPES
    parts: list[RenderableType] = [
        head,
        Text(f"{failure['dtype']} on {', '.join(failure['archs'])}", style="dim"),
        Text(),
        Text(failure["message"]),
        Text(cases + (f"; and {plural(more, 'more shape')}" if more > 0 else ""), style="dim"),
    ]
    if failure["details"]:
        lines = clean(failure["details"]).expandtabs(4).splitlines()[-DETAIL_LINES:]
        parts += [Text(), Text("\n".join(lines), style="dim")]
    return Panel(Group(*parts), border_style="red", padding=(0, 1))
