"""What ``sluicegate serve`` says: in the terminal, as JSON, and as a drawing of the run."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from harness.files import write_whole
from harness.report.model import environment
from serving.assertion import PHASES, Outcome
from serving.bisection import Blame
from serving.model import HybridModel
from serving.oracle import Finding
from serving.settings import EngineSettings
from serving.workload import Mix

#: Findings that the terminal shows; serve.json has this many of them.
SHOWN, SAVED = 5, 200
KINDS = {
    "metadata": "metadata of steps",
    "accounting": "slots and pages",
    "schedule": "schedule",
    "answer": "tokens and logits",
}


def show(console: Console, outcome: Outcome, wrong: Finding | None, traced: Blame | None) -> None:
    table = Table(show_header=False, box=None, padding=(0, 1))
    for name, count in outcome.counts.items():
        if count:
            table.add_row(name, f"{count:,}")
    console.print(table)
    for finding in outcome.findings[:SHOWN]:
        console.print(f"  {finding}", style="red", highlight=False, soft_wrap=True, markup=False)
    if len(outcome.findings) > SHOWN:
        console.print(f"  … {len(outcome.findings) - SHOWN:,} more", style="red")
    if wrong is not None:
        place = f"request {wrong.request} goes wrong first, in step {wrong.step}, at its token {wrong.position}"
        console.print(f"{place}: {traced or 'not traced'}", style="bold red", highlight=False, soft_wrap=True)
    console.print(conclusion(outcome), style="bold", highlight=False, soft_wrap=True)


def conclusion(outcome: Outcome) -> str:
    counts, seconds = outcome.counts, outcome.seconds
    found = ", ".join(f"{len(outcome.of(kind))} in {words}" for kind, words in KINDS.items())
    speed = counts["answer tokens"] / seconds["serving"]
    judged = f", judged in {seconds['judging']:.0f} s" if "judging" in seconds else ", answers not judged"
    return (
        f"{counts['requests']:,} requests, {len(outcome.findings)} mismatches ({found}); {counts['answer tokens']:,} tokens in"
        f" {seconds['serving']:.0f} s ({speed:,.0f} a second){judged}"
    )


def decode_step_times(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Rows of a step of decodes alone -> median microseconds of the host, by phase and in all."""
    by_rows: dict[int, list[dict[str, float]]] = {}
    for entry in outcome.decode_seconds:
        by_rows.setdefault(int(entry["rows"]), []).append(entry)
    return {
        str(rows): {
            "steps": len(entries),
            **{
                phase: round(1e6 * statistics.median(entry.get(phase, 0.0) for entry in entries), 1) for phase in PHASES
            },
            "all": round(1e6 * statistics.median(sum(entry.get(p, 0.0) for p in PHASES) for entry in entries), 1),
        }
        for rows, entries in sorted(by_rows.items())
    }


def save(
    out: Path,
    outcome: Outcome,
    wrong: Finding | None,
    traced: Blame | None,
    *,
    command: str,
    model: HybridModel,
    settings: EngineSettings,
    mix: Mix,
    kernels: str,
) -> Path:
    """serve.json and serve.svg in ``out``; the JSON's path."""
    out.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {
        "schema_version": 1,
        "command": command,
        "environment": environment(),
        "kernels": kernels,
        "model": asdict(model.config) | {"dtype": str(model.dtype).removeprefix("torch.")},
        "engine": {name: str(value) if name == "state_dtype" else value for name, value in asdict(settings).items()},
        "workload": asdict(mix),
        "conclusion": conclusion(outcome),
        "counts": dict(outcome.counts),
        "seconds": outcome.seconds,
        "answer_tokens_a_second": outcome.counts["answer tokens"] / outcome.seconds["serving"],
        "decode_step_microseconds": decode_step_times(outcome),
        "mismatches": {kind: len(outcome.of(kind)) for kind in KINDS},
        "first_wrong_answer": None if wrong is None else _plain(wrong) | {"blame": str(traced)},
        "findings": [_plain(finding) for finding in outcome.findings[:SAVED]],
    }
    path = out / "serve.json"
    write_whole(path, json.dumps(data, indent=1) + "\n")
    draw(outcome, out / "serve.svg")
    return path


def _plain(finding: Finding) -> dict[str, Any]:
    return {name: value if isinstance(value, int | str) else str(value) for name, value in asdict(finding).items()}


def draw(outcome: Outcome, path: Path) -> None:
    """The rows of each step, contexts and decodes; a red line where something was mismatched."""
    steps = range(len(outcome.timeline))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    contexts = [entry["contexts"] for entry in outcome.timeline]
    decodes = [entry["decodes"] for entry in outcome.timeline]
    axes[0].stackplot(
        steps, decodes, contexts, labels=("decodes", "contexts"), colors=("#7aa6c2", "#e0a458"), step="mid"
    )
    axes[0].set_ylabel("rows")
    axes[0].legend(loc="upper right", frameon=False, ncols=2)
    axes[1].stackplot(steps, [entry["tokens"] for entry in outcome.timeline], colors=("#9a9a9a",), step="mid")
    axes[1].set_ylabel("tokens")
    axes[1].set_xlabel("step")
    for step in sorted({finding.step for finding in outcome.findings if finding.step >= 0}):
        for one in axes:
            one.axvline(step, color="#c0392b", linewidth=0.6)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.margins(x=0)
    figure.savefig(path, format="svg", metadata={"Date": None})
