"""`python -m benchmarks [--operators NAME ...] [--breakdown] [--out DIR] [--commit HASH]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from benchmarks import breakdown, cases, drawing, host, report, timing
from benchmarks.timing import Timing

OPERATORS = ("conv_prefill", "conv_update", "gdn_prefill", "gdn_decode", "gated_rmsnorm", "moe", "metadata")
NO_DEVICE = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=OPERATORS, metavar="NAME")
    parser.add_argument(
        "--breakdown", action="store_true", help="also the device time of every kernel, by the profiler"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the JSON file")
    parser.add_argument("--commit", help="recorded in the results; default: SLUICEGATE_COMMIT, else git's HEAD")
    arguments = parser.parse_args()
    console = Console()
    if not torch.cuda.is_available():
        console.print("No CUDA device: nothing was measured. Timings of the interpreter would say nothing.")
        return NO_DEVICE

    env = report.environment(arguments.commit)
    bandwidth = timing.copy_bandwidth()
    chosen = [case for case in cases.all_cases() if case.operator in arguments.operators]
    rows = [measure(case, bandwidth, arguments.breakdown) for case in track(chosen, "Measuring", console=console)]
    host_rows = host.host_rows() if "metadata" in arguments.operators else []

    name = f"{report.stem(env)}.json"
    report.write(arguments.out / name, env, bandwidth, rows, host_rows)
    report.show(console, bandwidth, rows, host_rows)
    picture = drawing.draw(arguments.out / name)
    console.print(f"Written to {arguments.out / name}, drawn in {picture}")
    return 0


def measure(case: cases.Case, bandwidth: float, kernels: bool = False) -> report.Row:
    """Every side of one case, one after the other on the same input sets; with `kernels`, where its time goes."""
    copy_us = timing.copy_time(case.num_bytes, case.sets)
    floor_us = case.num_bytes / bandwidth * 1e6 if case.datasheet_us is None else case.datasheet_us
    row = report.Row(case.operator, case.label, case.num_bytes, floor_us, copy_us, case.moved_bytes)
    sides = case.build(case.sets)
    # There and back: whoever comes first finds a cooler device and other clocks than whoever comes last.
    for side, calls in [*sides.items(), *reversed(sides.items())]:
        row.sides[side] = calls if isinstance(calls, str) else _quicker(row.sides.get(side), _time(calls))
    for side, calls in sides.items():
        if kernels and not isinstance(calls, str) and isinstance(row.sides[side], Timing):
            row.kernels[side] = breakdown.kernels(calls)
    torch.cuda.empty_cache()
    return row


def _time(calls: list[timing.Call]) -> Timing | str:
    """A side that breaks is shown as broken; the others are still measured."""
    try:
        return timing.time_calls(calls)
    except Exception as error:  # noqa: BLE001 - libraries raise what they like, compilers classes of their own
        return timing.failed(error)


def _quicker(before: Timing | str | None, now: Timing | str) -> Timing | str:
    """Of two measurements of a side; one that broke counts."""
    if isinstance(before, Timing) and isinstance(now, Timing):
        return min(before, now, key=lambda timing: timing.median_us)
    return before if isinstance(before, str) else now


if __name__ == "__main__":
    sys.exit(main())
