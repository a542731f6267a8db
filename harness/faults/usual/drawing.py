"""The figure: of all faults, how many each rule caught, by the kind of input; a file that stands alone."""

from __future__ import annotations

import re
from typing import Any

from harness.faults.usual.inputs import KINDS, Kind
from harness.faults.usual.table import share
from harness.report.drawings import INK, MUTED, SERIES, Canvas

#: Colours of both modes, on a card of its own: whatever page the figure is put on, it can be read.
STYLE = """
svg { --card: #ffffff; --ink: #1a1d23; --muted: #5d6675; --grid: #d9dde4; --warn: #8f5300;
  --series-1: #3b6fc9; --series-2: #c77414; --series-3: #1d8f78; --series-4: #a9bcdf; }
@media (prefers-color-scheme: dark) { svg { --card: #191c22; --ink: #e6e8ec; --muted: #9aa3b2; --grid: #343a45;
  --warn: #f0b45c; --series-1: #6b9bf0; --series-2: #e39a45; --series-3: #43b99f; --series-4: #3d5079; } }
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", sans-serif; }
"""
COLORS: dict[Kind, str] = {"usual": SERIES[3], "ragged": SERIES[2], "ours": SERIES[0]}
WORDS: dict[Kind, str] = {
    "usual": "usual inputs",
    "ragged": "wider public inputs",
    "ours": "our batches",
}
WIDTH, LEFT, RIGHT, TOP, MARGIN = 860.0, 262.0, 52.0, 74.0, 16.0
BAR, GAP = 12.0, 16.0


def draw(report: dict[str, Any]) -> str:
    """The figure of a ``rules.json`` as the text of an SVG file."""
    summary = report["summary"]
    total, rules, gate = summary["faults"], summary["rules"], summary["gate"]
    row = len(KINDS) * BAR + GAP
    whole = gate["known"] == total
    height = TOP + row * len(rules) + (BAR * 2 + GAP if whole else 0) + MARGIN
    canvas = Canvas(WIDTH, height)
    room = WIDTH - LEFT - RIGHT - MARGIN
    canvas.word(MARGIN, 18, f"Of {total} planted faults, caught", size=13)
    x = LEFT
    for kind in KINDS:
        canvas.bar(x, 34, 11, 11, COLORS[kind])
        canvas.word(x + 16, 40, f"with {WORDS[kind]}", size=10.5, color=MUTED)
        x += 34 + 6.0 * len(f"with {WORDS[kind]}")
    for part in range(5):
        across = LEFT + room * part / 4
        canvas.line((across, TOP - 8), (across, height - MARGIN))
        canvas.word(across, TOP - 8 - 4, f"{25 * part} %" if part else "", size=8.5, color=MUTED, align="center")
    said = []
    for i, rule in enumerate(rules):
        y = TOP + i * row
        rejected = share(rule["false_alarms"]["ours"])
        canvas.word(LEFT - 12, y + 7, rule["title"], size=12, align="right")
        canvas.word(LEFT - 12, y + 20, rule["user"], size=9.5, color=MUTED, align="right")
        words = f"rejects {rejected} of right results" if rejected != "0" else "rejects no right result"
        canvas.word(LEFT - 12, y + 31.5, words, size=9, color=MUTED, align="right")
        for n, kind in enumerate(KINDS):
            _bar(canvas, y + n * BAR, room, rule["caught"][kind], total, COLORS[kind])
        counts = ", ".join(f"{rule['caught'][kind]} with {WORDS[kind]}" for kind in KINDS)
        said.append(f"{rule['title']} ({rule['user']}): {counts}")
    if whole:
        y = TOP + len(rules) * row
        canvas.word(LEFT - 12, y + 5, "the whole gate", size=12, align="right")
        canvas.word(
            LEFT - 12, y + 18, "relations, memory, arguments and cost too", size=9.5, color=MUTED, align="right"
        )
        _bar(canvas, y, room, gate["killed"], total, SERIES[1])
        said.append(f"the whole gate: {gate['killed']}")
    return _alone(canvas.svg(f"Of {total} planted faults, caught: " + "; ".join(said)), height)


def _bar(canvas: Canvas, y: float, room: float, count: int, total: int, color: str) -> None:
    long = room * count / total
    canvas.bar(LEFT, y + 0.75, long, BAR - 1.5, color)
    canvas.word(LEFT + long + 5, y + BAR / 2, str(count), size=9.5, color=INK if count else MUTED)


def _alone(svg: str, height: float) -> str:
    """A drawing for a page as a file: it brings its namespace, its colours and the card that it lies on."""
    opened = re.sub(r"^<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:g}" height="{height:g}" ', svg)
    start, _, rest = opened.partition(">")
    card = f'<rect x="0" y="0" width="{WIDTH:g}" height="{height:g}" rx="10" style="fill: var(--card)"/>'
    return f"{start}>\n<style>{STYLE}</style>\n{card}{rest}\n"
