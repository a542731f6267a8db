"""A GPU that others fill says nothing about a subject: a cell for which memory ran out did not run, whoever noticed it and how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis.errors import FlakyFailure

from harness import cell, execution
from harness.cell import Cell, CellSpec
from harness.execution import out_of_memory
from harness.isolation import IsolatedCell, find_property
from tests.harness.support import target

FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    # A stream, a context or a graph that CUDA makes; a kernel that Triton launches; a handle of cuBLAS.
    torch.AcceleratorError(
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com"
    ),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)
OTHER = (
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("out of resource: shared memory, Required: 262176, Hardware limit: 232448."),
    ValueError("CUDA error: out of memory"),
    MemoryError("out of memory"),
)


def of(name: str, prop: str, cases: int = 20) -> tuple[CellSpec, Any]:
    spec = CellSpec("conv_update", name, target(name, "faulty"), prop, "cpu", "float32", cases, 3)
    return spec, find_property("conv_update", prop)


@pytest.mark.parametrize("error", FULL, ids=lambda e: type(e).__name__)
def test_every_way_of_saying_it(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize("error", OTHER, ids=lambda e: type(e).__name__)
def test_what_is_another_error(error: Exception) -> None:
    assert not out_of_memory(error)


@pytest.mark.parametrize("error", FULL, ids=lambda e: type(e).__name__)
def test_a_property_for_which_it_ran_out_did_not_run(error: Exception) -> None:
    spec, prop = of("as_shipped", "equivalence")
    spec = replace(spec, target="optimized.baselines:conv_update")

    def body(_: Any, case: Any) -> None:
        if len(case.sequences) > 2:
            raise error

    result = Cell(spec, replace(prop, body=body)).run()
    assert (result.status, result.failure) == ("not_run", None)
    assert "--workers" in result.reason


def test_the_first_call_of_a_new_process() -> None:
    """What the other process says is not taken for a crash of the subject."""
    spec, prop = of("full_for_a_new_process", "cold_equals_warm", cases=1)
    result = Cell(spec, prop).run()
    assert (result.status, result.failure) == ("not_run", None)
    assert "Tried to allocate 1 GiB" in result.reason


def test_a_process_of_its_own_for_every_case() -> None:
    spec, prop = of("out_of_memory", "equivalence")
    result = IsolatedCell(spec, prop, timeout=60.0).run()
    assert (result.status, result.failure) == ("not_run", None)
    assert "Tried to allocate 1 GiB" in result.reason


def test_an_error_that_comes_once_is_told_as_it_was() -> None:
    """Hypothesis says that it did not come again; what it was must not be lost behind that."""
    spec, prop = of("as_shipped", "equivalence")
    spec = replace(spec, target="optimized.baselines:conv_update")
    came = []

    def body(_: Any, case: Any) -> None:
        if len(case.sequences) > 2 and not came:
            came.append(case)
            raise KeyError("a slip of the harness")

    with pytest.raises(FlakyFailure) as found:
        Cell(spec, replace(prop, body=body)).run()
    assert found.group_contains(KeyError, match="a slip of the harness")


@pytest.mark.parametrize(("reserved", "given_back"), [(9 << 30, 1), (5 << 30, 0)])
def test_what_a_cell_no_longer_needs_is_for_the_others(
    reserved: int, given_back: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has met a tensor of 16 GiB would keep them to the end of the run."""
    emptied: list[None] = []
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 << 30)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(None))
    execution.give_back(torch.device("cpu"))
    assert emptied == []
    execution.give_back(torch.device("cuda", 0))
    assert len(emptied) == given_back


def test_every_cell_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr(cell, "give_back", devices.append)
    spec, prop = of("as_shipped", "equivalence", cases=1)
    Cell(replace(spec, target="optimized.baselines:conv_update"), prop).run()
    assert devices == [torch.device("cpu")]
