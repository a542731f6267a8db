"""``sluicegate list``: operators, their subjects and what is checked of them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from harness.cli.device import choose


def command(
    operator: Annotated[list[str] | None, typer.Argument(help="Operators to show; all by default.")] = None,
) -> None:
    """Show operators, registered subjects, properties by group, and the cases of each tier."""
    choose("auto")
    from rich.console import Console
    from rich.table import Table

    from harness.context import GROUPS
    from harness.isolation import suite
    from harness.operators import OPERATORS, get
    from harness.subjects import baseline, registered
    from harness.tiers import CASES, TIERS

    console = Console(file=sys.stdout)
    try:
        chosen = [get(name) for name in operator or OPERATORS]
    except ValueError as error:
        typer.echo(f"sluicegate list: {error}", err=True)
        raise typer.Exit(2) from error
    for one in chosen:
        table = Table(
            title=f"{one.name}: {one.summary}", title_justify="left", show_header=False, box=None, pad_edge=False
        )
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for found in registered(one.name):
            table.add_row("subject", f"{found.name}  ({found.target})")
        before = baseline(one.name)
        if before:
            table.add_row("baseline", before.target)
        table.add_row("dtypes", ", ".join(one.dtypes))
        for group in GROUPS:
            names = [
                p.name + ("" if "cpu" in p.devices else " (GPU)")
                for p in suite(one.name).PROPERTIES
                if p.group == group
            ]
            if names:
                table.add_row(group, ", ".join(names))
        table.add_row(
            "cases", "; ".join(f"{t}: {CASES[t]['cpu'][one.name]} CPU, {CASES[t]['cuda'][one.name]} GPU" for t in TIERS)
        )
        console.print(table)
        console.print()
