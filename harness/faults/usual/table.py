"""What a run found, as data for ``rules.json`` and as tables for a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.context import GROUPS
from harness.faults.model import Fault
from harness.faults.usual.inputs import KINDS, Kind
from harness.faults.usual.rules import BUDGET, RULES
from harness.faults.usual.runner import Measured
from harness.faults.usual.trial import Outcome
from harness.isolation import find_property

SCHEMA_VERSION = 1
#: In tables: what each kind of input is called.
HEADINGS: dict[Kind, str] = {"usual": "usual inputs", "ragged": "wider public", "ours": "our batches"}
UNKNOWN = "unknown"
#: Columns of a terminal that has room for who uses a rule.
WIDE = 110


@dataclass(frozen=True)
class Gate:
    """What our whole gate said of a fault. group: of the property that found it first, empty where none did."""

    status: str
    property: str
    symptom: str
    group: str


def gates(paths: Iterable[Path]) -> dict[str, Gate]:
    """By id, the verdicts of these files of ``sluicegate faults``. ValueError for a file of another shape."""
    found = {}
    for path in paths:
        try:
            for entry in json.loads(path.read_text(encoding="utf-8"))["faults"]:
                # Of several properties that found a fault, the first one counts.
                witness = (entry.get("witnesses") or [entry])[0]
                words = (witness.get("property", ""), witness.get("symptom", ""))
                found[entry["id"]] = gate_of(entry["operator"], entry["status"], *words)
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"--verdicts: cannot read {path} ({error}); expected a faults.json of `sluicegate faults`"
            ) from error
    return found


def gate_of(operator: str, status: str, prop: str, symptom: str) -> Gate:
    return Gate(status, prop, symptom, find_property(operator, prop).group if status == "killed" else "")


def build(
    faults: Sequence[Fault],
    measured: Measured,
    verdicts: Mapping[str, Gate],
    run: dict[str, Any],
    environment: dict[str, Any],
) -> dict[str, Any]:
    """What ``rules.json`` holds."""
    of: dict[str, dict[Kind, Outcome]] = {}
    for outcome in measured.outcomes:
        of.setdefault(outcome.fault, {})[outcome.kind] = outcome
    entries: list[dict[str, Any]] = [
        {
            "id": fault.id,
            "operator": fault.operator,
            "wrong": fault.wrong,
            "source": fault.source,
            "gate": _gate(verdicts.get(fault.id), of[fault.id]["ours"]),
            "kinds": {
                kind: {name: value for name, value in vars(one).items() if name not in ("fault", "kind")}
                for kind, one in of[fault.id].items()
            },
        }
        for fault in faults
    ]
    known = [e for e in entries if e["gate"]]
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "environment": environment,
        "summary": {
            "faults": len(entries),
            "errors": sum(one["status"] == "error" for e in entries for one in e["kinds"].values()),
            "gate": {"known": len(known), "killed": sum(e["gate"]["status"] == "killed" for e in known)},
            "rules": [
                {
                    "name": rule.name,
                    "title": rule.title,
                    "user": rule.user,
                    "caught": _caught(entries, rule.name),
                    "false_alarms": _alarms(measured, rule.name),
                }
                for rule in RULES
            ],
            "groups": _groups(entries),
            "operators": {
                name: {"faults": len(mine), "caught": {rule.name: _caught(mine, rule.name) for rule in RULES}}
                for name in dict.fromkeys(e["operator"] for e in entries)
                for mine in [[e for e in entries if e["operator"] == name]]
            },
            "demonstrated": _demonstrated(measured),
        },
        "calls": [
            {
                "operator": b.operator,
                "subject": b.subject,
                "kind": b.kind,
                "calls": n,
                "false_alarms": measured.alarms[b],
            }
            for b, n in measured.calls.items()
        ],
        "faults": entries,
    }


def _gate(verdict: Gate | None, ours: Outcome) -> dict[str, Any] | None:
    """The gate's verdict. Without one, what the budget catches with our batches is what its properties of equivalence do."""
    if verdict is None and BUDGET in ours.caught:
        verdict = Gate("killed", "here", "", "equivalence")
    return vars(verdict) if verdict else None


def _caught(entries: Sequence[Mapping[str, Any]], rule: str) -> dict[str, int]:
    return {kind: sum(rule in e["kinds"][kind]["caught"] for e in entries) for kind in KINDS}


def _alarms(measured: Measured, rule: str) -> dict[str, dict[str, int]]:
    """By kind, of how many calls with right results, over all subjects, the rule said that they are wrong."""
    return {
        kind: {
            "calls": sum(n for bench, n in measured.calls.items() if bench.kind == kind),
            "rejected": sum(of[rule] for bench, of in measured.alarms.items() if bench.kind == kind),
        }
        for kind in KINDS
    }


def _groups(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The faults by the group of the property that finds them in our gate."""

    def group(entry: Mapping[str, Any]) -> str:
        return (entry["gate"]["group"] or "survived") if entry["gate"] else UNKNOWN

    counts = Counter(map(group, entries))
    return [
        {
            "group": name,
            "faults": counts[name],
            "caught": {rule.name: _caught([e for e in entries if group(e) == name], rule.name) for rule in RULES},
        }
        for name in (*GROUPS, "survived", UNKNOWN)
        if counts[name]
    ]


def _demonstrated(measured: Measured) -> list[dict[str, Any]]:
    """For each wrong result, kind and rule: operators, and those of them of which every call passes, and calls likewise."""
    lines = []
    for name in dict.fromkeys(shown.name for shown in measured.demonstrated):
        for kind in KINDS:
            mine = [s for s in measured.demonstrated if s.name == name and s.bench.kind == kind]
            lines.append(
                {
                    "name": name,
                    "kind": kind,
                    "operators": len(mine),
                    "calls": sum(s.calls for s in mine),
                    "operators_passed": {
                        r.name: [s.bench.operator for s in mine if s.passed[r.name] == s.calls] for r in RULES
                    },
                    "calls_passed": {r.name: sum(s.passed[r.name] for s in mine) for r in RULES},
                }
            )
    return lines


def save(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def exit_status(report: dict[str, Any]) -> int:
    """0 when every fault was tried with every kind of input."""
    return int(report["summary"]["errors"] > 0)


# -- for a terminal ---------------------------------------------------------------------------------------------------


def show(console: Console, report: dict[str, Any]) -> None:
    summary = report["summary"]
    console.print(_main(summary, wide=console.width >= WIDE))
    console.print()
    if any(group["group"] != UNKNOWN for group in summary["groups"]):
        console.print(_by_group(summary))
        console.print()
    for entry in report["faults"]:
        for kind, one in entry["kinds"].items():
            if one["status"] == "error":
                last = one["message"].strip().splitlines()[-1:]
                console.print(f"[bold yellow]error[/] {entry['id']}, {kind}: {' '.join(last)}", highlight=False)


def _main(summary: dict[str, Any], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("rule", no_wrap=True)
    if wide:
        table.add_column("as used by", style="dim", no_wrap=True)
    for kind in KINDS:
        table.add_column(HEADINGS[kind], justify="right")
    table.add_column("right results rejected", justify="right")
    for rule in summary["rules"]:
        alarms = " / ".join(share(rule["false_alarms"][kind]) for kind in KINDS)
        users = [rule["user"]] if wide else []
        table.add_row(rule["title"], *users, *(str(rule["caught"][kind]) for kind in KINDS), alarms)
    gate, blank = summary["gate"], [""] * wide
    if gate["known"] == summary["faults"]:
        table.add_row("[bold]the whole gate[/]", *blank, "", "", f"[bold]{gate['killed']}[/]", "")
    table.add_row("faults", *blank, *[str(summary["faults"])] * len(KINDS), "", style="dim")
    return table


def share(alarms: Mapping[str, int]) -> str:
    """``2.5 %`` of the calls."""
    if not alarms["rejected"]:
        return "0"
    return f"{100 * alarms['rejected'] / alarms['calls']:.2g} %"


def _by_group(summary: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    table.title = "By what finds them in our gate: with usual inputs / with our batches"
    table.add_column("rule", no_wrap=True)
    for group in summary["groups"]:
        table.add_column(group["group"], justify="right")
    for rule in RULES:
        of = [group["caught"][rule.name] for group in summary["groups"]]
        table.add_row(rule.title, *(f"{one['usual']} / {one['ours']}" for one in of))
    table.add_row("faults", *(str(group["faults"]) for group in summary["groups"]), style="dim")
    return table
