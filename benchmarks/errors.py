"""`python -m benchmarks.errors [--sides NAME ...] [--heads H HV] [--cases N] [--out DIR] ...`: how far each library's rows are from
the oracle.

A library is not put on trial here, as `sluicegate verify --subject` would: every side gets the same batches at the shapes of
published models, with nothing hostile about their memory, and all of its rows are counted, those over the budget too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import report
from benchmarks.cases import PEERS
from harness import operators, strategies
from harness.case import Case, Layout
from harness.cell import CellResult, CellSpec, adapted
from harness.context import Context
from harness.draws import draws
from harness.execution import DeviceLost
from harness.failure import Failure
from harness.files import write_whole
from harness.operators.gdn_prefill import GdnPrefill
from harness.report import error_figures, model
from harness.subjects import Capabilities

OPERATOR = "gdn_prefill"
SIDES = {"ours": "optimized.gdn_prefill", **{name: f"optimized.peers.{name}" for name in PEERS}}
NO_DEVICE = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.errors", description=__doc__)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="NAME", help=", ".join(SIDES))
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument(
        "--heads",
        nargs=2,
        type=int,
        metavar=("H", "HV"),
        help="in every batch: a library that tunes itself for each shape needs it",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=GdnPrefill().dtypes)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the JSON file and the drawing"
    )
    parser.add_argument("--commit", help="recorded in the results; default: SLUICEGATE_COMMIT, else git's HEAD")
    arguments = parser.parse_args()
    console = Console()
    if not torch.cuda.is_available():
        console.print("No CUDA device: nothing was measured. The peers' kernels have no interpreter to run in.")
        return NO_DEVICE

    strategy = GdnPrefill().published_cases(strategies.GPU, arguments.dtype)
    drawn = draws(strategy.filter(lambda case: case.tokens > 0), arguments.cases, arguments.seed)
    cases = [plain(case, arguments.heads) for case in drawn if isinstance(case, Case)]
    found: dict[str, dict[str, Any]] = {}
    results = []
    env = report.environment(arguments.commit)
    chosen = "" if len(arguments.sides) == len(SIDES) else "-".join(["", *(s for s in arguments.sides if s != "ours")])
    name = f"row-errors-{arguments.dtype}{chosen}-{report.stem(env)}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {}
    for side in arguments.sides:
        result, found[side] = measure(side, SIDES[side], cases, arguments.dtype, console)
        results.append(result)
        data = model.row_errors(results)
        # After each side: one that tunes itself may take longer than the machine is lent for.
        saved = {
            "environment": env,
            "seed": arguments.seed,
            "heads": arguments.heads,
            "sides": found,
            "row_errors": data,
        }
        write_whole(arguments.out / f"{name}.json", json.dumps(saved, indent=1) + "\n")
        draw(data, arguments.out / f"{name}.svg")
    show(console, found, data)
    console.print(f"Written to {arguments.out / name}.json and .svg")
    return 0


def draw(data: dict[str, Any], path: Path) -> None:
    figures = error_figures.figures(data)
    if figures:
        svg = figures["operators"][0]["figures"][0]["svg"].replace(
            "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1
        )
        write_whole(path, svg)


def plain(case: Case, heads: tuple[int, int] | None) -> Case:
    """Memory as an engine has it; of values only what a model has."""
    dims = dict(case.dims) if heads is None else {**case.dims, "H": heads[0], "HV": heads[1]}
    return case.with_(layout=Layout(), state_dtype="float32", regime={**case.regime, "amplitude": "unit"}, dims=dims)


def measure(
    side: str, module: str, cases: list[Case], dtype: str, console: Console
) -> tuple[CellResult, dict[str, Any]]:
    """The rows of one side over all cases, and what became of the cases: within budget, over it, or not computed."""
    operator = operators.get(OPERATOR)
    spec = CellSpec(OPERATOR, side, f"{module}:{OPERATOR}", "row errors", "cuda", dtype, len(cases), 0)
    counts: dict[str, Any] = {"within budget": 0, "over budget": 0, "raised": 0}
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), OPERATOR)
    except (ImportError, AttributeError) as error:
        return CellResult(spec, "not_run", reason=str(error)), {"why": f"{type(error).__name__}: {error}"[:200]}
    capabilities = Capabilities.of(function)
    context = Context(operator, function, torch.device("cuda"), capabilities, check_memory=False)
    for case in track(cases, f"Rows of {side}", console=console):
        batch = context.batch(adapted(case, capabilities))
        try:
            context.require_within_budget(context.run(batch), batch)
            counts["within budget"] += 1
        except DeviceLost:
            raise
        except Failure as failure:
            counts["over budget" if failure.symptom == "over budget" else "raised"] += 1
            if failure.symptom != "over budget":
                counts.setdefault("why", failure.message[:200])
        except Exception as error:  # noqa: BLE001 - a library that is not all there: said in the table, the others go on
            counts["raised"] += 1
            counts.setdefault("why", f"{type(error).__name__}: {error}"[:200])
    return CellResult(spec, "passed", cases=len(cases), row_errors=context.tally.read()), counts


def show(console: Console, found: dict[str, dict[str, Any]], data: dict[str, Any]) -> None:
    table = Table(title=f"{OPERATOR}: rows' errors against the float64 oracle", title_justify="left")
    for column in ("side", "cases", "tensor", "rows", "share median", "p99.99", "largest", "to model, median"):
        table.add_column(column, justify="left" if column in ("side", "cases", "tensor") else "right")
    for side, counts in found.items():
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if what != "why" and count)
        said = ": ".join(part for part in (said, counts.get("why")) if part)
        rows = [entry for entry in data["tensors"] if entry["subject"] == side]
        for entry in rows or [None]:
            numbers = (
                ["", "", "", "", "", ""] if entry is None else [entry["tensor"], f"{entry['rows']:,}", *_words(entry)]
            )
            table.add_row(side, said, *numbers)
    console.print(table)


def _words(entry: dict[str, Any]) -> list[str]:
    share = [f"{float(entry['share'][part]):.2g}" for part in ("median", "p99.99", "max")]
    return [*share, f"{float(entry['ratio']['median']):.2g}"]


if __name__ == "__main__":
    sys.exit(main())
