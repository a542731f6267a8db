"""``sluicegate compile``: compile every kernel for GPUs that are not here, and look at what it needs."""

from __future__ import annotations

import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.device import choose

if TYPE_CHECKING:
    from harness.subjects import Subject

USAGE = 2


def command(
    operator: Annotated[list[str] | None, typer.Argument(help="Operators to compile; all by default.")] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(help="OPERATOR=module:function or OPERATOR=path.py:function; replaces the registered subjects."),
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option(help="sm_80, sm_90, sm_100 or sm_120; may be repeated; all by default.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, float16 or bfloat16; may be repeated; all by default.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="JSON file of earlier figures; worse ones fail.")] = None,
    save_baseline: Annotated[Path | None, typer.Option(help="Write the figures of this run to this file.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Compiling processes; one a core by default.", min=1)] = None,
    out: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path("out/compile"),
) -> None:
    """Compile every Triton kernel at the shapes of real models for every architecture, without a GPU.

    Exit status 0: every kernel compiled, spills nothing and fits. 1: one does not, or is worse than the baseline. 2: wrong
    usage. 3: something required could not be compiled, because its subject needs a GPU to be called.
    """
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        # Subjects are imported to read what they claim; the workers import them again, to compile.
        choose("cpu")
        subjects, archs = _subjects(operator, subject), _archs(arch)
        dtypes = _dtypes(dtype)
        from harness.compiling import baseline as stored

        entries = stored.load(baseline) if baseline else {}
    except ValueError as error:
        typer.echo(f"sluicegate compile: {error}", err=True)
        raise typer.Exit(USAGE) from error

    import triton
    from rich.console import Console

    from harness.cli.progress import StagesBar
    from harness.compiling import matrix, report
    from harness.report.model import environment
    from harness.verification import default_workers

    console = Console(file=sys.stdout)
    count, start = jobs or default_workers("cpu"), time.perf_counter()
    with StagesBar(console, "compile") as progress:
        cells = matrix.run(subjects, archs, dtypes, jobs=count, listener=progress.advance)
    version = triton.__version__
    compared = ""
    if baseline:
        known = stored.compare(cells, entries, version)
        compared = (
            f"{known:,} of {matrix.summary(cells)['cells']:,} cells compared with {baseline} for Triton {version}"
        )
    if save_baseline:
        stored.save(cells, save_baseline, version)
    run = {
        "command": "sluicegate " + shlex.join(sys.argv[1:]),
        "archs": archs,
        "started": started,
        "seconds": round(time.perf_counter() - start, 2),
        "jobs": count,
        "triton": version,
        "baseline": compared,
    }
    paths = report.save(report.build(cells, environment(), run), cells, out)
    report.show(console, cells, run, paths)
    raise typer.Exit(matrix.exit_status(cells))


def _subjects(names: list[str] | None, texts: list[str] | None) -> list[Subject]:
    from harness.operators import OPERATORS, get
    from harness.subjects import Capabilities, parse, registered

    given = [parse(text, OPERATORS) for text in texts or ()]
    # Naming a subject without an operator means that operator.
    chosen = dict.fromkeys(get(name).name for name in names or [s.operator for s in given] or OPERATORS)
    for one in given:
        if one.operator not in chosen:
            raise ValueError(
                f"--subject: {one.spec} is given, but {one.operator} is not among the operators to compile"
            )
    found: list[Subject] = []
    for name in chosen:
        of = [s for s in given if s.operator == name] or registered(name)
        if not of:
            raise ValueError(f"{name}: no subject is registered; give one with --subject {name}=module:function")
        found += of
    for one in found:
        Capabilities.of(one.load())
    return found


def _archs(names: list[str] | None) -> list[str]:
    from harness.compiling.device import ARCHITECTURES, architecture

    return [architecture(name).name for name in dict.fromkeys(names or ARCHITECTURES)]


def _dtypes(names: list[str] | None) -> list[str] | None:
    known = ("float32", "float16", "bfloat16")
    for name in names or ():
        if name not in known:
            raise ValueError(f"--dtype: got {name!r}, expected one of {', '.join(known)}")
    return names or None
