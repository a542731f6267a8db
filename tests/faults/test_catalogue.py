"""Every planted fault is well-formed, and its anchor is still in the source exactly once."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from harness import operators
from harness.faults import injection, model
from harness.faults.judging import model as judging

FAULTS = model.load()
LEAST = 300
#: Real faults that have no place in this repository.
NOT_HERE = model.CATALOGUE.with_name("not_here.yaml")


def test_the_catalogue_covers_every_operator() -> None:
    counts = Counter(fault.operator for fault in FAULTS)
    assert set(counts) == set(operators.OPERATORS)
    assert sum(counts.values()) >= LEAST
    assert any(fault.historical for fault in FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_the_anchor_occurs_once_and_the_change_is_python(fault: model.Fault) -> None:
    changed = injection.changed_source(fault)
    assert changed != injection.source_of(fault.module).read_text(encoding="utf-8")
    ast.parse(changed)


def test_no_two_faults_are_the_same_change() -> None:
    changes = Counter((f.operator, f.subject, f.module, f.find, f.replace) for f in FAULTS)
    assert [change for change, count in changes.items() if count > 1] == []


def test_what_cannot_be_planted_says_why_and_is_not_planted() -> None:
    entries = yaml.safe_load(NOT_HERE.read_text(encoding="utf-8"))
    for entry in entries:
        assert set(entry) == {"id", "url", "reason"}
        assert entry["url"].startswith("https://")
    for name in ("id", "url"):
        assert [value for value, count in Counter(e[name] for e in entries).items() if count > 1] == []
    planted = {fault.source for fault in [*FAULTS, *judging.load()]}
    assert {e["url"] for e in entries} & planted == set()
    assert all(len(entry["reason"].split()) > 5 for entry in entries)
    # Where a reason points to a fault, there is that fault.
    named = {name for entry in entries for name in re.findall(r"`([^`]+)`", entry["reason"])}
    assert named <= {fault.id for fault in FAULTS}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tiers": ["cuda"]}, "reason"),
        ({"tiers": ["gpu"], "reason": "none"}, "tiers"),
        ({"source": "somewhere"}, "source"),
        ({"replace": "x = 1"}, "find and replace"),
        ({"module": "harness.cell"}, "module"),
        ({"subject": "optimized.gdn_decode"}, "subject"),
        ({"severity": "high"}, "unknown fields \\['severity'\\]"),
    ],
)
def test_a_malformed_entry_is_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    entry = {"id": "x", "source": "own", "wrong": "All of it.", "find": "x = 1", "replace": "x = 2", **change}
    file = tmp_path / "gdn_decode.yaml"
    file.write_text(
        yaml.safe_dump({"operator": "gdn_decode", "subject": "optimized.gdn_decode:gdn_decode", "faults": [entry]})
    )
    with pytest.raises(ValueError, match=complaint):
        model.load(tmp_path)


def test_an_id_must_not_occur_twice(tmp_path: Path) -> None:
    text = (model.CATALOGUE / "conv_update.yaml").read_text(encoding="utf-8")
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="occurs twice in the catalogue"):
        model.load(tmp_path)


def test_an_unknown_id_is_refused() -> None:
    with pytest.raises(ValueError, match="fault: got no-such-fault"):
        model.select(FAULTS, ids=["no-such-fault"])
