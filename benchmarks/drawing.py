"""A drawing of one results file: how many times the floor each side takes, batch by batch.

`python -m benchmarks.drawing benchmarks/results/NAME.json` draws one again, on any machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart too; a side keeps its colour in every panel.
COLORS = {
    "ours": "#0072B2",
    "sglang": "#E69F00",
    "fla": "#009E73",
    "flashinfer": "#CC79A7",
    "torch grouped": "#56B4E9",
    "transformers": "#D55E00",
    "baseline": "#999999",
}
INCHES_A_GROUP = 1.25


def draw(results: Path) -> Path:
    """Write `results` with the suffix .svg beside it and return that path. One panel an operator."""
    content = json.loads(results.read_text())
    panels: dict[str, list[dict[str, Any]]] = {}
    for case in content["cases"]:
        panels.setdefault(case["operator"], []).append(case)
    path = results.with_suffix(".svg")
    # Text stays text, and the same results give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sluicegate", "font.size": 9}):
        widest = max((len(cases) for cases in panels.values()), default=1)
        figure = Figure(figsize=(2 + INCHES_A_GROUP * widest, 0.6 + 2.8 * max(len(panels), 1)), layout="constrained")
        FigureCanvasSVG(figure)
        environment = content["environment"]
        figure.suptitle(
            f"Time over the floor (logarithmic; hatched: eager, host time included). {environment['gpu']}, "
            f"copy {content['copy_bytes_per_second'] / 1e12:.2f} TB/s, {environment['date'][:10]}"
        )
        for index, (operator, cases) in enumerate(panels.items()):
            _panel(figure.add_subplot(len(panels), 1, index + 1), operator, cases)
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _panel(axes: Axes, operator: str, cases: list[dict[str, Any]]) -> None:
    timed = {side for case in cases for side, timing in case["sides"].items() if isinstance(timing, dict)}
    sides = [side for side in COLORS if side in timed] + sorted(timed - set(COLORS))
    width = 0.8 / max(len(sides), 1)
    for position, side in enumerate(sides):
        for group, case in enumerate(cases):
            timing = case["sides"].get(side)
            if not isinstance(timing, dict):
                continue
            ratio = timing["median_us"] / case["floor_us"]
            x = group + (position - (len(sides) - 1) / 2) * width
            hatch = "///" if timing["method"] == "eager" else None
            color = COLORS.get(side, "#555555")
            axes.bar(x, ratio, width * 0.92, color=color, hatch=hatch, edgecolor="white", linewidth=0)
            label = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
            axes.annotate(label, (x, ratio), (0, 1), textcoords="offset points", ha="center", fontsize=6)
    axes.axhline(1, color="#333333", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.margins(y=0.15)
    axes.set_xticks(range(len(cases)), [f"{case['label']}\nfloor {case['floor_us']:.3g} µs" for case in cases])
    axes.set_title(operator, loc="left", fontweight="bold")
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    # Proxies: a side's first bar may be a hatched one.
    for side in sides:
        axes.bar(0, 0, color=COLORS.get(side, "#555555"), label=side)
    axes.legend(ncols=len(sides), frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, 1.16))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drawing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON files that `python -m benchmarks` wrote")
    for results in parser.parse_args().results:
        print(draw(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
