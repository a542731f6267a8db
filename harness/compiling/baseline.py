"""Figures of an earlier run, and what has become worse since.

A baseline is a JSON file that its owner keeps: Triton version, then subject, kernel, shape and architecture. Figures of
another Triton are another compiler's, so they are never compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.compiling.device import ARCHITECTURES
from harness.compiling.judge import exceeded
from harness.compiling.matrix import Cell
from harness.compiling.resources import Figures

SCHEMA_VERSION = 1
#: Registers are given to a warp in groups of eight a thread: fewer than one group more changes nothing.
REGISTER_MARGIN = 8

#: version -> subject -> kernel -> shape -> architecture -> figures
Entries = dict[str, dict[str, dict[str, dict[str, dict[str, dict[str, int]]]]]]


def _kept(figures: Figures) -> dict[str, int]:
    return {"registers": figures.registers, "spills": figures.spills, "shared": figures.shared}


def load(path: Path) -> Entries:
    """The entries of a baseline file.

    Raises:
        ValueError: no such file, or another format.
    """
    if not path.is_file():
        raise ValueError(f"--baseline: no file {path}; --save-baseline {path} makes one")
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--baseline: {path} is not JSON ({error}); --save-baseline {path} makes one") from error
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"--baseline: {path} has another format than {SCHEMA_VERSION}; --save-baseline {path} makes one"
        )
    entries: Entries = data["triton"]
    return entries


def compare(cells: Iterable[Cell], entries: Entries, version: str) -> int:
    """Note on each cell what is worse than the baseline says, and fail it; returns how many cells had an entry.

    Spills that the baseline has too are known: somebody stored them, so that they are no news. Limits are never known.
    """
    known = 0
    for cell in cells:
        if cell.figures is None:
            continue
        subject, kernel, shape = cell.line
        before = entries.get(version, {}).get(subject, {}).get(kernel, {}).get(shape, {}).get(cell.arch)
        if before is None:
            continue
        known += 1
        cell.regressions = _worse(before, _kept(cell.figures))
        if cell.regressions:
            cell.status = "failed"
        elif cell.figures.spills and not exceeded(cell.figures, ARCHITECTURES[cell.arch]):
            cell.status = "known"
    return known


def _worse(before: dict[str, int], now: dict[str, int]) -> list[str]:
    found = []
    if now["registers"] > before["registers"] + REGISTER_MARGIN:
        found.append(f"takes {now['registers']} registers, the baseline {before['registers']}")
    if now["spills"] > before["spills"]:
        found.append(f"spills {now['spills']} bytes stored and loaded, the baseline {before['spills']}")
    if now["shared"] > before["shared"]:
        found.append(f"takes {now['shared']:,} bytes of shared memory, the baseline {before['shared']:,}")
    return found


def save(cells: Iterable[Cell], path: Path, version: str) -> None:
    """Write the figures of these cells over those of the same subjects, dtypes and architectures; the rest stays."""
    cells = [cell for cell in cells if cell.figures is not None]
    entries = load(path) if path.exists() else {}
    mine = entries.setdefault(version, {})
    _forget(mine, cells)
    for cell in cells:
        assert cell.figures is not None
        subject, kernel, shape = cell.line
        mine.setdefault(subject, {}).setdefault(kernel, {}).setdefault(shape, {})[cell.arch] = _kept(cell.figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_written(entries), encoding="utf-8")


def _forget(mine: dict[str, Any], cells: list[Cell]) -> None:
    """Drop what this run has measured anew: a kernel or a shape that is gone would otherwise stay for ever."""
    again = {(cell.line[0], cell.dtype, cell.arch) for cell in cells}
    for subject, kernels in mine.items():
        for kernel, shapes in list(kernels.items()):
            for shape, archs in list(shapes.items()):
                dtype = shape.partition(",")[0]
                shapes[shape] = {arch: one for arch, one in archs.items() if (subject, dtype, arch) not in again}
                if not shapes[shape]:
                    del shapes[shape]
            if not shapes:
                del kernels[kernel]


def _written(entries: Entries) -> str:
    """JSON with one line for each shape: a change of a kernel is a change of a few lines."""

    def block(value: Any, depth: int) -> str:
        if depth == 0:
            return json.dumps(value, sort_keys=True)
        pad = " " * (5 - depth)
        lines = (f"{pad}{json.dumps(name)}: {block(value[name], depth - 1)}" for name in sorted(value))
        return "{\n" + ",\n".join(lines) + "\n" + pad[1:] + "}"

    return f'{{"schema_version": {SCHEMA_VERSION}, "triton":\n{block(entries, 4)}}}\n'
