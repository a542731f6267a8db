"""What was caught, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.files import write_whole

WAYS = ("gate", "tokens", "threshold")


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many each way caught. What raised, crashed or hung is noticed by everybody and counted beside."""
    judged = [row for row in rows if "gate" in row]
    return {
        "faults": len(rows),
        "broke": len(rows) - len(judged),
        **{way: sum(bool(row[way]) for row in judged) for way in WAYS},
        "nobody": sum(not any(row[way] for way in WAYS) for row in judged),
    }


def save(found: Mapping[str, Any], folder: Path, name: str) -> Path:
    """Write name.json and name.md; returns the path of the first. found: "rows", and whatever says how they were measured."""
    path = folder / f"{name}.json"
    write_whole(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / f"{name}.md", markdown(found["rows"]))
    return path


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    lines = [
        "| | kind | accuracy | lost | won | same text | mean KL | gate | tokens | threshold |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "gate" not in row:
            lines.append(f"| {row['id']} | {row['kind']} | {row['broke']} | | | | | | | |")
            continue
        marks = " | ".join("caught" if row[way] else "–" for way in WAYS)
        lines.append(
            f"| {row['id']} | {row['kind']} | {100 * row['accuracy']:.2f} % | {row['lost']} | {row['won']} |"
            f" {row['same_text']} | {row['distance']['mean']:.2g} | {marks} |"
        )
    return "\n".join(lines) + "\n"
