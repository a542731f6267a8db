"""``sluicegate verify``: run the properties, print what failed, write the reports."""

from __future__ import annotations

import datetime
import random
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.device import DeviceChoice, choose

if TYPE_CHECKING:
    from harness.cell import CellResult
    from harness.plan import Plan

USAGE = 2


def command(
    operator: Annotated[list[str] | None, typer.Argument(help="Operators to verify; all by default.")] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(help="OPERATOR=module:function or OPERATOR=path.py:function; replaces the registered subjects."),
    ] = None,
    tier: Annotated[str, typer.Option(help="quick, premerge or nightly.")] = "quick",
    properties: Annotated[
        str | None,
        typer.Option(help="Property groups, separated by commas: equivalence,relations,memory,arguments,cost."),
    ] = None,
    cases: Annotated[int | None, typer.Option(help="Cases an operator, instead of the tier's number.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats a run exactly; drawn and printed by default.")] = None,
    device: Annotated[DeviceChoice, typer.Option(help="Where to run.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path("out/latest"),
    workers: Annotated[int | None, typer.Option(help="Worker processes; one a core by default.", min=1)] = None,
    case_timeout: Annotated[float, typer.Option(help="Seconds after which a case counts as hung.")] = 60.0,
    ledger: Annotated[Path | None, typer.Option(help="YAML file of known failures.")] = None,
) -> None:
    """Check kernels against references, relations, hostile memory, bad arguments and cost guards.

    Exit status 0: all that was required ran and held. 1: a property failed. 2: wrong usage. 3: something required did not run.
    """
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        chosen = choose(device)
        plan = _plan(operator, subject, tier, properties, cases, seed, chosen, out, case_timeout)
        from harness.ledger import Ledger

        known = Ledger.load(ledger)
    except ValueError as error:
        typer.echo(f"sluicegate verify: {error}", err=True)
        raise typer.Exit(USAGE) from error

    from rich.console import Console

    from harness.report import html, junit, model, terminal
    from harness.verification import default_workers, run

    console = Console(file=sys.stdout)
    count = workers or default_workers(chosen)
    progress = _Progress(console, plan)
    with progress:
        outcome = run(plan, workers=count, listener=progress.advance)
    typed = "sluicegate " + shlex.join(sys.argv[1:])
    report = model.build(plan, outcome, known, command=typed, started=started, workers=count)
    model.save(report, out)
    junit.write_junit(report, out / "junit.xml")
    html.write_html(report, out / "report.html")
    terminal.print_failures(console, report)
    terminal.print_summary(console, report, [out / name for name in ("report.json", "junit.xml", "report.html")])
    raise typer.Exit(model.exit_status(report))


def _plan(
    operator_names: list[str] | None,
    subject_texts: list[str] | None,
    tier: str,
    groups: str | None,
    cases: int | None,
    seed: int | None,
    device: str,
    out: Path,
    case_timeout: float,
) -> Plan:
    from harness.context import GROUPS
    from harness.operators import OPERATORS, get
    from harness.plan import Plan, check_groups
    from harness.subjects import Capabilities, parse
    from harness.tiers import TIERS

    if tier not in TIERS:
        raise ValueError(f"--tier: got {tier!r}, expected one of {', '.join(TIERS)}")
    subjects = tuple(parse(text, OPERATORS) for text in subject_texts or ())
    # Naming a subject without an operator means that operator.
    names = tuple(get(name).name for name in operator_names or [s.operator for s in subjects] or OPERATORS)
    for given in subjects:
        if given.operator not in names:
            raise ValueError(
                f"--subject: {given.spec} is given, but {given.operator} is not among the operators to verify"
            )
    plan = Plan(
        operators=tuple(dict.fromkeys(names)),
        subjects=subjects,
        tier=tier,
        groups=check_groups(groups.split(",")) if groups else GROUPS,
        device=device,
        seed=random.SystemRandom().randrange(2**31) if seed is None else seed,
        out=str(out),
        cases=cases,
        case_timeout=case_timeout,
    )
    for name in plan.operators:
        found = plan.subjects_of(name)
        if not found:
            raise ValueError(
                f"{name}: no subject is registered; give one with --subject {name}=module:function, or install a package with"
                f" an entry point in the group sluicegate.subjects.{name}"
            )
        for one in found:
            Capabilities.of(one.load())
    return plan


class _Progress:
    """A bar that counts cells and cases as they come; in a log, one line for each operator's failures."""

    def __init__(self, console: object, plan: Plan) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from harness.isolation import suite
        from harness.plan import cells

        assert isinstance(console, Console)
        self.console = console
        total = sum(len(cells(plan, name, suite(name).PROPERTIES)) for name in plan.operators)
        self.bar = Progress(
            TextColumn("[bold]verify[/] {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cells, {task.fields[cases]} cases, {task.fields[failed]} failed"),
            TimeElapsedColumn(),
            console=console,
        )
        self.task = self.bar.add_task(
            f"on {plan.device}, tier {plan.tier}, seed {plan.seed}", total=total, cases=0, failed=0
        )
        self.cases = self.failed = 0

    def __enter__(self) -> None:
        self.bar.start()

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, result: CellResult) -> None:
        self.cases += result.cases
        self.failed += result.status == "failed"
        self.bar.update(self.task, advance=1, cases=self.cases, failed=self.failed)
