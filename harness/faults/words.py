"""The kill matrix in the terminal: a line a tier, the survivors, and which properties are needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.faults.matrix import APART
from harness.faults.merge import Matrix
from harness.faults.page import headline, summed
from harness.faults.reverse import Reverse

_STYLES = {"held": "bold green", "failed": "bold red", "incomplete": "bold yellow"}


def show(console: Console, matrix: Matrix, reverse: Reverse, paths: Iterable[Path]) -> None:
    """Everything that the page says in a few lines, and where the page is."""
    console.print(_table(matrix))
    for column, verdict in matrix.survivors:
        console.print(Text.assemble((verdict.status, "bold red"), f"  {verdict.fault.id} on {column.name}"))
        console.print(Text(f"  {verdict.fault.wrong}", style="dim"))
    if reverse.asked:
        alone = reverse.named("alone")
        faults = {fault for standing in alone for fault, _ in standing.alone}
        console.print(Text(f"\n{len(faults)} faults have one witness only:", style="bold"))
        for name in dict.fromkeys(standing.property for standing in alone):
            killed = {fault for s in alone if s.property == name for fault, _ in s.alone}
            console.print(Text(f"  {name}: {len(killed)}"))
        undecided = {fault for standing in reverse.standings for fault, _ in standing.undecided}
        if undecided:
            console.print(Text(f"  and {len(undecided)} more, perhaps: time ran out before a second one", style="dim"))
        _named(console, "Kill, but never alone", summed(reverse, "never alone"))
        _named(console, "Never a witness", summed(reverse, "no witness"))
    status, sentence = headline(matrix)
    console.print()
    console.print(Text(sentence, style=_STYLES[status]))
    for path in paths:
        console.print(Text(f"  {path}", style="cyan"), soft_wrap=True)


def _named(console: Console, words: str, names: list[str]) -> None:
    console.print(Text.assemble((f"{words}: ", "bold"), ", ".join(names) or "none"))


def _table(matrix: Matrix) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("tier", no_wrap=True)
    for name in ("killed", "survived", "error", "apart", "not tried", "median", "slowest"):
        table.add_column(name, justify="right", no_wrap=True)
    for column in matrix.columns:
        s = column.summary
        apart = sum(s[status] for status in APART)
        times = ["–" if s[key] is None else f"{s[key]:.1f} s" for key in ("median_seconds", "slowest_seconds")]
        bad = [Text(str(n), style="bold red" if n else "dim") for n in (s["survived"], s["error"])]
        missing = Text(str(column.missing), style="bold yellow" if column.missing else "dim")
        killed = f"{s['killed']} of {s['faults'] - apart}"
        table.add_row(column.name, killed, *bad, str(apart), missing, *times)
    return table
