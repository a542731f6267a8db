"""``sluicegate replay``: one recorded case again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.device import DeviceChoice, choose

USAGE = 2
NOT_RUN = 3


def command(
    file: Annotated[Path, typer.Argument(help="A file under failures/ of a run, or a shadow's mismatch-<n>.json.")],
    subject: Annotated[str | None, typer.Option(help="module:function to run instead of the recorded one.")] = None,
    device: Annotated[DeviceChoice | None, typer.Option(help="Instead of the recorded device.")] = None,
    here: Annotated[bool, typer.Option("--here", help="In this process, for a debugger; a crash ends it.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds after which the case counts as hung.")] = 60.0,
) -> None:
    """Run the case of a failure again.

    Exit status 0: fixed. 1: fails as recorded, or differently. 2: wrong usage. 3: the GPU had no room for it.
    """
    if not file.exists():
        typer.echo(
            f"sluicegate replay: no file {file}; the failures of the last run are in out/latest/failures/", err=True
        )
        raise typer.Exit(USAGE)
    recorded = json.loads(file.read_text())
    if recorded.get("kind") == "shadow":
        from harness.cli.replay_shadow import replay_shadow

        raise typer.Exit(replay_shadow(file, subject, device or "cpu"))
    try:
        chosen = choose(device or recorded["device"])
    except ValueError as error:
        typer.echo(f"sluicegate replay: {error}", err=True)
        raise typer.Exit(USAGE) from error

    from rich.console import Console

    from harness import interpreter, operators
    from harness.cell import Cell, CellSpec
    from harness.execution import out_of_memory
    from harness.failure import Failure
    from harness.isolation import Sandbox, find_property
    from harness.report import terminal

    console = Console(file=sys.stdout)
    operator = operators.get(recorded["operator"])
    fields = dict(recorded["case"])
    target = subject or fields.pop("target")
    fields.pop("target", None)
    case = operator.case_from_json(fields)
    spec = CellSpec(
        operator=operator.name,
        subject=recorded["subject"] if subject is None else subject,
        target=target,
        property=recorded["property"],
        device=chosen,
        dtype=recorded["dtype"],
        examples=1,
        seed=0,
    )
    console.print(f"{operator.name} / {spec.property} / {spec.subject} on {chosen}", highlight=False)
    console.print(operator.describe(case), highlight=False)
    prop = find_property(operator.name, spec.property)
    sandbox = Sandbox(spec, timeout)
    try:
        if here:
            interpreter.repair()
            prop.body(Cell(spec, prop).context, case)
        else:
            sandbox.judge(case)
    except Failure as failure:
        again = Cell(spec, prop).record(case, failure).to_json()
        again["replay"] = f"sluicegate replay {file}"
        terminal.print_failure(console, again)
        same = failure.symptom == recorded["symptom"]
        console.print("failed as recorded" if same else f"failed differently: recorded was {recorded['symptom']!r}")
        raise typer.Exit(1) from failure
    except Exception as error:
        if not out_of_memory(error):
            raise
        console.print(f"not run: the GPU's memory ran out: {error}", markup=False, highlight=False)
        raise typer.Exit(NOT_RUN) from error
    finally:
        sandbox.close()
    console.print("fixed: the property holds for this case now")
