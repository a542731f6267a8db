"""``sluicegate matrix``: put runs of ``sluicegate faults`` together, on one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.device import choose

USAGE = 2


def command(
    runs: Annotated[list[Path], typer.Argument(help="faults.json of runs on several devices and tiers.")],
    out: Annotated[Path, typer.Option(help="Folder of matrix.json and matrix.html.")] = Path("out/matrix"),
) -> None:
    """Put runs of sluicegate faults together: what each tier catches, how fast, and which properties are needed for it.

    Runs of one device and tier share a column; a fault may be in one of them only.

    Exit status 0: every fault that a tier can show was killed there. 1: one survived or a trial went wrong. 2: bad usage. 3: a
    run was interrupted, or of a device and tier no fault counts.
    """
    try:
        # Operators and suites are imported to know which properties and values there are; nothing is run.
        choose("cpu")
        from harness.faults import merge, page, reverse, words

        matrix = merge.merge([merge.Run.load(path) for path in runs])
    except ValueError as error:
        typer.echo(f"sluicegate matrix: {error}", err=True)
        raise typer.Exit(USAGE) from error

    from rich.console import Console

    console = Console(file=sys.stdout)
    view = reverse.view(matrix)
    paths = page.write(matrix, view, out)
    words.show(console, matrix, view, paths)
    raise typer.Exit(matrix.exit_status)
