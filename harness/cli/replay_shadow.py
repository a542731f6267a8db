"""``sluicegate replay`` of a mismatch that a shadow recorded in somebody's engine."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from harness.cli.device import DeviceChoice, choose

USAGE = 2


def replay_shadow(file: Path, target: str | None, device: DeviceChoice) -> int:
    """Judge what was recorded, call the target (or this one) again on copies. The exit status: 0 if the new call holds, or
    where there is none, if the recorded result does; 1 if not; 2 if the record cannot be used."""
    try:
        chosen = choose(device)
    except ValueError as error:
        typer.echo(f"sluicegate replay: {error}", err=True)
        return USAGE

    from rich.console import Console

    from harness import interpreter
    from harness.failure import Failure
    from harness.report.terminal import print_failure
    from harness.shadow.replay import replay

    if chosen == "cpu":
        interpreter.repair()
    console = Console(file=sys.stdout)
    try:
        again = replay(file, target=target, device=chosen)
    except (ValueError, OSError) as error:
        typer.echo(f"sluicegate replay: {error}", err=True)
        return USAGE
    record = again.record
    name = target or record["target"]
    console.print(f"{record['operator']}: call {record['call']} of {record['target']}", highlight=False, soft_wrap=True)

    def show(failure: Failure, subject: str, heading: str) -> None:
        console.print(heading, highlight=False)
        print_failure(
            console,
            {
                "operator": record["operator"],
                "property": "shadow",
                "symptom": failure.symptom,
                "subject": subject,
                "dtype": "recorded call",
                "device": chosen,
                "examples": 0,
                "seconds": 0.0,
                "sentence": f"call {record['call']}",
                "message": failure.message,
                "rows": [row.to_json() for row in failure.rows],
                "details": "",
                "replay": "",
            },
        )

    if again.recorded is None:
        console.print("the recorded result is within its budget now: the reference or the budget has changed")
    else:
        same = again.recorded.symptom == record["symptom"]
        show(
            again.recorded,
            record["target"],
            "the recorded result differs, as recorded" if same else "the recorded result differs in another way now",
        )
    if again.not_called:
        console.print(f"not called again: {again.not_called}", highlight=False)
        return int(again.recorded is not None)
    if again.called is not None:
        show(again.called, name, f"{name} called again on copies: it differs")
        return 1
    console.print(f"fixed: {name} called again on copies holds", highlight=False)
    return 0
