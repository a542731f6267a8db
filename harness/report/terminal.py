"""What the terminal shows: one card a failure, then the run in a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from harness.plural import plural
from harness.report.rows import Comparison, compare
from harness.report.text import cleaned, duration, verdict

#: More rows and longer tracebacks are in the HTML page and in the failure's own file.
ROWS = 4
DETAIL_LINES = 12
REASONS = 8
STYLES = {"held": "bold green", "failed": "bold red", "incomplete": "bold yellow"}


def failure_panel(failure: dict[str, Any]) -> RenderableType:
    """One failure as a card, and below it the replay line, whole however narrow the terminal is.

    `print_failure` prints it; a bare ``console.print`` needs ``crop=False``, or rich cuts the replay line at the edge.
    """
    failure = cleaned(failure)
    head = Text.assemble(
        (failure["operator"], "bold"), " / ", (failure["property"], "bold"), " / ", (failure["symptom"], "bold red")
    )
    origin = f"{failure['subject']}, {failure['dtype']} on {failure['device']}"
    if failure["examples"]:
        origin += f"; found by case {failure['examples']:,}, in {duration(failure['seconds'])} with shrinking"
    # The headline is inside the frame, where it wraps; a frame's title would be cut.
    parts: list[RenderableType] = [
        head,
        Text(origin, style="dim"),
        Text(),
        Text("Smallest failing batch", style="dim"),
        Text(failure["sentence"], style="bold"),
        Text(),
        Text(failure["message"]),
    ]
    for row in failure["rows"][:ROWS]:
        parts += [Text(), _Row(compare(row))]
    if len(failure["rows"]) > ROWS:
        parts += [Text(), Text(f"and {plural(len(failure['rows']) - ROWS, 'more row')}", style="dim")]
    if failure["details"].strip():
        parts += [Text(), *_details(failure["details"])]
    card = Panel(Group(*parts), border_style="red", padding=(0, 1))
    if not failure["replay"]:
        return card
    return Group(card, Text("Run this one case again:", style="dim"), _replay_line(failure))


def _replay_line(failure: dict[str, Any]) -> Text:
    return Text(failure["replay"], style="bold cyan", no_wrap=True, overflow="ignore")


def _details(details: str) -> list[RenderableType]:
    lines = details.rstrip().expandtabs(4).splitlines()
    parts: list[RenderableType] = []
    if len(lines) > DETAIL_LINES:
        parts.append(Text(f"… {plural(len(lines) - DETAIL_LINES, 'earlier line')} in the report", style="dim italic"))
    return [*parts, Text("\n".join(lines[-DETAIL_LINES:]), style="dim")]


class _Row:
    """Expected over got, element above element, in as many lines as the width asks for."""

    def __init__(self, row: Comparison) -> None:
        self.row = row

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.assemble((self.row.where, "bold"), ("  " + self.row.verdict if self.row.verdict else "", "yellow"))
        elements = self.row.elements
        width = max((max(cell_len(e.expected), cell_len(e.got)) for e in elements), default=0) + 2
        fit = max(1, (options.max_width - len("  expected")) // width)
        for start in range(0, len(elements), fit):
            shown = elements[start : start + fit]
            yield Text.assemble(
                ("  expected", "dim"), *(e.expected.rjust(width) for e in shown), no_wrap=True, overflow="ellipsis"
            )
            yield Text.assemble(
                ("  got     ", "dim"),
                *((e.got.rjust(width), "bold red" if e.differs else "") for e in shown),
                no_wrap=True,
                overflow="ellipsis",
            )


def print_failure(console: Console, failure: dict[str, Any]) -> None:
    console.print(failure_panel(failure), crop=False)


def print_failures(console: Console, report: dict[str, Any]) -> None:
    """A card for each fault: its first dtype in full, with the replay lines of the others.

    A fault is known by operator, subject, property and symptom, as shrinking knows it.
    """
    faults: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for failure in report["failures"]:
        faults[tuple(failure[name] for name in ("operator", "subject", "property", "symptom"))].append(failure)
    for first, *others in faults.values():
        console.print()
        print_failure(console, first)
        for other in map(cleaned, others):
            console.print(Text(f"The same symptom in {other['dtype']} on {other['device']}:", style="dim"))
            # Printed by itself, a text forgets its `no_wrap`.
            console.print(_replay_line(other), soft_wrap=True)


def summary_table(report: dict[str, Any]) -> Table:
    """One line for each operator and subject: cells by status, cases, seconds inside the properties."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cleaned(report["cells"]):
        groups[cell["operator"], cell["subject"]].append(cell)
    table = Table(box=None, pad_edge=False, header_style="dim", show_footer=len(groups) > 1, footer_style="bold")
    totals = _counts(report["cells"])
    table.add_column("operator", footer="all", overflow="fold")
    table.add_column("subject", overflow="fold")
    for name in ("passed", "failed", "known", "not run", "cases"):
        table.add_column(name, justify="right", footer=f"{totals[name]:,}", no_wrap=True)
    table.add_column("seconds", justify="right", footer=f"{_seconds(report['cells']):.1f}", no_wrap=True)
    previous = ""
    for (operator, subject), members in groups.items():
        counts = _counts(members)
        styles = {"failed": "bold red", "not run": "yellow", "known": "yellow"}
        table.add_row(
            Text(operator if operator != previous else "", style="bold"),
            Text(subject),
            *(
                Text(f"{counts[name]:,}", style=styles.get(name, "") if counts[name] else "dim")
                for name in ("passed", "failed", "known", "not run", "cases")
            ),
            f"{_seconds(members):.1f}",
        )
        previous = operator
    return table


def _counts(cells: Iterable[dict[str, Any]]) -> Counter[str]:
    names = {"unexpected_pass": "failed", "known_failure": "known", "not_run": "not run"}
    counts: Counter[str] = Counter()
    for cell in cells:
        counts[names.get(cell["status"], cell["status"])] += 1
        counts["cases"] += cell["cases"]
    return counts


def _seconds(cells: Iterable[dict[str, Any]]) -> float:
    return sum(float(cell["seconds"]) for cell in cells)


def print_summary(console: Console, report: dict[str, Any], paths: Iterable[Path | str]) -> None:
    """The table, what did not run and why, what the ledger says, the verdict, and where the reports are."""
    report = cleaned(report)
    console.print()
    console.print(summary_table(report))
    for part in (*_not_run(report), *_errors(report), *_ledger(report)):
        console.print(part)
    run, said = report["run"], verdict(report)
    console.print()
    console.print(Text(said.headline, style=STYLES[said.status]))
    console.print(
        Text(
            f"{plural(report['summary']['cases'], 'case')} in {plural(report['summary']['cells'], 'cell')}, "
            f"{duration(run['seconds'])} with {plural(run['workers'], 'worker')} on {run['device']}, "
            f"tier {run['tier']}, seed {run['seed']}"
        )
    )
    for path in paths:
        console.print(Text(f"  {path}", style="cyan"), soft_wrap=True)


def _not_run(report: dict[str, Any]) -> Iterable[RenderableType]:
    missing = [cell for cell in report["cells"] if cell["status"] == "not_run"]
    reasons = Counter((not cell["required"], cell["reason"]) for cell in missing)
    if reasons:
        yield Text("\nNot run", style="bold")
    # Required ones first: they fail the run.
    for (optional, reason), count in sorted(reasons.items())[:REASONS]:
        needed = "" if optional else " required"
        text = f"{count:,}{needed} {'cell' if count == 1 else 'cells'}: {reason}"
        yield Padding(Text(text, style="" if optional else "yellow"), (0, 0, 0, 2))
    if len(reasons) > REASONS:
        yield Text(f"  and {plural(len(reasons) - REASONS, 'more reason')} in the report", style="dim")


def _errors(report: dict[str, Any]) -> Iterable[RenderableType]:
    for error in report.get("errors", []):
        yield Text("\nError of the harness, not of a subject", style="bold yellow")
        yield Padding(Group(*_details(error)), (0, 0, 0, 2))


def _ledger(report: dict[str, Any]) -> Iterable[RenderableType]:
    ledger = report["ledger"]
    for entry in ledger["unexpected_passes"]:
        text = f"\nUnexpected pass: {entry['id']} holds now. Remove it from the ledger and close {entry['tracker']}"
        yield Text(text, style="bold red")
    for entry in ledger["unmatched"]:
        text = f"\nWarning: ledger entry {entry['id']} matches no failure of this run ({entry['tracker']})"
        yield Text(text, style="yellow")
