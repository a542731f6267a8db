"""Row errors as the page shows them: for each operator and dtype a drawing, and the numbers of each subject."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from markupsafe import Markup

from harness.report import drawings
from harness.report.text import compact

DTYPES = ("float32", "float16", "bfloat16")
#: Names of the tensors as the page says them.
_TENSORS = {"output": "outputs", "state": "states"}
_RATIO_TICKS = {1 / 64: "1/64", 1 / 16: "1/16", 1 / 4: "1/4", 1.0: "1", 4.0: "4", 16.0: "16", 64.0: "64"}
_SHARE_TICKS = {0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}


def dtype_order(dtype: str) -> tuple[int, str]:
    return (DTYPES.index(dtype) if dtype in DTYPES else len(DTYPES)), dtype


def figures(data: dict[str, Any]) -> dict[str, Any] | None:
    """For each operator a drawing a dtype, with the numbers of each subject and tensor below it."""
    operators: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for entry in data.get("tensors", []):
        operators[entry["operator"]][entry["dtype"]].append(entry)
    if not operators:
        return None
    return {
        "factor": data["factor"],
        "floor": data["ratio_floor_ulps"],
        "operators": [_operator_errors(operator, dtypes, data) for operator, dtypes in operators.items()],
    }


def _operator_errors(operator: str, dtypes: dict[str, list[dict[str, Any]]], data: dict[str, Any]) -> dict[str, Any]:
    subjects = dict.fromkeys(entry["subject"] for entries in dtypes.values() for entry in entries)
    # The baseline is what the others are compared with, and stands last.
    look = {subject: i for i, subject in enumerate(sorted(subjects, key=lambda s: (s == "baseline", s)))}
    figures = []
    for dtype, entries in sorted(dtypes.items(), key=lambda item: dtype_order(item[0])):
        panels, numbers = [], {}
        for tensor in sorted({entry["tensor"] for entry in entries}):
            members = sorted((e for e in entries if e["tensor"] == tensor), key=lambda e: look[e["subject"]])
            shares, ratios = ({e["subject"]: e[kind] for e in members} for kind in ("shares", "ratios"))
            name = _TENSORS.get(tensor, tensor)
            numbers[name] = [_numbers(entry, data["ratio_edges"][-1]) for entry in members]
            panels += [
                drawings.Panel(f"{name}: share of the allowance", data["share_edges"], shares, look, _SHARE_TICKS, 1.0),
                drawings.Panel(
                    f"{name}: error over the model kernel's", data["ratio_edges"], ratios, look, _RATIO_TICKS, log=True
                ),
            ]
        svg = Markup(drawings.row_errors(f"{operator}, {dtype}, part of the rows above", panels))
        figures.append({"dtype": dtype, "svg": svg, "numbers": numbers})
    return {"operator": operator, "subjects": list(look), "figures": figures}


def _numbers(entry: dict[str, Any], last: float) -> dict[str, Any]:
    """``last``: the edge above which a ratio is not told."""
    ratio = float(entry["ratio"]["median"])
    return {
        "subject": entry["subject"],
        "rows": compact(entry["rows"]),
        "share": [f"{float(entry['share'][name]):.2g}" for name in ("median", "p99", "p99.99", "max")],
        "ratio": "" if not entry["ratio"]["rows"] else f"{ratio:.2g}" if ratio <= last else f">{last:g}",
        "over": entry["shares"][-1] > 0,
    }
