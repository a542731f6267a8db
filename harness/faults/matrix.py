"""The kill matrix: what each tier catches, by which property, how fast; as JSON and as a table."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.faults.verdict import Settings, Verdict, by_operator
from harness.files import write_whole

SCHEMA_VERSION = 2
#: Columns of a terminal that has room for the smallest batch beside the rest; the JSON always has it.
WIDE = 130
#: Lines of an error that the terminal shows: the last of its frames. faults.json has all.
TRACEBACK = 9
_STYLES = {
    "killed": "green",
    "survived": "bold red",
    "error": "bold yellow",
    "invalid": "dim",
    "equivalent": "dim",
    "unseen": "dim",
}
#: What says nothing about the gate, so it is listed and counted apart.
APART = ("invalid", "equivalent", "unseen")


def exit_status(verdicts: Sequence[Verdict]) -> int:
    """0: every fault that this device can show was killed. 1: one survived, whatever its reason. 3: none counts."""
    if any(v.status in ("survived", "error") for v in verdicts):
        return 1
    return 3 if all(v.status in APART for v in verdicts) else 0


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Counts, the score killed ÷ all that this device can show, and the seconds of the kills."""
    counts = Counter(v.status for v in verdicts)
    seconds = [v.seconds for v in verdicts if v.status == "killed"]
    visible = len(verdicts) - sum(counts[status] for status in APART)
    return {
        "faults": len(verdicts),
        "killed": counts["killed"],
        "survived": counts["survived"],
        "error": counts["error"],
        **{status: counts[status] for status in APART},
        "score": counts["killed"] / visible if visible else None,
        "median_seconds": median(seconds) if seconds else None,
        "slowest_seconds": max(seconds, default=None),
        "by_property": dict(Counter(v.first.property for v in verdicts if v.first).most_common()),
    }


def to_json(
    verdicts: Sequence[Verdict], settings: Settings, wall_seconds: float, planned: int | None = None
) -> dict[str, Any]:
    """What ``faults.json`` holds. planned: faults that the run is about; more than there are verdicts while it goes on."""
    return {
        "schema_version": SCHEMA_VERSION,
        "device": settings.device,
        "tier": settings.tier,
        "seed": settings.seed,
        "time_limit": settings.time_limit,
        "witnesses": settings.witnesses,
        "planned": len(verdicts) if planned is None else planned,
        "wall_seconds": round(wall_seconds, 1),
        "summary": summary(verdicts),
        "faults": [v.to_json() for v in verdicts],
    }


class Saved:
    """``faults.json`` as far as the run has come, so that an interrupted one leaves what it knows.

    Written whole or not at all, at once when the run begins (what stood there is another run's), and then at most every
    ``every`` seconds.
    """

    def __init__(self, settings: Settings, planned: int, path: Path, every: float = 5.0) -> None:
        self.settings, self.planned, self.path, self.every = settings, planned, path, every
        self.verdicts: list[Verdict] = []
        self.start = time.perf_counter()
        self.write()

    def add(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        if time.perf_counter() - self.written > self.every:
            self.write()

    def write(self, verdicts: Sequence[Verdict] | None = None) -> dict[str, Any]:
        """``verdicts``: instead of those added so far. Returns what was written."""
        chosen = self.verdicts if verdicts is None else verdicts
        data = to_json(chosen, self.settings, time.perf_counter() - self.start, self.planned)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(data, indent=1, ensure_ascii=False))
        self.written = time.perf_counter()
        return data


def show(console: Console, verdicts: Sequence[Verdict]) -> None:
    """One line a fault, operator by operator; then survivors in full, since they are what there is to do."""
    for operator, chosen in by_operator(verdicts).items():
        console.print(_table(operator, chosen, words=console.width >= WIDE))
        console.print()
    for verdict in verdicts:
        if verdict.status in ("survived", "error"):
            console.print(
                f"[{_STYLES[verdict.status]}]{verdict.status}[/]  [bold]{verdict.fault.id}[/]", highlight=False
            )
            console.print(f"  {escape(verdict.fault.wrong)}", highlight=False)
            for line in [*verdict.message.strip().splitlines()[-TRACEBACK:], *verdict.notes]:
                console.print(f"  {escape(line)}", highlight=False, style="dim")


def _table(operator: str, verdicts: Sequence[Verdict], *, words: bool) -> Table:
    table = Table(title=operator, title_justify="left", box=None, pad_edge=False, header_style="dim", expand=words)
    # Where there is no room, the id of a generated fault is what is folded.
    table.add_column("fault", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("by property", no_wrap=True)
    table.add_column("symptom", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    if words:
        table.add_column("smallest batch", style="dim", no_wrap=True, overflow="ellipsis", ratio=1)
    for v in verdicts:
        seconds = "" if v.status in APART else f"{v.seconds:.1f}"
        prop, symptom, sentence = (v.first.property, v.first.symptom, v.first.sentence) if v.first else ("", "", "")
        cells = [v.fault.id, f"[{_STYLES[v.status]}]{v.status}[/]", prop, symptom, seconds]
        table.add_row(*cells, *([escape(sentence or v.fault.equivalent or v.fault.reason)] if words else []))
    return table


def conclusion(verdicts: Sequence[Verdict], wall_seconds: float, device: str, tier: str = "") -> str:
    """The run in one sentence."""
    s = summary(verdicts)
    visible = s["faults"] - sum(s[status] for status in APART)
    by = f" by the {tier} tier" if tier else ""
    text = f"{s['killed']} of {visible} faults killed on {device}{by} in {wall_seconds:.0f} s"
    if not visible:
        text = f"No fault counts on {device}, so nothing is known"
    if s["median_seconds"] is not None:
        text += f"; median {s['median_seconds']:.1f} s to the kill, slowest {s['slowest_seconds']:.1f} s"
    for status, words in (
        ("unseen", "cannot be seen here"),
        ("equivalent", "proven equivalent"),
        ("invalid", "not valid"),
    ):
        if s[status]:
            text += f"; {s[status]} {words}"
    return text
