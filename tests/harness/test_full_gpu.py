"""A GPU that others fill says nothing about a subject: a cell for which memory ran out did not run, whoever noticed it and how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import cell, execution, operators, plan, strategies, verification
from harness.cell import Cell, CellResult, CellSpec
from harness.draws import draws
from harness.execution import DeviceLost, out_of_memory
from harness.failure import fail
from harness.isolation import IsolatedCell, find_property, record_of_crash
from tests.harness.support import invoke, target

ASKED, HAS = "CUDA out of memory. Tried to allocate", "GPU 0 has a total capacity of"
FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    # A stream, a context or a graph that CUDA makes; a kernel that Triton launches; a handle of cuBLAS.
    torch.AcceleratorError(
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com"
    ),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    torch.OutOfMemoryError(f"{ASKED} 79.10 GiB. {HAS} 79.19 GiB of which 3.33 GiB is free."),
)
OTHER = (
    # No other worker is to blame for that.
    torch.OutOfMemoryError(f"{ASKED} 85.83 GiB. {HAS} 79.19 GiB of which 78.61 GiB is free."),
    torch.OutOfMemoryError(f"{ASKED} 1.25 TiB. {HAS} 79.19 GiB of which 78.61 GiB is free."),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm(handle)`"),
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

    with pytest.raises(KeyError, match="a slip of the harness"):
        Cell(spec, replace(prop, body=body)).run()


def test_what_has_failed_before_memory_ran_out_has_failed() -> None:
    """And it is made as small as it had become, without a word about a subject that is not deterministic."""
    spec, prop = of("as_shipped", "equivalence", cases=60)
    spec = replace(spec, target="optimized.baselines:conv_update")
    judged: list[int] = []

    def body(_: Any, case: Any) -> None:
        if len(case.sequences) < 2:
            return
        judged.append(len(case.sequences))
        if len(judged) > 3:
            raise FULL[0]
        fail("over budget", "two rows")

    result = Cell(spec, replace(prop, body=body)).run()
    assert (result.status, result.reason) == ("failed", "")
    assert result.failure is not None
    assert result.failure.message == "two rows"
    assert len(result.failure.case["sequences"]) == min(judged[:3])


@pytest.mark.parametrize("name", ["equivalence", "bad_arguments"])
def test_a_lost_device_is_no_full_one(name: str) -> None:
    """Nothing can be judged on it any more, in no cell."""
    spec, prop = of("device_lost", name)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        Cell(spec, prop).run()


def test_bad_arguments_find_no_room() -> None:
    """That a subject raises no ValueError there says nothing."""
    spec, prop = of("always_full", "bad_arguments", cases=3)
    result = Cell(spec, prop).run()
    assert (result.status, result.failure) == ("not_run", None)


def test_a_crash_is_not_made_smaller_where_there_is_no_room() -> None:
    spec, _ = of("out_of_memory", "equivalence")
    case = draws(operators.get("conv_update").cases(strategies.CPU, "float32"), 1, seed=3)[0]
    crashed = CellResult(
        spec, "failed", failure=record_of_crash(spec, case, "crashed", "the process died (SIGSEGV)", "")
    )
    asked = plan.Plan(("conv_update",), (), "quick", ("equivalence",), "cpu", seed=3, out="", case_timeout=60.0)
    seen = verification._second_look(crashed, asked)
    assert seen.failure is not None
    assert seen.failure.message == "the process died (SIGSEGV)"
    assert "not shrunk: the GPU's memory ran out" in seen.failure.details


@pytest.mark.parametrize("here", [(), ("--here",)])
def test_a_replay_that_finds_no_room_has_not_run(here: tuple[str, ...], tmp_path: Path) -> None:
    spec, _ = of("always_full", "equivalence")
    case = draws(operators.get("conv_update").cases(strategies.CPU, "float32"), 1, seed=3)[0]
    recorded = tmp_path / "failure.json"
    recorded.write_text(json.dumps(record_of_crash(spec, case, "over budget", "far off", "").to_json()))
    done = invoke("replay", str(recorded), *here)
    assert done.status == 3, done.stdout + done.stderr
    assert "not run: the GPU's memory ran out" in done.stdout
    assert "fixed" not in done.stdout


@pytest.mark.parametrize(("reserved", "used", "given_back"), [(9, 4, 1), (5, 4, 0), (9, 8, 0), (3, 1, 1)])
def test_what_a_cell_no_longer_needs_is_for_the_others(
    reserved: int, used: int, given_back: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has met a tensor of 16 GiB would keep them to the end of the run."""
    emptied: list[None] = []
    second = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", {second: reserved << 30}.__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_allocated", {second: used << 30}.__getitem__)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(None))
    execution.give_back(torch.device("cpu"))
    assert emptied == []
    execution.give_back(second)
    assert len(emptied) == given_back


@pytest.mark.parametrize("target_", ["optimized.baselines:conv_update", target("wrong_dtype", "faulty")])
def test_every_cell_gives_back(target_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is through: making a failure smaller needs memory too."""
    did: list[str] = []
    monkeypatch.setattr(cell, "give_back", lambda device: did.append(f"gave back on {device}"))
    monkeypatch.setattr(cell.shrink, "polish", lambda case, error, *_: did.append("polished") or (case, error))
    spec, prop = of("as_shipped", "equivalence", cases=3)
    result = Cell(replace(spec, target=target_), prop).run()
    assert did == ["polished"] * (result.status == "failed") + ["gave back on cpu"]
