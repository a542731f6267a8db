from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cell import CellResult, CellSpec
from harness.distribution import Distribution
from harness.report import model
from harness.report.html import write_html

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that every tag is closed in order, and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.codes: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)
        if self.open[-1:] == ["code"]:
            self.codes.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def written(report: dict[str, Any], tmp_path: Path) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    write_html(report, path)
    source = path.read_text(encoding="utf-8")
    return source, Page(source)


def test_self_contained_and_without_script(report: dict[str, Any], tmp_path: Path) -> None:
    source, page = written(report, tmp_path)
    tags = {tag for tag, _, _ in page.attributes}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert "<script" not in source
    assert page.values("src") == []
    assert not re.search(r"@import|url\(", source)
    # The one address is the tracker's, for a reader to follow; nothing is loaded from anywhere.
    assert re.findall(r"https?://[^\s\"<]+", source) == ["https://tracker.example/1"] * 2
    assert [h for h in page.values("href") if not h.startswith("#")] == ["https://tracker.example/1"]


def test_every_anchor_leads_somewhere_and_ids_are_unique(report: dict[str, Any], tmp_path: Path) -> None:
    _, page = written(report, tmp_path)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {h[1:] for h in page.values("href") if h.startswith("#")} <= set(ids)
    assert f"#{report['failures'][0]['id']}" in page.values("href")


def test_the_failure_card(report: dict[str, Any], tmp_path: Path) -> None:
    source, page = written(report, tmp_path)
    failure = report["failures"][0]
    assert "1 of 5 cells failed, and 1 required did not run" in page.words
    assert "conv_prefill/packed_equals_alone/over budget" in page.words
    assert "α differs <script>alert('x')</script> & red end" in page.words
    assert failure["sentence"] in page.words
    assert failure["replay"] in page.codes
    assert "&lt;script&gt;" in source
    assert '<td class="off">nan</td>' in source
    assert "<td>inf</td>" in source
    assert "ValueError: no" in page.words
    assert source.index('id="failures"') < source.index('id="matrix"')


def test_what_did_not_run_is_listed_with_its_reason(report: dict[str, Any], tmp_path: Path) -> None:
    _, page = written(report, tmp_path)
    assert "1 cell: the probe failed for <float16> required" in page.words
    assert "conv_prefill / hostile_memory / optimized / float16 on cpu" in page.words


def test_drawings_are_inline_and_described(report: dict[str, Any], tmp_path: Path) -> None:
    source, page = written(report, tmp_path)
    # Five axes, the budget, the seconds.
    assert source.count("<svg") == 7
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert any("65 to 128: 0" in label for label in labels)
    assert any(label.startswith("conv_prefill, largest share") for label in labels)
    assert len(source) < 60_000


def test_ledger_links_only_to_the_web(report: dict[str, Any], tmp_path: Path) -> None:
    source, page = written(report, tmp_path)
    assert "javascript:alert(1)" in page.words
    assert 'href="javascript' not in source


def test_a_run_that_held(held: dict[str, Any], tmp_path: Path) -> None:
    source, page = written(held, tmp_path)
    assert "All that was required ran and held" in page.words
    assert '<header class="held">' in source
    assert 'id="failures"' not in source
    assert 'id="not-run"' not in source


def test_a_run_of_nothing(held: dict[str, Any], tmp_path: Path) -> None:
    held |= {"cells": [], "coverage": {}, "errors": ["collection of <x>\nImportError"]}
    held["summary"] |= {"cases": 0, "cells": 0, "passed": 0, "cases_by_operator": {}, "required_not_run": 1}
    _, page = written(held, tmp_path)
    assert "Nothing failed, but 1 required did not run" in page.words
    assert "collection of <x> ImportError" in page.words


def test_row_errors_are_drawn_with_their_numbers(report: dict[str, Any], tmp_path: Path) -> None:
    limit = torch.tensor([0.01, 0.02, 0.3, 1.5])
    results = [_judged("optimized", "float32", limit), _judged("a <peer>", "bfloat16", limit[:3])]
    report["row_errors"] = json.loads(json.dumps(model.row_errors(results), allow_nan=False))
    source, page = written(report, tmp_path)
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert source.count("<svg") == 7 + 2
    assert any(
        "outputs: share of the allowance, optimized half at most 0.025, 0.25 of the rows above 1" in s for s in labels
    )
    assert "at 1, the dashed line, a row fails" in page.words
    assert "The allowance is 2 times the model kernel's error" in page.words
    assert "optimized40.0251.51.51.51" in page.words.replace(" ", "")
    assert source.count('<tr class="over">') == 1
    assert "#row-errors" in page.values("href")


def test_rows_are_merged_by_operator_subject_dtype_and_tensor() -> None:
    one, two = (
        _judged("optimized", "float32", torch.tensor([0.09])),
        _judged("optimized", "float32", torch.tensor([0.7])),
    )
    two.row_errors["baseline output"] = two.row_errors["output"]
    tensors = model.row_errors([one, two, _judged("optimized", "float16", torch.tensor([0.2]))])["tensors"]
    assert [(t["subject"], t["dtype"], t["tensor"], t["rows"]) for t in tensors] == [
        ("baseline", "float32", "output", 1),
        ("optimized", "float16", "output", 1),
        ("optimized", "float32", "output", 2),
    ]
    assert tensors[2]["share"] == {"median": 0.1, "p99": 0.7, "p99.99": 0.7, "max": 0.7}


def _judged(subject: str, dtype: str, shares: torch.Tensor) -> CellResult:
    """A cell whose rows use these shares of their allowance, and err as the model kernel does."""
    counted = Distribution()
    counted.count(shares.double(), torch.ones(len(shares), dtype=torch.float64))
    spec = CellSpec("conv_prefill", subject, "m:f", "equivalence", "cpu", dtype, 10, 0)
    return CellResult(spec, "passed", row_errors={"output": counted})


def test_no_drawing_of_row_errors_where_none_was_judged(report: dict[str, Any], tmp_path: Path) -> None:
    without, _ = written(report, tmp_path)
    report["row_errors"] = model.row_errors([])
    source, page = written(report, tmp_path)
    assert source == without
    assert "row-errors" not in page.values("id")


@pytest.mark.parametrize("share", [0.0, 1e9, float("inf"), "nan"])
def test_any_share_of_the_budget_can_be_drawn(report: dict[str, Any], tmp_path: Path, share: float | str) -> None:
    report["cells"][0]["worst_share"] = share
    written(report, tmp_path)
