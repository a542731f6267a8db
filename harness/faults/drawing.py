"""The drawings of the kill matrix: how fast each fault was caught by each tier, how many by when, and by which property."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness.faults.verdict import Verdict
from harness.report.drawings import BAD, DASHES, GRID, INK, MUTED, SERIES, WARN, Align, Canvas

#: Seconds at both ends of the scale of colours; what is faster or slower looks like the end.
FASTEST, SLOWEST = 0.1, 100.0
TICKS = (0.1, 0.3, 1, 3, 10, 30, 100)
#: The lightest and the darkest cell: the number in it must stay legible.
LIGHT, DARK = 0.10, 0.62
#: status -> the words in its cell. Statuses are told apart by these and by their look, never by colour alone.
WORDS = {
    "survived": "✗ survived",
    "error": "! error",
    "unseen": "unseen",
    "equivalent": "= equivalent",
    "invalid": "invalid",
    "": "not run",
}
LINE, COLUMN, NAMES = 13.0, 92.0, 268.0


def shade(seconds: float) -> float:
    """How dark a kill after so many seconds is drawn: linear in the logarithm."""
    part = math.log(min(max(seconds, FASTEST), SLOWEST) / FASTEST) / math.log(SLOWEST / FASTEST)
    return LIGHT + (DARK - LIGHT) * part


def heat(operator: str, rows: Mapping[str, Mapping[str, Verdict]], columns: Sequence[str]) -> str:
    """fault x tier: ``rows[fault][column]``, the colour is seconds to the kill on a logarithmic scale."""
    top = 16.0
    canvas = Canvas(NAMES + COLUMN * len(columns), top + LINE * len(rows))
    said = []
    for i, column in enumerate(columns):
        canvas.word(NAMES + COLUMN * i + COLUMN / 2, top / 2 - 2, column, size=9, color=MUTED, align="center")
    for row, (fault, of) in enumerate(rows.items()):
        y = top + LINE * row
        name = fault if len(fault) <= 52 else fault[:51] + "…"
        canvas.word(NAMES - 6, y + LINE / 2, name, size=8, align="right")
        for i, column in enumerate(columns):
            verdict = of.get(column)
            _cell(canvas, NAMES + COLUMN * i, y, verdict)
            said.append(f"{fault} {column} {_said(verdict)}")
    return canvas.svg(f"{operator}, seconds to the kill of each fault. " + "; ".join(said))


def _said(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not run"
    return f"{verdict.seconds:.1f} s" if verdict.status == "killed" else verdict.status


def _cell(canvas: Canvas, x: float, y: float, verdict: Verdict | None) -> None:
    width, height, middle = COLUMN - 2, LINE - 1.5, x + COLUMN / 2 - 1
    status = verdict.status if verdict else ""
    if verdict is not None and status == "killed":
        canvas.bar(x, y, width, height, SERIES[0], alpha=round(shade(verdict.seconds), 2))
        canvas.word(middle, y + height / 2, _seconds(verdict.seconds), size=8, align="center")
        return
    if status in ("survived", "error"):
        color = BAD if status == "survived" else WARN
        canvas.bar(x, y, width, height, color, alpha=0.18)
        # An edge, so that it stands out in grey too.
        canvas.bar(x, y, 4, height, color)
        canvas.bar(x + width - 4, y, 4, height, color)
        canvas.word(middle, y + height / 2, WORDS[status], size=8, color=color, align="center")
        return
    if status in ("equivalent", "invalid"):
        canvas.bar(x, y + height - 1, width, 1, GRID)
    canvas.word(middle, y + height / 2, WORDS[status], size=8, color=MUTED, align="center")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 0.1 else f"{seconds:.1f}" if seconds < 99.5 else f"{seconds:.0f}"


def scale(width: float = 330) -> str:
    """The legend of `heat`."""
    canvas = Canvas(width, 26)
    steps = 15
    for i in range(steps):
        seconds = FASTEST * (SLOWEST / FASTEST) ** ((i + 0.5) / steps)
        canvas.bar(i * width / steps, 0, width / steps - 1, 11, SERIES[0], alpha=round(shade(seconds), 2))
    for tick in TICKS:
        place = width * math.log(tick / FASTEST) / math.log(SLOWEST / FASTEST)
        align: Align = "left" if tick == TICKS[0] else "right" if tick == TICKS[-1] else "center"
        words = f"≤{tick:g} s" if tick == TICKS[0] else f"≥{tick:g} s" if tick == TICKS[-1] else f"{tick:g}"
        canvas.word(place, 19, words, size=8.5, color=MUTED, align=align)
    return canvas.svg("Colours of the seconds to the kill, from 0.1 to 100 seconds on a logarithmic scale")


def caught(kills: Mapping[str, Sequence[float]], visible: Mapping[str, int], width: float = 620) -> str:
    """Part of the visible faults that each column had caught after so many seconds of each fault's trial."""
    left, right, top, panel = 42.0, 10.0, 8.0, 190.0
    canvas = Canvas(width, top + panel + 34)
    latest = max((max(seconds) for seconds in kills.values() if seconds), default=1.0)
    end = max(10.0, latest)

    def x(seconds: float) -> float:
        return left + (width - left - right) * math.log(max(seconds, FASTEST) / FASTEST) / math.log(end / FASTEST)

    def y(part: float) -> float:
        return top + panel * (1 - part)

    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line((left, y(part)), (width - right, y(part)))
        canvas.word(left - 6, y(part), f"{part:.0%}", size=9, color=MUTED, align="right")
    for tick in (t for t in TICKS if t <= end):
        canvas.line((x(tick), top), (x(tick), top + panel))
        canvas.word(x(tick), top + panel + 10, f"{tick:g}", size=9, color=MUTED, align="center")
    canvas.word(
        (left + width - right) / 2, top + panel + 26, "seconds of a fault's trial", size=9, color=MUTED, align="center"
    )
    said = []
    for i, (column, seconds) in enumerate(kills.items()):
        count = visible[column]
        points = [(x(FASTEST), y(0.0))]
        for done, moment in enumerate(sorted(seconds)):
            points += [(x(moment), y(done / count)), (x(moment), y((done + 1) / count))]
        points.append((x(end), y(len(seconds) / count if count else 0.0)))
        canvas.curve(points, *look(i))
        half = f", half of all after {sorted(seconds)[(count - 1) // 2]:.1f} s" if 2 * len(seconds) > count else ""
        said.append(f"{column}: {len(seconds)} of {count}{half}")
    return canvas.svg("Faults caught over seconds. " + "; ".join(said))


def look(index: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of a column's curve; the page's legend has the same."""
    return SERIES[index % 3], DASHES[(index + index // 3) % len(DASHES)]


def kills(counts: Mapping[str, tuple[int, int]], width: float = 620) -> str:
    """``counts[property]`` is (faults that it killed first, faults that it killed at all), drawn one over the other."""
    row, left, right = 15.0, 14 + 5.6 * max((len(name) for name in counts), default=0), 62.0
    canvas = Canvas(width, row * max(1, len(counts)))
    peak = max((total for _, total in counts.values()), default=0) or 1
    for i, (name, (first, total)) in enumerate(counts.items()):
        y, unit = row * i, (width - left - right) / peak
        canvas.word(left - 6, y + row / 2, name, size=9, align="right")
        canvas.bar(left, y + 2.5, total * unit, row - 5, SERIES[3])
        canvas.bar(left, y + 2.5, first * unit, row - 5, SERIES[0])
        words = f"{first}" if first == total else f"{first}, {total}"
        canvas.word(left + total * unit + 4, y + row / 2, words, size=9, color=MUTED if total else INK)
    said = ", ".join(f"{name}: {first} first, {total} in all" for name, (first, total) in counts.items())
    return canvas.svg(f"Faults killed by each property. {said}")
