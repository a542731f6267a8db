"""JUnit XML, as CI systems read it: one suite an operator, one test case a cell."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Any

from harness.report.rows import compare
from harness.report.text import CellKey, cell_key, cleaned

#: The suite of errors that belong to no cell.
HARNESS = "harness"


def write_junit(report: dict[str, Any], path: Path | str) -> None:
    """Write ``report`` to ``path``. A required cell that did not run is an ``error``: CI turns red for it too."""
    report = cleaned(report)
    failures: dict[CellKey, list[dict[str, Any]]] = defaultdict(list)
    for failure in report["failures"]:
        failures[cell_key(failure)].append(failure)
    cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in report["cells"]:
        cells[cell["operator"]].append(cell)

    root = ET.Element("testsuites", name="sluicegate")
    for operator, members in cells.items():
        suite = _suite(root, operator, report)
        for cell in members:
            _case(suite, cell, failures.pop(cell_key(cell), []))
    if report.get("errors"):
        suite = _suite(root, HARNESS, report)
        for number, error in enumerate(report["errors"], 1):
            case = ET.SubElement(suite, "testcase", classname=HARNESS, name=f"error {number}", time="0")
            _verdict(case, "error", error.partition("\n")[0], error)
    # A failure is never lost for want of a cell to hang it on.
    for (operator, subject, prop, dtype, _), orphans in failures.items():
        suite = _suite(root, operator, report)
        case = ET.SubElement(suite, "testcase", classname=f"{operator}.{subject}", name=f"{prop}[{dtype}]", time="0")
        for failure in orphans:
            _failed(case, failure)
    for suite in root:
        _count(suite)
    _total(root, report)
    tree = ET.ElementTree(root)
    ET.indent(tree)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def describe(failure: dict[str, Any]) -> str:
    """A failure as plain text: the batch, the message, the rows, the traceback and the replay line."""
    lines = [failure["message"], "", f"batch: {failure['sentence']}"]
    for row in map(compare, failure["rows"]):
        lines += [
            "",
            f"{row.where}  {row.verdict}".rstrip(),
            "  expected  " + "  ".join(e.expected for e in row.elements),
            "  got       " + "  ".join(e.got for e in row.elements),
        ]
    if failure["details"]:
        lines += ["", failure["details"].rstrip()]
    return "\n".join([*lines, "", "replay:", failure["replay"], ""])


def _suite(root: ET.Element, name: str, report: dict[str, Any]) -> ET.Element:
    suite = ET.SubElement(root, "testsuite", name=name, timestamp=str(report["run"]["started"]))
    properties = ET.SubElement(suite, "properties")
    run = {key: report["run"][key] for key in ("command", "tier", "device", "seed")}
    for key, value in {**run, **report["environment"]}.items():
        if value is not None:
            ET.SubElement(properties, "property", name=key, value=str(value))
    return suite


def _case(suite: ET.Element, cell: dict[str, Any], failures: list[dict[str, Any]]) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=f"{cell['operator']}.{cell['subject']}",
        name=f"{cell['property']}[{cell['dtype']}]",
        time=f"{cell['seconds']:.3f}",
    )
    reason = cell["reason"]
    match cell["status"]:
        case "passed":
            return
        case "not_run" if cell["required"]:
            _verdict(case, "error", f"required, but not run: {reason}", reason, "not run")
        case "not_run":
            ET.SubElement(case, "skipped", message=reason)
        case "known_failure":
            ET.SubElement(case, "skipped", message=f"known failure, listed in the ledger {reason}".rstrip())
        case "unexpected_pass":
            text = "passed, but the ledger lists it as a known failure: remove the entry"
            _verdict(case, "failure", text, reason or text, "unexpected pass")
        case _ if failures:
            for failure in failures:
                _failed(case, failure)
        case status:
            _verdict(case, "failure", reason or status, reason, status)


def _failed(case: ET.Element, failure: dict[str, Any]) -> None:
    message = f"{failure['symptom']}: {failure['message']}"
    _verdict(case, "failure", message, describe(failure), failure["symptom"])


def _verdict(case: ET.Element, kind: str, message: str, body: str, what: str = "") -> None:
    element = ET.SubElement(case, kind, message=message)
    if what:
        element.set("type", what)
    element.text = body


def _count(suite: ET.Element) -> None:
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")


def _total(root: ET.Element, report: dict[str, Any]) -> None:
    for attribute in ("tests", "failures", "errors", "skipped"):
        root.set(attribute, str(sum(int(suite.get(attribute, 0)) for suite in root)))
    # Workers run side by side: the wall clock, not the sum of the cases.
    root.set("time", f"{report['run']['seconds']:.3f}")
