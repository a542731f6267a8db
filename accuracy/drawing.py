"""The interval of a difference against the margin, drawn."""

from __future__ import annotations

from pathlib import Path

from accuracy.gate import Comparison
from accuracy.unpaired import Unpaired

#: Colours that differ for everybody, and in print.
COLOURS = {"as before": "#009e73", "improved": "#0072b2", "regression": "#d55e00", "too little power to say": "#7f7f7f"}


def draw(found: Comparison | Unpaired, margin: float, path: Path) -> None:
    """An SVG: the difference with its interval in points, no difference, and the loss that must not be missed."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "sluicegate"
    from matplotlib import pyplot

    difference = found.pairs.difference if isinstance(found, Comparison) else found.accuracy - found.reference.accuracy
    low, middle, high = (100 * share for share in (found.low, difference, found.high))
    figure, axes = pyplot.subplots(figsize=(7, 1.6), layout="constrained")
    reach = 1.15 * max(abs(low), abs(high), 100 * margin)
    axes.axvspan(-reach, -100 * margin, color="#d55e00", alpha=0.12, linewidth=0)
    axes.axvline(-100 * margin, color="#d55e00", linestyle="--", linewidth=1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.plot([low, high], [0, 0], color=COLOURS[found.verdict], linewidth=4, solid_capstyle="butt")
    axes.plot([middle], [0], marker="o", color=COLOURS[found.verdict], markeredgecolor="white")
    axes.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[], xlabel="difference of accuracies, points")
    kind = "paired" if isinstance(found, Comparison) else "unpaired"
    axes.set_title(
        f"{found.verdict} ({kind}); shaded: a loss of {100 * margin:g} points or more", fontsize=9, loc="left"
    )
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
