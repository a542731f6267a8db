"""A fault lives in a copy; the original does not notice."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.faults import injection, model
from harness.subjects import load_target

LENGTHS = torch.tensor([0, 3, 3, 20], dtype=torch.int32)
FAULT = model.Fault(
    id="test-indices-one-too-high",
    operator="chunk_metadata",
    source="own",
    wrong="Indices are one too high.",
    subject="optimized.chunk_metadata:chunk_metadata_host",
    module="optimized.chunk_metadata",
    find=".sub_(opened), chunk_offsets",
    replace=".sub_(opened - 1), chunk_offsets",
)


def test_the_copy_is_changed_and_the_original_is_not(tmp_path: Path) -> None:
    original = load_target(FAULT.subject)
    before = original(LENGTHS, 8)
    source = injection.source_of(FAULT.module).read_bytes()
    with injection.injected(FAULT, tmp_path) as target:
        changed = load_target(target)
        assert changed is not original
        assert torch.equal(changed(LENGTHS, 8)[0], before[0] + 1)
        assert torch.equal(original(LENGTHS, 8)[0], before[0])
    assert injection.source_of(FAULT.module).read_bytes() == source
    assert load_target(FAULT.subject) is original


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    path, search = list(sys.path), os.environ.get("PYTHONPATH")
    with injection.injected(FAULT, tmp_path) as target:
        module = target.partition(":")[0]
        assert importlib.import_module(module).__file__ == str(tmp_path / injection.alias(FAULT) / "chunk_metadata.py")
    assert module not in sys.modules
    assert (sys.path, os.environ.get("PYTHONPATH")) == (path, search)


def test_a_fault_in_a_helper_reaches_the_subject_that_imports_it(tmp_path: Path) -> None:
    # The copy must import its own, changed `checks`, not the original.
    fault = replace(FAULT, module="optimized.checks", find="if value < minimum:", replace="if value > minimum:")
    with injection.injected(fault, tmp_path) as target, pytest.raises(ValueError, match="chunk_size: got 8"):
        load_target(target)(LENGTHS, 8)
    assert load_target(FAULT.subject)(LENGTHS, 8)[0].numel() > 0


def test_a_fault_that_cannot_reach_the_subject_is_an_error(tmp_path: Path) -> None:
    fault = replace(FAULT, module="optimized.causal_conv_kernels", find="_convolve(bias,", replace="_convolve(bias, ")
    with (
        pytest.raises(ValueError, match=r"does not import optimized\.causal_conv_kernels"),
        injection.injected(fault, tmp_path),
    ):
        pass


@pytest.mark.parametrize(("anchor", "count"), [("chunk_offsets", "[0-9]+"), ("no such text", "0")])
def test_an_anchor_that_does_not_occur_once_is_an_error(anchor: str, count: str) -> None:
    with pytest.raises(injection.AnchorError, match=rf"fault {FAULT.id}: its anchor occurs {count} times in .*\.py"):
        injection.changed_source(replace(FAULT, find=anchor))
