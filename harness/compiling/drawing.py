"""Registers of every kernel on every architecture, as a drawing of the page."""

from __future__ import annotations

from collections.abc import Mapping

from harness.report.drawings import GRID, INK, MUTED, ROW, SERIES, WARN, Canvas

#: Registers that a thread can have.
MOST = 255


def registers(
    lines: Mapping[tuple[str, str, str], Mapping[str, Mapping[str, int]]], archs: list[str], width: float = 900
) -> str:
    """One row a kernel and dtype, one bar an architecture: registers of the 255 that there are; a kernel that spills is marked."""
    left, top = 330.0, 20.0
    column = (width - left) / max(1, len(archs))
    canvas = Canvas(width, top + ROW * max(1, len(lines)))
    for i, arch in enumerate(archs):
        canvas.word(left + i * column, top / 2, arch, size=9, color=MUTED)
    said = []
    for row, ((subject, kernel, dtype), of) in enumerate(lines.items()):
        y = top + ROW * row
        canvas.word(left - 8, y + ROW / 2, f"{subject} {kernel} {dtype}"[-58:], size=9, align="right")
        for i, arch in enumerate(archs):
            if arch not in of:
                continue
            count, spills = of[arch]["registers"], of[arch]["spills"]
            x, room = left + i * column, column - 44
            canvas.bar(x, y + 3, room, ROW - 6, GRID)
            canvas.bar(x, y + 3, room * count / MOST, ROW - 6, WARN if spills else SERIES[0])
            words = f"{count}" + (" spills" if spills else "")
            canvas.word(x + room + 4, y + ROW / 2, words, size=9, color=WARN if spills else INK)
            said.append(f"{kernel} {dtype} on {arch}: {words}")
    return canvas.svg("Registers a thread of every kernel. " + ", ".join(said))
