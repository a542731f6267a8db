"""``python -m accuracy.specificity``: right runs with other batch sizes, chunks and seeds, which the gate must let pass."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from accuracy.gate import Rule
from accuracy.sensitivity import table
from accuracy.sensitivity.setup import Words, keep, read
from accuracy.sensitivity.trial import Distance, Setup, answered, judge
from accuracy.tokens import through_engine
from harness.files import write_whole

#: Five sizes of batch, two of chunks, two ways of giving slots: 20 runs. A batch of eight takes a GPU a minute.
BATCHES = (32, 48, 64, 96, 192)
#: A step holds a token of every request, so none is smaller than a batch.
CHUNKS = (256, 1024)
SEEDS = (0, 7)


def main(
    model: Annotated[str, typer.Option(help="Folder of the checkpoint.")],
    out: Annotated[Path, typer.Option(help="Results, a file each; those that are there are kept.")],
    task: Annotated[str, typer.Option(help="As for sluicegate accuracy.")] = "miniature",
    limit: Annotated[int | None, typer.Option(help="Only the first so many questions.", min=1)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU.")] = "auto",
    kernels: Annotated[str, typer.Option(help="As for sluicegate accuracy.")] = "optimized",
    concurrency: Annotated[int, typer.Option(help="Of the baseline.", min=1)] = 64,
    told: Annotated[int, typer.Option(help="Questions of the token check.", min=1)] = 100,
    shots: Annotated[int, typer.Option(help="Worked problems before each of the miniature's questions.", min=0)] = 0,
    margin: Annotated[float, typer.Option(help="Of the gate.")] = 0.01,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            help=f"Most requests at once, four runs each; may be repeated. {', '.join(map(str, BATCHES))}.",
            min=1,
            max=min(CHUNKS),
        ),
    ] = None,
    runs: Annotated[int | None, typer.Option(help="Only the first so many right runs.", min=1)] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds after which nothing more is begun.")] = 1e9,
) -> None:
    """Compare right runs with one: how many answers flip, and whether the gate raises an alarm.

    Writes OUT/specificity.json and .md. The same command goes on with what is missing. Once the baseline is complete (--runs 1),
    several may run in one folder, each with a --batch of its own; the command without --batch then puts all runs on one page.
    """
    begun = time.monotonic()
    try:
        words = Words(model, task, limit, device, dtype, kernels, concurrency, told, shots=shots)
        keep(words, margin, out)
    except ValueError as error:
        typer.echo(f"accuracy.specificity: {error}", err=True)
        raise typer.Exit(2) from error
    setup, rule = read(words), Rule(margin=margin)
    baseline = answered(setup, setup.answering(), out / "runs" / "right.jsonl", "right")
    logits = through_engine(setup.answering(), setup.told)
    rows: list[dict[str, Any]] = []
    for name, way in list(ways(setup, batch or BATCHES).items())[:runs]:
        path = out / "right" / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            if time.monotonic() - begun > time_limit:
                break
            new = answered(way, way.answering(), out / "runs" / f"{name.replace(' ', '-')}.jsonl", name)
            distance = Distance.between(logits, through_engine(way.answering(), way.told))
            record = {"id": name, "kind": "right", **judge(baseline, new, distance, distance, rule)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(record, indent=2) + "\n")
        rows.append(json.loads(path.read_text()))
        typer.echo(f"{name}: {rows[-1]['lost']} lost, {rows[-1]['won']} won, {rows[-1]['verdict']}", err=True)
    flips = [(row["lost"] + row["won"]) / len(setup.task.asked) for row in rows]
    design = rule.design(len(setup.task.asked))
    found = {
        "measured": asdict(words) | {"margin": margin},
        "summary": {
            "runs": len(rows),
            "alarms": sum(row["gate"] for row in rows),
            "false_alarm_rate": design.false_alarm_rate,
            "mean_flip_rate": sum(flips) / len(flips) if flips else 0.0,
            "most_flip_rate": max(flips, default=0.0),
            "as_before": sum(row["verdict"] == "as before" for row in rows),
        },
        "rows": rows,
    }
    path = table.save(found, out, "specificity")
    typer.echo((out / "specificity.md").read_text())
    typer.echo(f"{found['summary']}; {path}")


def ways(setup: Setup, batches: Sequence[int] = BATCHES) -> dict[str, Setup]:
    """Right ways to ask the same, by name."""
    return {
        f"batch {batch} chunks {chunk} seed {seed}": replace(setup, concurrency=batch, chunk_budget=chunk, seed=seed)
        for batch, chunk, seed in product(batches, CHUNKS, SEEDS)
    }


if __name__ == "__main__":
    typer.run(main)
