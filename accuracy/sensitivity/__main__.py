"""``python -m accuracy.sensitivity``: planted faults through the gate, in a process that may crash."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from accuracy.gate import Rule
from accuracy.sensitivity import faults, table, worker
from accuracy.sensitivity.setup import Words, keep


def main(
    model: Annotated[str, typer.Option(help="Folder of the checkpoint.")],
    out: Annotated[Path, typer.Option(help="Results, a file each; those that are there are kept.")],
    task: Annotated[str, typer.Option(help="As for sluicegate accuracy.")] = "miniature",
    limit: Annotated[int | None, typer.Option(help="Only the first so many questions.", min=1)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU.")] = "auto",
    kernels: Annotated[str, typer.Option(help="What the faults are planted into.")] = "optimized",
    concurrency: Annotated[int, typer.Option(help="Most requests at once.", min=1)] = 64,
    told: Annotated[int, typer.Option(help="Questions of the token check.", min=1)] = 100,
    shots: Annotated[int, typer.Option(help="Worked problems before each of the miniature's questions.", min=0)] = 0,
    chunk_budget: Annotated[
        int | None, typer.Option(help="Most tokens in a step; longer prompts are cut. 512, on a GPU 8192.", min=1)
    ] = None,
    margin: Annotated[float, typer.Option(help="Of the gate.")] = 0.01,
    fault: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds after which nothing more is begun.")] = 1e9,
    patience: Annotated[float, typer.Option(help="Seconds for one fault before it counts as hung.")] = 300.0,
    processes: Annotated[int, typer.Option(help="Faults at once: one model does not fill a GPU.", min=1)] = 1,
    current: Annotated[Path | None, typer.Option("--worker", hidden=True)] = None,
) -> None:
    """Plant each fault, ask the task, and say which of three ways notices: the paired gate, the token check, a threshold.

    Writes OUT/sensitivity.json and .md. The same command goes on with what is missing.
    """
    known = faults.known()
    ids = list(fault or known)
    if unknown := [id for id in ids if id not in known]:
        typer.echo(
            f"accuracy.sensitivity: --fault: got {', '.join(unknown)}, expected some of {', '.join(known)}", err=True
        )
        raise typer.Exit(2)
    try:
        words = Words(
            model, task, limit, device, dtype, kernels, concurrency, told, shots=shots, chunk_budget=chunk_budget
        )
        keep(words, margin, out)
    except ValueError as error:
        typer.echo(f"accuracy.sensitivity: {error}", err=True)
        raise typer.Exit(2) from error
    if current is not None:
        worker.run(words, ids, out, Rule(margin=margin), time_limit, current)
        return
    begun = time.monotonic()

    def tried(lane: int, mine: Sequence[str]) -> None:
        while left_over := _missing(mine, out):
            left = time_limit - (time.monotonic() - begun)
            if left <= 0 or not _watched(sys.argv[1:], left_over, out, left, patience, out / f"current-{lane}"):
                break

    missing = _missing(ids, out)
    if processes > 1:
        # One alone completes the baseline, which all others read.
        tried(0, missing[:1])
        missing = [] if _missing(missing[:1], out) else missing[1:]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(tried, range(processes), [missing[lane::processes] for lane in range(processes)]))
    rows = [json.loads(worker.result_file(out, id).read_text()) for id in ids if worker.result_file(out, id).exists()]
    right = out / "right.json"
    left_out = _missing(ids, out)
    found = {
        "measured": asdict(words) | {"margin": margin},
        "right": json.loads(right.read_text()) if right.exists() else None,
        "summary": table.summary(rows),
        "missing": left_out,
        "rows": rows,
    }
    path = table.save(found, out, "sensitivity")
    typer.echo((out / "sensitivity.md").read_text())
    typer.echo(f"{found['summary']}, {len(left_out)} not tried; {path}")


def _missing(ids: Sequence[str], out: Path) -> list[str]:
    return [id for id in ids if not worker.result_file(out, id).exists()]


def _watched(arguments: list[str], ids: list[str], out: Path, seconds: float, patience: float, current: Path) -> bool:
    """Have a process try these; False where it ended without having tried anything more, for want of time or of a setup.

    Args:
        current: where it says what it is trying.
    """
    current.unlink(missing_ok=True)
    done = _done(ids, out)
    words = _without(arguments, "--fault", "--time-limit", "--processes")
    words += ["--worker", str(current)]
    words += [word for id in ids for word in ("--fault", id)] + ["--time-limit", str(seconds)]
    process = subprocess.Popen([sys.executable, "-m", "accuracy.sensitivity", *words])
    hung = False
    while process.poll() is None:
        time.sleep(0.5)
        if current.exists() and time.time() - current.stat().st_mtime > patience:
            hung = True
            process.kill()
            process.wait()
    if current.exists():
        id = current.read_text()
        what = f"hung for {patience:g} s" if hung else f"crashed with status {process.returncode}"
        worker.write(out, id, {"broke": what})
        current.unlink()
    typer.echo(f"{_done(ids, out)} of {len(ids)} tried", err=True)
    return _done(ids, out) > done


def _done(ids: list[str], out: Path) -> int:
    return len(ids) - len(_missing(ids, out))


def _without(words: list[str], *options: str) -> list[str]:
    """The words without these options and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif not word.startswith(tuple(f"{option}=" for option in options)):
            kept.append(word)
    return kept


if __name__ == "__main__":
    typer.run(main)
