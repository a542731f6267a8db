"""Words that every reporter shares: cleaned text, numbers for a person, and the verdict of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.plural import plural

#: Colour and cursor sequences of a terminal, which tracebacks of other tools may carry.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: What XML 1.0 cannot hold, not even escaped; the C1 range and lone surrogates go with it.
_INVALID = re.compile("[^\t\n\r\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

T = TypeVar("T")


def clean(text: str) -> str:
    """The text without terminal sequences and without characters that XML, HTML or a terminal would choke on."""
    return _INVALID.sub("", _ANSI.sub("", text))


def cleaned(value: T) -> T:
    """The same structure of dicts and lists with every string, keys included, made `clean`."""
    if isinstance(value, str):
        return clean(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {cleaned(k): cleaned(v) for k, v in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return [cleaned(v) for v in value]  # type: ignore[return-value]
    return value


def duration(seconds: float) -> str:
    """``0.04 s``, ``12.3 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def compact(count: int) -> str:
    """A count in four characters or fewer: ``999``, ``2k``, ``1.2k``, ``34k``, ``5.1M``."""
    value = float(count)
    for unit in ("", "k", "M"):
        if value < 999.5:
            return (f"{value:.1f}" if unit and value < 9.95 else f"{value:.0f}").removesuffix(".0") + unit
        value /= 1000
    return f"{value:.0f}G"


@dataclass(frozen=True)
class Verdict:
    """status: ``held``, ``failed`` or ``incomplete``. headline: the same as a sentence, with its counts."""

    status: str
    headline: str


def verdict(report: dict[str, Any]) -> Verdict:
    """What the run says, by the same rule as its exit code: a failure outweighs something required that did not run."""
    summary = report["summary"]
    failed, missing = summary["failed"], summary["required_not_run"]
    if failed:
        also = f", and {missing:,} required did not run" if missing else ""
        return Verdict("failed", f"{failed:,} of {plural(summary['cells'], 'cell')} failed{also}")
    if missing:
        # Errors of the harness are counted here too: they stand for cells whose outcome nobody knows.
        return Verdict("incomplete", f"Nothing failed, but {missing:,} required did not run")
    if not summary["cases"]:
        return Verdict("incomplete", "No case was run, so nothing is known")
    return Verdict("held", "All that was required ran and held")


CellKey = tuple[str, str, str, str, str]


def cell_key(entry: dict[str, Any]) -> CellKey:
    """What a failure and its cell have in common."""
    return entry["operator"], entry["subject"], entry["property"], entry["dtype"], entry["device"]
