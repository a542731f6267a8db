"""The compile matrix finds what is wrong with a kernel, and a compiler that dies ends nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import operators
from harness.compiling import matrix
from harness.compiling.matrix import Cell
from harness.compiling.worker import label
from harness.subjects import Subject, load_target

FILE = Path(__file__).with_name("planted.py")


def cells(*names: str, archs: tuple[str, ...] = ("sm_80", "sm_120")) -> dict[str, list[Cell]]:
    """The float16 cells of these planted subjects."""
    subjects = [Subject("conv_update", name, f"{FILE}:{name}") for name in names]
    found = matrix.run(subjects, archs, ["float16"], jobs=1)
    return {name: [cell for cell in found if cell.subject == name] for name in names}


@pytest.fixture(scope="module")
def found() -> dict[str, list[Cell]]:
    names = (
        "right", "spilling", "too_much_shared_memory", "broken", "reads", "plain_torch", "dies", "tuned",
        "chosen_by_architecture", "crashes_the_compiler", "calls_plain_python",
    )  # fmt: skip
    return cells(*names)


@pytest.mark.parametrize("operator", operators.OPERATORS)
def test_no_two_shapes_have_one_name(operator: str) -> None:
    """A baseline keeps one line for a name: of two shapes, one would be compared with the other's figures."""
    for dtype in operators.get(operator).dtypes:
        names = [label(case) for case in operators.get(operator).compile_cases(dtype)]
        assert len(set(names)) == len(names)


def test_kernel_that_compiles_passes(found: dict[str, list[Cell]]) -> None:
    assert {cell.status for cell in found["right"]} == {"passed"}
    assert {cell.arch for cell in found["right"]} == {"sm_80", "sm_120"}
    # Every D of a model and the odd one, three shapes more for dtypes and indices.
    assert len({cell.case for cell in found["right"]}) == 7
    figures = found["right"][0].figures
    assert figures is not None
    assert 0 < figures.registers < 64
    assert (figures.spills, figures.shared, figures.num_warps) == (0, 0, 4)
    assert min(figures.ptx_bytes, figures.cubin_bytes) > 0
    assert matrix.exit_status(found["right"]) == 0


def test_distinct_kernels_are_compiled_once(found: dict[str, list[Cell]]) -> None:
    """Channels are a runtime integer: what is left is whether there are a multiple of 16 of them, and the architecture."""
    assert len({cell.variant for cell in found["right"]}) == 2 * 2


def test_spills_fail(found: dict[str, list[Cell]]) -> None:
    for cell in found["spilling"]:
        assert cell.status == "failed"
        assert cell.figures is not None
        assert cell.figures.registers == 32
        assert cell.figures.spill_stores > 0
        assert f"spills {cell.figures.spill_stores} bytes a thread" in cell.faults[0]
    assert matrix.exit_status(found["spilling"]) == 1


def test_shared_memory_beyond_the_limit_fails(found: dict[str, list[Cell]]) -> None:
    for cell in found["too_much_shared_memory"]:
        assert cell.status == "failed"
        assert cell.figures is not None
        assert cell.figures.shared_dynamic == 4 << 16
        assert f"needs 262,144 bytes of shared memory, {cell.arch} has" in cell.faults[0]


def test_kernel_that_does_not_compile_fails(found: dict[str, list[Cell]]) -> None:
    for cell in found["broken"]:
        assert cell.status == "failed"
        assert "does not compile" in cell.faults[0]
        assert "power of 2" in cell.faults[0] + cell.details


def test_kernel_whose_dependencies_triton_refuses_fails(found: dict[str, list[Cell]]) -> None:
    assert {cell.status for cell in found["calls_plain_python"]} == {"failed"}
    assert "_forbidden" in found["calls_plain_python"][0].details


def test_subject_that_reads_the_device_is_said_not_to_be_capturable(found: dict[str, list[Cell]]) -> None:
    assert {cell.status for cell in found["reads"]} == {"not_run"}
    assert "not capturable without a GPU: reads the device at" in found["reads"][0].reason
    assert "planted.py" in found["reads"][0].reason
    assert matrix.exit_status(found["right"] + found["reads"]) == 3


def test_plain_torch_has_no_kernels(found: dict[str, list[Cell]]) -> None:
    assert {(cell.status, cell.reason) for cell in found["plain_torch"]} == {
        ("not_covered", "launches no Triton kernel")
    }
    assert matrix.exit_status(found["plain_torch"]) == 0


def test_dead_process_is_recorded_and_the_run_goes_on(found: dict[str, list[Cell]]) -> None:
    """Its worker compiled the subjects after it too."""
    assert {cell.status for cell in found["dies"]} == {"not_run"}
    assert "SIGSEGV" in found["dies"][0].reason


def test_crash_of_the_compiler_is_a_failure_of_the_kernel(found: dict[str, list[Cell]]) -> None:
    assert {cell.status for cell in found["crashes_the_compiler"]} == {"failed"}
    assert "the compiling process died (SIGSEGV)" in found["crashes_the_compiler"][0].faults[0]


def test_every_candidate_of_an_autotuned_kernel_is_compiled(found: dict[str, list[Cell]]) -> None:
    assert {cell.status for cell in found["tuned"]} == {"passed"}
    assert {cell.kernel for cell in found["tuned"]} == {"_tuned_kernel", "_tuned_kernel#2"}
    assert {cell.figures.num_warps for cell in found["tuned"] if cell.figures} == {2, 4}


def test_a_launcher_sees_the_architecture_that_is_compiled_for(found: dict[str, list[Cell]]) -> None:
    old, new = ({c.variant for c in found["chosen_by_architecture"] if c.arch == arch} for arch in ("sm_80", "sm_120"))
    right = {cell.variant for cell in found["right"] if cell.arch == "sm_80"}
    # Blocks of 64 are the same kernel as another subject's; blocks of 128 are not.
    assert old == right
    assert not new & {cell.variant for cell in found["right"]}


def test_what_a_subject_does_not_claim_is_not_covered() -> None:
    target = f"{FILE}:right"
    function = load_target(target)
    function.sluicegate = {"dtypes": ("float32",)}  # type: ignore[attr-defined]
    try:
        found = matrix.run([Subject("conv_update", "right", target)], ["sm_80"], ["float16"])
    finally:
        del function.sluicegate  # type: ignore[attr-defined]
    assert [(cell.status, cell.reason) for cell in found] == [("not_covered", "the subject does not take float16")]
