"""Results: one JSON file a run, and the same as a table in the terminal."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Table

from benchmarks.breakdown import Kernel
from benchmarks.timing import Timing

SCHEMA_VERSION = 1

# Rows of a side in the table of kernels; the JSON file has all.
MOST_KERNELS = 8


@dataclass
class Row:
    operator: str
    label: str
    num_bytes: int
    floor_us: float
    """`num_bytes` at the copy bandwidth of this run; for `moe`, what the datasheet allows."""
    copy_us: float
    """What a plain copy kernel of as many bytes took in this run."""
    moved_bytes: int | None = None
    """What ours moves by its own account; None: `num_bytes`."""
    sides: dict[str, Timing | str] = field(default_factory=dict)
    kernels: dict[str, list[Kernel]] = field(default_factory=dict)
    """Where the time of a side goes, if that was asked for."""

    @property
    def bandwidth_share(self) -> float | None:
        """The floor as a fraction of ours."""
        ours = self.sides.get("ours")
        return self.floor_us / ours.median_us if isinstance(ours, Timing) else None


@dataclass
class HostRow:
    label: str
    sides: dict[str, Timing | str]


def environment(commit: str | None) -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit or os.environ.get("SLUICEGATE_COMMIT") or _head(),
    }


def stem(env: dict[str, Any]) -> str:
    """What results measured there and then are named by: the GPU and the day."""
    return f"{(env['gpu'] or 'gpu').replace(' ', '-').lower()}-{env['date'][:10]}"


def write(path: Path, env: dict[str, Any], bandwidth: float, rows: list[Row], host_rows: list[HostRow]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "schema_version": SCHEMA_VERSION,
        "environment": env,
        "copy_bytes_per_second": bandwidth,
        "cases": [{**asdict(row), "bandwidth_share": row.bandwidth_share} for row in rows],
        "host": [asdict(row) for row in host_rows],
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


def show(console: Console, bandwidth: float, rows: list[Row], host_rows: list[HostRow]) -> None:
    sides = list(dict.fromkeys(name for row in rows for name in row.sides))
    table = Table(
        title=f"Device time in us (median; * eager, host time included). Copy bandwidth {bandwidth / 1e12:.2f} TB/s",
        title_justify="left",
    )
    for column in ("operator", "batch"):
        table.add_column(column)
    for column in ("floor", "copy", *sides, "of the floor", "moved / floor", "launches"):
        table.add_column(column, justify="right")
    for row in rows:
        ours = row.sides.get("ours")
        share = row.bandwidth_share
        table.add_row(
            row.operator,
            row.label,
            f"{row.floor_us:.1f}",
            f"{row.copy_us:.1f}",
            *(_cell(row.sides.get(name)) for name in sides),
            "" if share is None else f"{share:.0%}",
            "" if row.moved_bytes is None else f"{row.moved_bytes / row.num_bytes:.2f}",
            "" if not isinstance(ours, Timing) else str(ours.launches or "?"),
        )
    console.print(table)
    if any(row.kernels for row in rows):
        console.print(_kernel_table(rows))
    host = Table(title="Host time in us", title_justify="left")
    host.add_column("work")
    for name in ("ours", "baseline"):
        host.add_column(name, justify="right")
    for entry in host_rows:
        host.add_row(entry.label, *(_cell(entry.sides.get(name)) for name in ("ours", "baseline")))
    if host_rows:
        console.print(host)


def _kernel_table(rows: list[Row]) -> Table:
    table = Table(title="Where the time goes: device time in us of one call, gaps left out", title_justify="left")
    for column in ("operator", "batch", "side", "kernel"):
        table.add_column(column, overflow="fold")
    for column in ("launches", "us"):
        table.add_column(column, justify="right")
    for row in rows:
        for side, kernels in row.kernels.items():
            for kernel in kernels[:MOST_KERNELS]:
                table.add_row(
                    row.operator, row.label, side, kernel.name, f"{kernel.launches:g}", f"{kernel.device_us:.1f}"
                )
            if rest := kernels[MOST_KERNELS:]:
                launches, us = sum(kernel.launches for kernel in rest), sum(kernel.device_us for kernel in rest)
                table.add_row(row.operator, row.label, side, f"{len(rest)} others", f"{launches:g}", f"{us:.1f}")
        table.add_section()
    return table


def _cell(side: Timing | str | None) -> str:
    if isinstance(side, Timing):
        return f"{side.median_us:.1f}" + ("*" if side.method == "eager" else "")
    return side or ""


def _head() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
