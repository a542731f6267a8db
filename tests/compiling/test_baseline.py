"""A baseline makes visible what has become worse, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.compiling import baseline
from harness.compiling.matrix import Cell, exit_status
from harness.compiling.resources import Figures

GOOD = Figures(
    registers=64,
    spill_stores=0,
    spill_loads=0,
    stack=0,
    shared_static=0,
    shared_dynamic=1024,
    tensor_memory=0,
    num_warps=4,
    num_stages=3,
    ptx_bytes=9000,
    cubin_bytes=8000,
    seconds=0.5,
    cached=False,
)


def cell(figures: Figures = GOOD, *, arch: str = "sm_90", kernel: str = "_kernel", dtype: str = "bfloat16") -> Cell:
    return Cell("gdn_decode", "optimized", dtype, arch, "H=16 HV=32", kernel, figures=figures)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "baseline.json"
    baseline.save([cell(), cell(arch="sm_80")], path, "3.9.0")
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"registers": 72}, []),
        ({"registers": 73}, ["takes 73 registers, the baseline 64"]),
        ({"registers": 40, "shared_dynamic": 512}, []),
        ({"shared_static": 1}, ["takes 1,025 bytes of shared memory, the baseline 1,024"]),
        ({"spill_stores": 4, "spill_loads": 8}, ["spills 12 bytes stored and loaded, the baseline 0"]),
        ({"seconds": 90.0, "ptx_bytes": 1 << 20}, []),
    ],
)
def test_regressions(stored: Path, changes: dict[str, float], words: list[str]) -> None:
    now = cell(replace(GOOD, **changes))  # type: ignore[arg-type]
    assert baseline.compare([now], baseline.load(stored), "3.9.0") == 1
    assert now.regressions == words
    assert now.status == ("failed" if words else "passed")
    assert exit_status([now]) == (1 if words else 0)


@pytest.mark.parametrize(
    ("other", "version"),
    [({"arch": "sm_120"}, "3.9.0"), ({"kernel": "_kernel#2"}, "3.9.0"), ({"dtype": "float16"}, "3.9.0"), ({}, "3.6.0")],
)
def test_what_the_baseline_does_not_hold_is_not_compared(stored: Path, other: dict[str, str], version: str) -> None:
    now = cell(replace(GOOD, registers=200), **other)  # type: ignore[arg-type]
    assert baseline.compare([now], baseline.load(stored), version) == 0
    assert now.status == "passed"


def test_saving_replaces_what_was_measured_and_keeps_the_rest(stored: Path) -> None:
    baseline.save([cell(kernel="_renamed", arch="sm_90")], stored, "3.9.0")
    baseline.save([cell(replace(GOOD, registers=50))], stored, "3.6.0")
    entries = baseline.load(stored)
    kernels = entries["3.9.0"]["gdn_decode/optimized"]
    assert {name: set(shapes["bfloat16, H=16 HV=32"]) for name, shapes in kernels.items()} == {
        "_kernel": {"sm_80"},
        "_renamed": {"sm_90"},
    }
    assert entries["3.6.0"]["gdn_decode/optimized"]["_kernel"]["bfloat16, H=16 HV=32"]["sm_90"]["registers"] == 50


def test_spills_that_the_baseline_has_are_known_and_limits_never_are(tmp_path: Path) -> None:
    spilling = replace(GOOD, registers=255, spill_stores=8, spill_loads=8)
    too_large = replace(spilling, shared_dynamic=1 << 20)
    path = tmp_path / "baseline.json"
    for figures, status in ((spilling, "known"), (replace(spilling, spill_stores=0), "known"), (too_large, "failed")):
        baseline.save([cell(replace(figures, spill_stores=8))], path, "3.9.0")
        now = cell(figures)
        now.status = "failed"
        assert baseline.compare([now], baseline.load(path), "3.9.0") == 1
        assert now.status == status
        assert now.regressions == []


def test_one_shape_is_one_line(stored: Path) -> None:
    """So that a change of a kernel is a readable change of the file."""
    lines = [line for line in stored.read_text().splitlines() if '"bfloat16, H=16 HV=32"' in line]
    assert len(lines) == 1
    assert '"sm_80"' in lines[0]
    assert '"sm_90"' in lines[0]


@pytest.mark.parametrize(
    ("text", "words"), [(None, "no file"), ("{", "is not JSON"), ("[]", "another format"), ("{}", "another format")]
)
def test_unreadable_baseline(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=words):
        baseline.load(path)
