"""Races are found whatever the order in which the interpreter happens to run programs, and only races."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl

from harness import bounds, interpreter, races
from harness.failure import Failure

pytestmark = pytest.mark.skipif(
    not interpreter.requested(),
    reason="Triton compiles for an NVIDIA GPU here; ci runs the interpreter's tests on a CPU",
)


@triton.jit
def _running_sum(x, sums, turn, ATOMIC: tl.constexpr):
    """Right if programs run one after another in their order, and only then; with an atomic operation they might."""
    p = tl.program_id(0)
    if ATOMIC == "add":
        tl.atomic_add(turn, 1)
    if ATOMIC == "swap":
        tl.atomic_cas(turn, 0, 1)
    before = tl.load(sums + p - 1, mask=p > 0, other=0.0)
    tl.store(sums + p, before + tl.load(x + p))


@triton.jit
def _own_sum(x, sums, BLOCK: tl.constexpr):
    p = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    tl.store(sums + p, tl.sum(tl.load(x + i, mask=i <= p, other=0.0), axis=0))


@triton.jit
def _read_before_it_is_replaced(x, sums, n):
    """The first program reads what the last one replaces, as one of a sequence's first tokens and one of its last may."""
    p = tl.program_id(0)
    if p == 0:
        tl.store(sums, tl.load(x))
    tl.debug_barrier()
    if p == n - 1:
        tl.store(x, -1.0)


@triton.jit
def _read_by_all(x, sums):
    """The last program replaces what the others have read as well as itself."""
    p = tl.program_id(0)
    value = tl.load(x)
    tl.store(sums + p, value)
    if p == 2:
        tl.store(x, value + 1.0)


@triton.jit
def _overlapping_tiles(y, STEP: tl.constexpr, VALUE: tl.constexpr):
    p = tl.program_id(0)
    i = p * STEP + tl.arange(0, 4)
    tl.store(y + i, i * 0.0 + (p * VALUE + 5))


@triton.jit
def _written_twice(y, BARRIER: tl.constexpr, SHIFT: tl.constexpr):
    i = tl.arange(0, 4)
    tl.store(y + i, i + 100.0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(y + i + SHIFT, i + 10.0)


@triton.jit
def _written_again_behind_the_barrier(y, z):
    i = tl.arange(0, 4)
    tl.store(y + i, i + 1.0)
    tl.debug_barrier()
    tl.store(y + i, i + 10.0)
    tl.store(z + i, tl.load(y + 3 - i))


@triton.jit
def _in_another_shape(y, z):
    i = tl.arange(0, 4)
    tl.store(y + i, i + 1.0)
    square = tl.arange(0, 2)[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(z + square, tl.load(y + square))


@triton.jit
def _window(y):
    i = tl.arange(0, 4)
    tl.store(y + i, tl.load(y + i + 1) + 1.0)


@triton.jit
def _one_address(y, STEPS: tl.constexpr):
    if STEPS == "read and written":
        tl.store(y, tl.load(y) + 1.0)
    if STEPS == "written twice":
        tl.store(y, 1.0)
        tl.store(y, 2.0)
    if STEPS == "written and read":
        tl.store(y, 1.0)
        tl.store(y + 1, tl.load(y))
    if STEPS == "written, then read":
        tl.store(y, 1.0)
        tl.debug_barrier()
        tl.store(y + 1, tl.load(y))


@triton.jit
def _back_through_memory(y, z, BARRIER: tl.constexpr):
    i = tl.arange(0, 4)
    tl.store(y + i, i.to(tl.float32) + 1.0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(z + i, tl.load(y + 3 - i))


def found(launch: Callable[[], object]) -> str:
    interpreter.repair()
    with bounds.watched(), races.watched() as watch:
        launch()
    try:
        watch.check()
    except Failure as failure:
        return failure.message if failure.symptom == "race" else failure.symptom
    return ""


X = torch.arange(1.0, 9.0)
TURN = torch.zeros(1, dtype=torch.int32)


def test_a_result_that_hangs_on_the_order_of_programs() -> None:
    sums = torch.zeros(4)
    message = found(lambda: _running_sum[(4,)](X, sums, TURN, ATOMIC=""))
    assert sums.tolist() == [1.0, 3.0, 6.0, 10.0]  # the interpreter's order is the one that is right
    assert message.startswith("_running_sum: program (1, 0, 0) reads 1 elements of an argument, the first at element 0")
    assert "that program (0, 0, 0) has written" in message
    assert "test_races.py:" in message


def test_programs_that_read_the_same_do_not_race() -> None:
    sums = torch.zeros(4)
    assert found(lambda: _own_sum[(4,)](X, sums, BLOCK=8)) == ""
    assert sums.tolist() == [1.0, 3.0, 6.0, 10.0]


@pytest.mark.parametrize(("programs", "races"), [(1, False), (2, True), (5, True)])
def test_what_one_program_reads_another_must_not_replace(programs: int, races: bool) -> None:
    x, sums = X.clone(), torch.zeros(1)
    message = found(lambda: _read_before_it_is_replaced[(programs,)](x, sums, programs))
    assert bool(message) == races
    if races:
        assert f"program ({programs - 1}, 0, 0) writes" in message
        assert "that program (0, 0, 0) has read" in message


@pytest.mark.parametrize(("step", "value", "races"), [(4, 1, False), (3, 1, True), (3, 0, False)])
def test_tiles_that_overlap_race_unless_they_write_the_same(step: int, value: int, races: bool) -> None:
    y = torch.full((16,), -1.0)
    assert bool(found(lambda: _overlapping_tiles[(3,)](y, STEP=step, VALUE=value))) == races


@pytest.mark.parametrize("atomic", ["add", "swap"])
def test_a_launch_with_atomic_operations_may_have_an_order_of_its_own(atomic: str) -> None:
    assert found(lambda: _running_sum[(4,)](X, torch.zeros(4), TURN.clone(), ATOMIC=atomic)) == ""


def test_one_of_several_readers_must_not_replace_what_all_read() -> None:
    x, sums = X.clone(), torch.zeros(4)
    message = found(lambda: _read_by_all[(3,)](x, sums))
    assert "program (2, 0, 0) writes 1 elements" in message
    assert "that other programs have read" in message


@pytest.mark.parametrize(
    ("barrier", "shift", "races"), [(False, 1, True), (True, 1, False), (False, 0, False), (False, 4, False)]
)
def test_what_other_threads_write_too_needs_a_barrier(barrier: bool, shift: int, races: bool) -> None:
    message = found(lambda: _written_twice[(1,)](X.clone(), BARRIER=barrier, SHIFT=shift))
    assert bool(message) == races
    assert ("no tl.debug_barrier between" in message) == races


def test_a_barrier_serves_what_was_written_before_it() -> None:
    y, z = torch.zeros(4), torch.zeros(4)
    assert "no tl.debug_barrier between" in found(lambda: _written_again_behind_the_barrier[(1,)](y, z))


def test_the_same_addresses_in_another_shape_are_another_block() -> None:
    y, z = torch.zeros(4), torch.zeros(4)
    assert "no tl.debug_barrier between" in found(lambda: _in_another_shape[(1,)](y, z))


def test_a_window_that_moves_within_itself_is_the_compilers_business() -> None:
    """flash-linear-attention's `causal_conv1d_update_kernel` moves its own so, and is right."""
    assert found(lambda: _window[(1,)](X.clone())) == ""


@pytest.mark.parametrize(
    ("steps", "races"),
    [("read and written", False), ("written twice", False), ("written and read", True), ("written, then read", False)],
)
def test_one_address_is_written_by_one_thread_and_read_by_all(steps: str, races: bool) -> None:
    assert bool(found(lambda: _one_address[(1,)](torch.zeros(2), STEPS=steps))) == races


@pytest.mark.parametrize(("barrier", "races"), [(False, True), (True, False)])
def test_what_goes_through_memory_needs_a_barrier(barrier: bool, races: bool) -> None:
    y, z = torch.zeros(4), torch.zeros(4)
    assert bool(found(lambda: _back_through_memory[(1,)](y, z, BARRIER=barrier))) == races
    assert z.tolist() == [4.0, 3.0, 2.0, 1.0]


def test_launches_come_one_after_another() -> None:
    y = torch.full((16,), -1.0)

    def both() -> None:
        _overlapping_tiles[(3,)](y, STEP=4, VALUE=1)
        _overlapping_tiles[(3,)](y[1:], STEP=4, VALUE=1)

    assert found(both) == ""
    with bounds.watched(), races.watched() as watch:
        both()
    assert watch.launches == 2


def test_elements_of_several_sizes_are_the_bytes_that_they_are() -> None:
    """The same buffer as 4-byte and as 2-byte elements: the finer ones lie within the others."""
    y = torch.zeros(4)
    halves = y.view(torch.float16)

    @triton.jit
    def mixed(wide, narrow):
        if tl.program_id(0) == 0:
            tl.store(wide + tl.arange(0, 2), tl.full((2,), 1.0, tl.float32))
        else:
            tl.store(narrow + 2 + tl.arange(0, 2), tl.full((2,), 2.0, tl.float16))

    assert "writes 2 elements" in found(lambda: mixed[(2,)](y, halves))

    @triton.jit
    def second_half(wide, narrow):
        if tl.program_id(0) == 0:
            tl.store(narrow + 1, 2.0)
        else:
            tl.store(wide + tl.arange(0, 2), tl.full((2,), 3.0, tl.float32))

    assert "that program (0, 0, 0) has written" in found(lambda: second_half[(2,)](y, halves))


def test_a_race_of_the_first_launch_is_kept() -> None:
    y, sums = torch.full((16,), -1.0), torch.zeros(4)

    def both() -> None:
        _running_sum[(4,)](X, sums, TURN, ATOMIC="")
        _overlapping_tiles[(3,)](y, STEP=4, VALUE=1)

    assert found(both).startswith("_running_sum: ")
