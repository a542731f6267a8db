"""``sluicegate rules``: what the usual rules of the field would have caught of the planted faults."""

from __future__ import annotations

import random
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.device import choose

if TYPE_CHECKING:
    from rich.console import Console

    from harness.faults.model import Fault
    from harness.faults.usual.table import Gate
    from harness.faults.usual.trial import Settings

USAGE = 2


def command(
    operator: Annotated[list[str] | None, typer.Option(help="Only faults of this operator; may be repeated.")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="Only the fault of this id; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats a run exactly; drawn and printed by default.")] = None,
    cases: Annotated[int, typer.Option(help="Of our generator's calls, how many a dtype.", min=2)] = 60,
    workers: Annotated[int | None, typer.Option(help="Trials at a time; one a core by default.", min=1)] = None,
    verdicts: Annotated[
        list[Path] | None,
        typer.Option(
            help="A faults.json, may be repeated: what our whole gate says of faults that no comparison of numbers shows."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of rules.json, rules.svg and of each trial's log.")] = Path(
        "out/rules"
    ),
) -> None:
    """Judge every fault of the catalogue that a CPU can show by the usual rules, with usual inputs and with ours.

    A rule compares output and final state with the float64 oracle. A catch counts only where the rule accepts the unchanged
    subject's result of the same call; what it rejects there is counted too. Runs in Triton's interpreter.

    Exit status 0: every fault was tried. 1: a trial went wrong. 2: bad usage.
    """
    try:
        choose("cpu")
        from harness.faults import injection, model
        from harness.faults.usual import table
        from harness.faults.usual.trial import Settings
        from harness.verification import default_workers

        visible = [one for one in model.load() if "cpu" in one.tiers]
        faults = model.select(visible, operator or (), fault or ())
        for one in faults:
            injection.changed_source(one)
        gates = table.gates(verdicts or ())
    except ValueError as error:
        typer.echo(f"sluicegate rules: {error}", err=True)
        raise typer.Exit(USAGE) from error

    from rich.console import Console

    drawn = random.SystemRandom().randrange(2**31) if seed is None else seed
    settings = Settings(seed=drawn, folder=out / "trials", cases=cases)
    count = workers or default_workers("cpu")
    raise typer.Exit(_run(Console(file=sys.stdout), faults, settings, gates, count, out))


def _run(
    console: Console, faults: list[Fault], settings: Settings, gates: dict[str, Gate], workers: int, out: Path
) -> int:
    from harness.cli.progress import StagesBar
    from harness.faults.usual import drawing, runner, table
    from harness.report.model import environment

    start = time.perf_counter()
    with StagesBar(console, "rules", f"seed {settings.seed}") as progress:
        measured = runner.run(faults, settings, workers=workers, listener=progress.advance)
    run = {
        "command": "sluicegate " + shlex.join(sys.argv[1:]),
        "seed": settings.seed,
        "cases": settings.cases,
        "seconds": round(time.perf_counter() - start, 1),
    }
    report = table.build(faults, measured, gates, run, environment())
    table.save(report, out / "rules.json")
    (out / "rules.svg").write_text(drawing.draw(report), encoding="utf-8")
    table.show(console, report)
    words = f"{out / 'rules.json'}, {out / 'rules.svg'}; the same again with --seed {settings.seed}"
    console.print(words, highlight=False, soft_wrap=True)
    return table.exit_status(report)
