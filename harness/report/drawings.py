"""Drawings as inline SVG: text stays text, and colours are the page's own, so that they follow light and dark mode."""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from harness.report.text import compact

#: What matplotlib draws with -> what the page says instead (see templates/style.html.j2).
INK, MUTED, GRID, WARN = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050505", "#060606", "#070707", "#080808")
BAD = "#090909"
_NAMES = ("ink", "muted", "grid", "warn", "series-1", "series-2", "series-3", "series-4", "bad")
_COLORS = (INK, MUTED, GRID, WARN, *SERIES, BAD)
_VARIABLES = {color: f"var(--{name})" for color, name in zip(_COLORS, _NAMES, strict=True)}

Align = Literal["left", "center", "right"]

#: Units of the drawing are points of 1/72 inch; the page shows them at about one to one.
DPI = 72
ROW = 17.0
#: Of more categories than this, the rarest are summed into one bar.
MOST_BARS = 24
#: With more distinct numbers than this, an axis is drawn as a histogram; lengths soon are, for their holes matter.
MOST_NUMBERS = 10
MOST_LENGTHS = 3


class Canvas:
    """A figure in plain units, origin at the top left, without axes: bars, lines and words."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        self.figure = figure
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)

    def bar(
        self, x: float, y: float, width: float, height: float, color: str = SERIES[0], *, alpha: float = 1.0
    ) -> None:
        if width > 0 and height > 0:
            self.axes.bar(x, height, width, y, align="edge", color=color, alpha=alpha, linewidth=0, clip_on=False)

    def line(self, start: tuple[float, float], end: tuple[float, float], *, limit: bool = False) -> None:
        """A grid line, behind the bars; or a limit, dashed, across them."""
        look: dict[str, Any] = {"color": GRID, "linewidth": 0.8, "zorder": 0}
        if limit:
            look = {"color": WARN, "linewidth": 1.2, "zorder": 3, "linestyle": (0, (3, 3))}
        self.axes.plot([start[0], end[0]], [start[1], end[1]], clip_on=False, **look)

    def curve(self, points: Sequence[tuple[float, float]], color: str, dashes: tuple[float, ...] = ()) -> None:
        style: Any = (0, dashes) if dashes else "-"
        self.axes.plot(*zip(*points, strict=True), color=color, linewidth=1.5, linestyle=style, clip_on=False)

    def word(self, x: float, y: float, text: str, *, size: float = 10, color: str = INK, align: Align = "left") -> None:
        self.axes.text(x, y, text, parse_math=False, fontsize=size, color=color, ha=align, va="center_baseline")

    def svg(self, label: str) -> str:
        """The drawing as an ``<svg>`` element; ``label`` is what a screen reader says."""
        stream = io.StringIO()
        options: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sluicegate", "font.family": ["DejaVu Sans"]}
        with mpl.rc_context(options), warnings.catch_warnings():
            # The text is drawn by the reader's fonts: a glyph that ours lacks is no concern.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            self.figure.savefig(stream, format="svg", metadata={"Date": None})
        return slim(stream.getvalue(), label)


def slim(svg: str, label: str) -> str:
    """Keep what draws: no ids (they would clash between drawings), metadata, wrappers, fonts or needless digits."""
    source = ET.fromstring(svg)
    view = source.get("viewBox", "")
    root = ET.Element("svg", viewBox=re.sub(r"\d+\.\d+", _short, view), role="img")
    root.set("aria-label", label)
    _keep(source, root)
    return ET.tostring(root, encoding="unicode")


def _keep(source: ET.Element, target: ET.Element) -> None:
    for child in source:
        tag = child.tag.rpartition("}")[2]
        if tag in {"g", "a"}:
            _keep(child, target)
        elif tag in {"path", "text"}:
            kept = {name: _attribute(name, child.attrib[name]) for name in _wanted(tag, child)}
            element = ET.SubElement(target, tag, kept)
            element.text = child.text


def _wanted(tag: str, element: ET.Element) -> list[str]:
    return [name for name in (("d", "style") if tag == "path" else ("x", "y", "style")) if name in element.attrib]


_THE_PAGES_OWN = ("font-family", "stroke-linecap", "stroke-linejoin")


def _attribute(name: str, value: str) -> str:
    if name == "style":
        kept = [part.strip() for part in value.split(";")]
        kept = [part for part in kept if part and not part.startswith(_THE_PAGES_OWN)]
        # One shorthand in some versions of matplotlib, its parts in others; the page sets the family.
        kept = [re.sub(r"^font: (?:\S+ )*?([\d.]+px).*$", r"font-size: \1", part) for part in kept]
        value = "; ".join(kept)
        for color, variable in _VARIABLES.items():
            value = value.replace(color, variable)
        return value
    return re.sub(r"\d+\.\d+", _short, " ".join(value.split()))


def _short(match: re.Match[str]) -> str:
    return f"{float(match[0]):.1f}".removesuffix(".0")


# -- coverage ---------------------------------------------------------------------------------------------------------


def is_histogram(axis: str, counts: Mapping[str, int]) -> bool:
    """Whether `coverage` bins the values of this axis."""
    most = MOST_LENGTHS if axis == "length" else MOST_NUMBERS
    return len(counts) > most and all(re.fullmatch(r"\d+", value) for value in counts)


def coverage(axis: str, counts: Mapping[str, int], width: float = 300) -> str:
    """How often each value of an axis was tried: a histogram for many numbers, bars for words and for few numbers."""
    if is_histogram(axis, counts):
        return histogram(axis, {int(value): count for value, count in counts.items()}, width)
    # Numbers in their order, and sizes such as 64x128 by their parts; words by their frequency.
    sized = all(re.match(r"\d", value) for value in counts)
    ordered = sorted(counts, key=lambda v: [int(n) for n in re.findall(r"\d+", v)] if sized else [-counts[v]])
    return bars(axis, {value: counts[value] for value in ordered}, width)


def bins(largest: int) -> list[tuple[int, int]]:
    """0 to 4 one by one, then doubling: (5, 8), (9, 16), … up to the one that holds ``largest``."""
    edges = [(n, n) for n in range(5)]
    while edges[-1][1] < largest:
        top = edges[-1][1]
        edges.append((top + 1, 2 * top))
    return edges


def histogram(axis: str, counts: Mapping[int, int], width: float = 300, height: float = 132) -> str:
    """Counts of numbers in bins that double; a bin that was never hit says 0, for a hole is what one looks for."""
    edges = bins(max(counts))
    totals = [sum(count for value, count in counts.items() if low <= value <= high) for low, high in edges]
    canvas, step, base = Canvas(width, height), width / len(edges), height - 18
    peak = max(totals) or 1
    size = 9.0 if step >= 20 else 8.0
    for i, ((low, high), total) in enumerate(zip(edges, totals, strict=True)):
        tall = (base - 16) * total / peak
        if total:
            tall = max(tall, 1.5)
        canvas.bar(i * step + 1, base - tall, step - 2, tall)
        middle, color = (i + 0.5) * step, MUTED if total else WARN
        canvas.word(middle, base - tall - 6, compact(total), size=size, color=color, align="center")
        name = compact(high) if high >= 1000 else str(high)
        # Where the bins are narrow, every other name is left out, but never the last.
        if step >= 27 or low == high or (len(edges) - 1 - i) % 2 == 0:
            canvas.word(middle, base + 10, f"≤{name}" if low < high else name, size=size, align="center")
    canvas.line((0, base), (width, base))
    names = [f"{low} to {high}" if low < high else f"{low}" for low, high in edges]
    said = ", ".join(f"{name}: {total}" for name, total in zip(names, totals, strict=True))
    return canvas.svg(f"{axis}, how often each was tried. {said}")


def bars(axis: str, counts: Mapping[str, int], width: float = 300) -> str:
    """One horizontal bar a value, in the order given."""
    shown = dict(counts)
    if len(shown) > MOST_BARS:
        rest = sorted(shown, key=lambda name: -shown[name])[MOST_BARS - 1 :]
        shown = {name: count for name, count in shown.items() if name not in rest}
        shown[f"{len(rest)} more"] = sum(counts[name] for name in rest)
    left, right = _label_width(shown), 34.0
    canvas = Canvas(width, ROW * len(shown))
    peak = max(shown.values(), default=0) or 1
    for i, (name, count) in enumerate(shown.items()):
        y = ROW * i
        canvas.word(left - 6, y + ROW / 2, _shortened(name), align="right")
        long = max((width - left - right) * count / peak, 1.5 if count else 0)
        canvas.bar(left, y + 3, long, ROW - 6)
        canvas.word(left + long + 4, y + ROW / 2, compact(count), size=9, color=MUTED if count else WARN)
    said = ", ".join(f"{name}: {count}" for name, count in counts.items())
    return canvas.svg(f"{axis}, how often each was tried. {said}")


def _label_width(names: Sequence[str] | Mapping[str, object]) -> float:
    return 14 + 5.6 * min(28, max((len(name) for name in names), default=0))


def _shortened(name: str, limit: int = 28) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


# -- budget and time --------------------------------------------------------------------------------------------------


def budget(operator: str, shares: Mapping[str, Mapping[str, float]], dtypes: Sequence[str], width: float = 460) -> str:
    """The largest share of the allowed error that a row used: ``shares[property][dtype]``, against the line at 1."""
    left, thick, gap = _label_width(shares), 6.0, 8.0
    heights = [max(ROW, gap + thick * len(of)) for of in shares.values()]
    canvas = Canvas(width, sum(heights) + 20)
    end = 1.25
    scale = (width - left - 30) / end
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * scale
        canvas.line((x, 0), (x, sum(heights)), limit=tick == 1.0)
        canvas.word(x, sum(heights) + 10, f"{tick:g}", size=9, color=MUTED, align="center")
    y = 0.0
    for (name, of), height in zip(shares.items(), heights, strict=True):
        canvas.word(left - 6, y + height / 2, _shortened(name), align="right")
        for i, (dtype, share) in enumerate(of.items()):
            top = y + (height - thick * len(of)) / 2 + thick * i
            long = scale * min(end, share if math.isfinite(share) else end)
            canvas.bar(left, top + 0.5, max(long, 1), thick - 1, SERIES[dtypes.index(dtype) % len(SERIES)])
        worst = max(of.values(), key=lambda s: s if math.isfinite(s) else math.inf)
        tip = left + scale * min(end, worst if math.isfinite(worst) else end)
        canvas.word(tip + 4, y + height / 2, f"{worst:.2g}", size=9, color=MUTED if worst <= 1 else WARN)
        y += height
    said = "; ".join(f"{p}: " + ", ".join(f"{d} {s:.2g}" for d, s in of.items()) for p, of in shares.items())
    return canvas.svg(f"{operator}, largest share of the error budget used. {said}")


# -- row errors ---------------------------------------------------------------------------------------------------------

#: One look a subject, colours first; the page's legend has the same (`.stroke` in templates/style.html.j2).
DASHES: tuple[tuple[float, ...], ...] = ((), (3.5, 1.5), (1.2, 1.2))
LOOKS = [(color, dashes) for dashes in DASHES for color in SERIES[:3]]
#: Heights of a panel and of what stands above and below it, and the margins beside it.
PANEL, TITLE, TICKS, LEFT, RIGHT = 84.0, 23.0, 16.0, 32.0, 34.0


def row_errors(label: str, panels: Sequence[Panel], width: float = 340) -> str:
    """Panels one below the other, over the same rows of one dtype: which part of the rows is above what stands below."""
    canvas = Canvas(width, len(panels) * (TITLE + PANEL + TICKS + 6) - 6)
    decades = max((panel.decades for panel in panels), default=3)
    for i, panel in enumerate(panels):
        _panel(canvas, panel, decades, i * (TITLE + PANEL + TICKS + 6) + TITLE)
    said = "; ".join(panel.said() for panel in panels)
    return canvas.svg(f"{label}: {said}")


@dataclass(frozen=True)
class Panel:
    """title: what is counted. counts: by subject, in bins up to each of the edges and one above the last. look: of each subject.

    limit: a row above it fails. log: the edges are drawn by their logarithms.
    """

    title: str
    edges: Sequence[float]
    counts: Mapping[str, Sequence[int]]
    look: Mapping[str, int]
    ticks: Mapping[float, str]
    limit: float | None = None
    log: bool = False

    @property
    def start(self) -> float:
        return self.edges[0] if self.log else 0.0

    def place(self, value: float) -> float:
        return math.log2(value) if self.log else value

    @property
    def decades(self) -> int:
        """So many powers of ten below one are needed to show a single row."""
        return max(3, math.ceil(math.log10(max(map(sum, self.counts.values()), default=1) or 1)))

    def above(self, subject: str) -> list[float]:
        """The part of the rows above nothing and above each edge."""
        counts = self.counts[subject]
        return [sum(counts[i:]) / (sum(counts) or 1) for i in range(len(counts))]

    def said(self) -> str:
        parts = []
        for subject in self.counts:
            above = self.above(subject)
            half = next((edge for edge, part in zip(self.edges, above[1:], strict=True) if part <= 0.5), math.inf)
            parts.append(f"{subject} half at most {half:.3g}, {above[-1]:.2g} of the rows above {self.edges[-1]:g}")
        return f"{self.title}, " + ", ".join(parts)


def _panel(canvas: Canvas, panel: Panel, decades: int, top: float) -> None:
    base, right = top + PANEL, canvas.width - RIGHT
    first, last = panel.place(panel.start), panel.place(panel.edges[-1])

    def x(value: float) -> float:
        return LEFT + (right - LEFT) * (panel.place(value) - first) / (last - first)

    def y(part: float) -> float:
        return top + PANEL * -math.log10(part) / decades if part > 0 else base

    canvas.word(0, top - 15, panel.title)
    for power in range(0, decades + 1, 2 if decades > 3 else 1):
        height = y(10.0**-power)
        canvas.line((LEFT, height), (canvas.width, height))
        name = {0: "all", 1: "1/10", 2: "1/100"}.get(power, "1/" + compact(10**power))
        canvas.word(LEFT - 5, height, name, size=8, color=MUTED, align="right")
    for value, name in panel.ticks.items():
        canvas.line((x(value), top), (x(value), base), limit=value == panel.limit)
        canvas.word(x(value), base + 9, name, size=9, color=MUTED, align="center")
    for subject in panel.counts:
        above = panel.above(subject)
        points = [(x(max(edge, panel.start)), y(part)) for edge, part in zip((0.0, *panel.edges), above, strict=True)]
        # A curve ends where no row is left; where some are above the last edge, it runs on to the border.
        points = points[: above.index(0) + 1 if 0 in above else None]
        if above[-1]:
            over, height = panel.counts[subject][-1], y(above[-1])
            points.append((canvas.width, height))
            color = MUTED if panel.limit is None else WARN
            canvas.word(canvas.width, height - 6, compact(over), size=9, color=color, align="right")
        color, dashes = LOOKS[panel.look[subject] % len(LOOKS)]
        canvas.curve(points, color, dashes)


def seconds(times: Mapping[str, tuple[float, float]], width: float = 460) -> str:
    """``times[property]`` is (inside the property, in all), drawn one over the other."""
    left, right = _label_width(times), 44.0
    canvas = Canvas(width, ROW * len(times))
    peak = max((total for _, total in times.values()), default=0.0) or 1.0
    for i, (name, (judged, total)) in enumerate(times.items()):
        y, scale = ROW * i, (width - left - right) / peak
        canvas.word(left - 6, y + ROW / 2, _shortened(name), align="right")
        canvas.bar(left, y + 3, max(total * scale, 1), ROW - 6, SERIES[3])
        canvas.bar(left, y + 3, judged * scale, ROW - 6, SERIES[0])
        written = f"{total:.1f} s" if total >= 0.05 else "<0.1 s"
        canvas.word(left + max(total * scale, 1) + 4, y + ROW / 2, written, size=9, color=MUTED)
    said = ", ".join(f"{name}: {total:.2f} s" for name, (_, total) in times.items())
    return canvas.svg(f"Seconds by property. {said}")
