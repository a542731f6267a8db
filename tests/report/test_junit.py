from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from harness.report.junit import write_junit


def written(report: dict[str, Any], tmp_path: Path) -> ET.Element:
    path = tmp_path / "junit.xml"
    write_junit(report, path)
    return ET.fromstring(path.read_bytes())


def case(root: ET.Element, name: str) -> ET.Element:
    found = root.find(f".//testcase[@name='{name}']")
    assert found is not None
    return found


def test_one_suite_an_operator_and_one_case_a_cell(report: dict[str, Any], tmp_path: Path) -> None:
    root = written(report, tmp_path)
    (suite,) = root.findall("testsuite")
    assert {k: suite.get(k) for k in ("name", "tests", "failures", "errors", "skipped", "time")} == {
        "name": "conv_prefill",
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "2",
        "time": "3.750",
    }
    passed = case(root, "equivalence[float32]")
    assert passed.get("classname") == "conv_prefill.optimized"
    assert passed.get("time") == "1.250"
    assert len(passed) == 0
    assert root.get("failures") == "1"


def test_a_failure_carries_what_one_needs(report: dict[str, Any], tmp_path: Path) -> None:
    (element,) = case(written(report, tmp_path), "packed_equals_alone[bfloat16]")
    assert (element.tag, element.get("type")) == ("failure", "over budget")
    assert element.get("message") == "over budget: α differs <script>alert('x')</script> & red  end"
    text = element.text or ""
    assert report["failures"][0]["replay"] in text.splitlines()
    assert report["failures"][0]["sentence"] in text
    assert "expected  0.5  1.25  -3  1e-09  inf  nan" in text
    assert "ValueError: no" in text


def test_not_run_is_an_error_only_where_required(report: dict[str, Any], tmp_path: Path) -> None:
    root = written(report, tmp_path)
    (error,) = case(root, "hostile_memory[float16]")
    (skipped,) = case(root, "no_host_sync[float16]")
    (known,) = case(root, "repeated[float32]")
    assert (error.tag, error.get("message")) == ("error", "required, but not run: the probe failed for <float16>")
    assert (skipped.tag, skipped.get("message")) == ("skipped", "not claimed (not required)")
    assert known.tag == "skipped"


def test_an_unexpected_pass_is_a_failure(report: dict[str, Any], tmp_path: Path) -> None:
    report["cells"][0]["status"] = "unexpected_pass"
    elements = case(written(report, tmp_path), "equivalence[float32]")
    assert [element.tag for element in elements] == ["failure"]
    assert "ledger" in (elements[0].get("message") or "")


def test_nothing_is_lost(report: dict[str, Any], tmp_path: Path) -> None:
    """Errors of the harness, and a failure whose cell is missing, are in the file and in the counts."""
    orphan = copy.deepcopy(report["failures"][0]) | {"operator": "gdn_decode"}
    report["failures"].append(orphan)
    report["errors"] = ["collection of properties/test_x.py\nImportError: \x1b[31mno\x1b[0m"]
    root = written(report, tmp_path)
    assert [suite.get("name") for suite in root] == ["conv_prefill", "harness", "gdn_decode"]
    assert (root.get("failures"), root.get("errors"), root.get("tests")) == ("2", "2", "7")
    assert (
        root.findtext("testsuite[@name='harness']/testcase/error")
        == "collection of properties/test_x.py\nImportError: no"
    )


@pytest.mark.parametrize("status", ["failed", "unexpected_pass"])
def test_a_failed_cell_without_a_record_still_fails(report: dict[str, Any], tmp_path: Path, status: str) -> None:
    report["failures"] = []
    report["cells"][1]["status"] = status
    assert written(report, tmp_path).get("failures") == "1"
