"""What shadows saw, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.report.text import cleaned

COLUMNS = ("calls", "observed", "compared", "mismatches", "dropped", "errors", "raised")


def print_report(console: Console, reports: Sequence[dict[str, Any]]) -> None:
    """One line a target; below, why calls were skipped, the mismatches with their files, and the first error."""
    if not reports:
        return
    table = Table(title="sluicegate shadow", title_justify="left")
    table.add_column("target", overflow="fold")
    for name in (*COLUMNS, "skipped"):
        table.add_column(name, justify="right")
    for report in reports:
        counts = report["counts"]
        style = "bold red" if counts["mismatches"] else "yellow" if counts["errors"] or counts["dropped"] else "green"
        numbers = [f"{counts[name]:,}" for name in COLUMNS]
        table.add_row(Text(report["target"], style=style), *numbers, f"{sum(counts['skipped'].values()):,}")
    console.print(table)
    for report in map(cleaned, reports):
        for reason, count in report["counts"]["skipped"].items():
            console.print(Text(f"{report['target']}: {count:,} skipped: {reason}", style="dim"))
        for entry in report["mismatches"]:
            console.print(Text(f"{report['target']}, call {entry['call']}: {entry['symptom']}", style="bold red"))
            console.print(Text(f"  {entry['message']}"))
            if "file" in entry:
                console.print(Text(f"  sluicegate replay {entry['file']}", style="bold cyan"), soft_wrap=True)
        for note in report["notes"]:
            console.print(Text(f"{report['target']}: {note}", style="yellow"))
        if report["first_error"]:
            console.print(Text(f"{report['target']}: the first error of the shadow itself", style="bold yellow"))
            console.print(Text(report["first_error"], style="dim"))
