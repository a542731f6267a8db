"""``sluicegate faults``: plant known faults one at a time and see which property finds each."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.device import DeviceChoice, choose

if TYPE_CHECKING:
    from harness.faults.verdict import Verdict

USAGE = 2
#: What chooses or tries faults of subjects, and says nothing to those of the judging code.
FOR_SUBJECTS = ("device", "operator", "listed", "generated", "only_generated", "mutation_seed", "tier", "witnesses")
#: Seconds for a fault. On a GPU most of them go to the compiler: a shape more is a kernel more.
TIME_LIMIT = {"cpu": 60.0, "cuda": 300.0}
#: What a shell says of a command that Ctrl-C ended.
INTERRUPTED = 130


def _said(context: typer.Context, name: str) -> bool:
    """Whether the command line has this option. Compared by name: whose enumeration it is depends on typer's version."""
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def command(
    context: typer.Context,
    device: Annotated[DeviceChoice, typer.Option(help="Where to run.")] = "auto",
    operator: Annotated[list[str] | None, typer.Option(help="Only faults of this operator; may be repeated.")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="Only the fault of this id; may be repeated.")] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="File of ids, one a line, # for comments: only these faults.")
    ] = None,
    generated: Annotated[
        int, typer.Option(help="This many generated faults besides: mutations of the subjects' sources.", min=0)
    ] = 0,
    only_generated: Annotated[bool, typer.Option(help="The generated faults alone.")] = False,
    judging: Annotated[
        bool, typer.Option(help="Faults in the judging code instead, which this repository's tests must find.")
    ] = False,
    mutation_seed: Annotated[int, typer.Option(help="Chooses the generated faults.")] = 0,
    tier: Annotated[
        Literal["quick", "premerge", "nightly"], typer.Option(help="Whose cases a fault gets, as verify has them.")
    ] = "premerge",
    witnesses: Annotated[int, typer.Option(help="Go on until so many properties have killed the fault.", min=1)] = 1,
    seed: Annotated[int | None, typer.Option(help="Repeats a run exactly; drawn and printed by default.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at a time; one a core by default.", min=1)] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(help="Seconds after which no further case of a fault is tried; 60, on a GPU 300.", min=1),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of faults.json, matrix.html and each trial's log.")] = Path(
        "out/faults"
    ),
) -> None:
    """Prove the gate: every fault of the catalogue must be found by some property of its operator, with a tier's cases.

    Of generated faults, --fault and --list take those too that a sample would not choose. Those that are proven equivalent or are no
    valid program are listed, and do not count.

    Exit status 0: every fault that this device can show was found. 1: one survived or a trial went wrong. 2: bad usage.
    3: none of the faults counts (unseen on this device, proven equivalent, no valid program), so nothing is known.
    130: interrupted; faults.json has what was known by then.
    """
    # Trials are forked, and a CUDA context does not survive a fork: ask the driver's library whether there is a GPU, so
    # that this question alone does not create one.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    drawn = random.SystemRandom().randrange(2**31) if seed is None else seed
    try:
        if judging:
            from harness.cli.judging import judge

            given = [name for name in FOR_SUBJECTS if _said(context, name)]
            if given:
                options = ", ".join("--" + {"listed": "list"}.get(name, name.replace("_", "-")) for name in given)
                raise ValueError(
                    f"--judging: got {options} too, expected of such options --fault alone: tests of this repository try its faults,"
                    " on a CPU"
                )
            raise typer.Exit(
                judge(fault or (), seed=drawn, workers=workers or 2, time_limit=time_limit or 60.0, out=out)
            )
        chosen = choose(device)
        from harness.faults import choice, injection, matrix, merge, page, reverse, runner
        from harness.faults.verdict import Settings
        from harness.verification import default_workers

        faults = choice.choose(
            operator or (),
            fault or (),
            listed,
            generated=generated,
            only_generated=only_generated,
            mutation_seed=mutation_seed,
        )
        for one in faults:
            injection.changed_source(one)
    except ValueError as error:
        typer.echo(f"sluicegate faults: {error}", err=True)
        raise typer.Exit(USAGE) from error

    from rich.console import Console

    from harness.cli.progress import VerdictsBar

    console = Console(file=sys.stdout)
    settings = Settings(
        device=chosen,
        seed=drawn,
        folder=out / "trials",
        time_limit=time_limit or TIME_LIMIT[chosen],
        tier=tier,
        witnesses=witnesses,
    )
    # An earlier run's matrix would be taken for this one's, were this one to end without a word.
    for name in ("matrix.html", "matrix.json"):
        (out / name).unlink(missing_ok=True)
    saved = matrix.Saved(settings, len(faults), out / "faults.json")
    verdicts: list[Verdict] | None = None
    try:
        with VerdictsBar(console, f"on {chosen}, {tier}, seed {drawn}", len(faults)) as progress:

            def listen(verdict: Verdict) -> None:
                saved.add(verdict)
                progress.advance(verdict)

            verdicts = runner.run(faults, settings, workers=workers or default_workers(chosen), listener=listen)
    except KeyboardInterrupt:
        console.print(f"interrupted after {len(saved.verdicts)} of {len(faults)} faults", style="bold yellow")
    finally:
        report = saved.write(verdicts)
    known = saved.verdicts if verdicts is None else verdicts
    matrix.show(console, known)
    console.print(matrix.conclusion(known, report["wall_seconds"], chosen, tier), highlight=False, style="bold")
    whole = merge.merge([merge.Run.from_json(report, str(saved.path))])
    _, written = page.write(whole, reverse.view(whole), out)
    console.print(f"{saved.path}, {written}; the same again with --seed {drawn}", highlight=False, soft_wrap=True)
    raise typer.Exit(INTERRUPTED if verdicts is None else matrix.exit_status(verdicts))
