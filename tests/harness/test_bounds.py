"""Accesses outside the buffers of a call: seen under the interpreter, read or written, and only those."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from harness import arguments, interpreter, operators
from harness.context import Context
from harness.execution import Call, invoke
from harness.failure import Failure
from harness.memory import Arena

pytestmark = pytest.mark.skipif(
    not interpreter.requested(),
    reason="Triton compiles for an NVIDIA GPU here; ci runs the interpreter's tests on a CPU",
)


@triton.jit
def _copied(x, y, count, first, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    # What is read too much is masked away in what is written.
    tl.store(y + i, tl.load(x + (first + i) * stride, mask=i < count, other=0.0), mask=i < 3)


@triton.jit
def _filled(y, at):
    tl.store(y + at, 1.0)


@triton.jit
def _filled_at(y, at):
    tl.store(y + tl.load(at), 1.0)


@triton.jit
def _added(y, at, BLOCK: tl.constexpr):
    tl.atomic_add(y + tl.load(at + tl.arange(0, BLOCK)), 5)


@triton.jit
def _swapped(y, at, BLOCK: tl.constexpr):
    where = y + tl.load(at + tl.arange(0, BLOCK))
    tl.atomic_cas(where, tl.zeros((BLOCK,), tl.int32), tl.full((BLOCK,), 5, tl.int32))


@triton.jit
def _of_a_tuple(buffers, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(buffers[0] + i))


@triton.jit
def _of_a_descriptor(x, y, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK), x.load([0]))


def reads(x: Tensor, count: int, first: int = 0) -> Tensor:
    y = torch.empty(3)
    _copied[(1,)](x, y, count, first, x.stride(0), BLOCK=8)
    return y


def judged(subject: Callable[[Tensor], Tensor], **placed: object) -> str:
    """The message of the failure, or nothing."""
    interpreter.repair()
    arena = Arena("cpu")
    x = arena.place("x", torch.arange(4.0), **placed)  # type: ignore[arg-type]
    try:
        invoke(subject, Call((x,), {}, arena))
    except Failure as failure:
        return f"{failure.symptom}: {failure.message}"
    return ""


@pytest.mark.parametrize("placed", [{}, {"strides": [3]}, {"offset": 1}])
def test_all_of_a_buffer_may_be_read(placed: dict[str, object]) -> None:
    assert judged(lambda x: reads(x, 4), **placed) == ""


@pytest.mark.parametrize(
    ("count", "first", "said"),
    [
        (5, 0, "reads 1 elements outside every buffer that it was given, the first 4 bytes behind x"),
        (7, 0, "reads 3 elements"),
        (3, -1, "the first 4 bytes before x"),
    ],
)
def test_a_read_beyond_is_seen_though_nothing_comes_of_it(count: int, first: int, said: str) -> None:
    message = judged(lambda x: reads(x, count, first))
    assert message.startswith("out of bounds: _copied reads ")
    assert said in message


def test_the_line_of_the_kernel_is_named() -> None:
    lines = inspect.getsource(_copied.fn).splitlines()
    line = inspect.getsourcelines(_copied.fn)[1] + next(i for i, text in enumerate(lines) if "tl.load" in text)
    assert judged(lambda x: reads(x, 5)).endswith(f", at {__file__}:{line}")


def test_a_gap_between_rows_is_no_edge() -> None:
    assert judged(lambda x: reads(x.as_strided((10,), (1,)), 8), strides=[3]) == ""


def elsewhere(given: Tensor, other: Tensor) -> int:
    """How many elements behind ``given`` the other tensor is."""
    return (other.data_ptr() - given.data_ptr()) // given.element_size()


def test_a_write_far_beyond_the_fence_is_seen_and_not_done() -> None:
    """Whatever lies there belongs to somebody else; done, the next thing that this process says is not to be trusted."""
    other = torch.zeros(8)

    def far(x: Tensor) -> Tensor:
        given = torch.empty(3)
        _filled[(1,)](given, elsewhere(given, other))
        return x

    assert "_filled writes 1 elements outside" in judged(far)
    assert other.tolist() == [0.0] * 8


def test_a_write_into_the_fence_is_told_with_its_line() -> None:
    """The guard band is found written too; but not by whom, nor where what stood there was written again."""

    def beyond(x: Tensor) -> Tensor:
        _filled[(1,)](torch.empty(3), 3)
        return x

    message = judged(beyond)
    assert message.startswith("out of bounds: _filled writes 1 elements outside every buffer")
    assert "the first 4 bytes behind a buffer of the subject's own, at " in message


@pytest.mark.parametrize("mib", [16, -16, 1 << 42, -(1 << 42)])
def test_addresses_that_nobody_has_do_not_end_the_process(mib: int) -> None:
    def wild(x: Tensor) -> Tensor:
        at = torch.tensor([mib << 18])
        _filled_at[(1,)](x, at)
        return reads(x, 4, mib << 18)

    assert "_filled_at writes 1 elements outside" in judged(wild)


def test_what_is_read_far_beyond_is_what_is_masked_away() -> None:
    other, got = torch.full((8,), 7.0), torch.empty(0)

    def far(x: Tensor) -> Tensor:
        nonlocal got
        got = reads(x, 4, elsewhere(x, other))
        return got

    assert "_copied reads 4 elements outside" in judged(far)
    assert got.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kernel", [_added, _swapped])
def test_atomic_operations_are_seen_and_done_only_inside(kernel: triton.JITFunction) -> None:
    other, inside = torch.zeros(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)

    def far(x: Tensor) -> Tensor:
        kernel[(1,)](inside, torch.tensor([1, elsewhere(inside, other)]), BLOCK=2)
        return x

    assert f"{kernel.fn.__name__} updates 1 elements outside" in judged(far)
    assert (inside.tolist(), other.tolist()) == ([0, 5, 0, 0, 0, 0, 0, 0], [0] * 8)


@pytest.mark.parametrize("packed", [lambda x: (x,), lambda x: TensorDescriptor(x, [4], [1], [4])])
def test_buffers_in_tuples_and_descriptors_are_known(packed: Callable[[Tensor], object]) -> None:
    kernel = _of_a_tuple if isinstance(packed(torch.zeros(4)), tuple) else _of_a_descriptor

    def subject(x: Tensor) -> Tensor:
        y = torch.empty(4)
        kernel[(1,)](packed(x), y, BLOCK=4)
        return y

    assert judged(subject, offset=0) == ""


@triton.jit
def _wide(narrow, y, at):
    tl.store(y, tl.load(narrow.to(tl.pointer_type(tl.float32)) + at))


@pytest.mark.parametrize(("at", "inside"), [(0, True), (1, False)])
def test_an_element_that_begins_inside_and_ends_outside_is_outside(at: int, inside: bool) -> None:
    def half(x: Tensor) -> Tensor:
        y = torch.empty(1)
        _wide[(1,)](torch.ones(3, dtype=torch.float16), y, at)
        return y

    assert ("_wide reads 1 elements outside" not in judged(half)) == inside


def test_a_buffer_of_nothing_holds_nothing() -> None:
    def from_nothing(x: Tensor) -> Tensor:
        return reads(torch.empty(0), 1)

    assert "_copied reads 1 elements outside" in judged(from_nothing)


def test_a_tensor_made_otherwise_may_be_read_whole() -> None:
    assert judged(lambda x: reads(torch.cat([x, x, x])[4:], 8)) == ""


def test_without_the_memory_checks_nothing_is_said() -> None:
    interpreter.repair()
    arena = Arena("cpu")
    x = arena.place("x", torch.arange(4.0))
    assert invoke(lambda x: reads(x, 5), Call((x,), {}, arena), check_memory=False).tolist() == [0.0, 1.0, 2.0]


def test_a_launch_that_nobody_watches_is_held_to_its_buffers_too() -> None:
    """The counts of launches and copies call the subject as it is; a damaged process would be theirs."""
    interpreter.repair()
    given, other = torch.zeros(3), torch.zeros(8)
    with pytest.raises(Failure, match="_filled writes 1 elements outside"):
        _filled[(1,)](given, elsewhere(given, other))
    assert other.tolist() == [0.0] * 8
    _filled[(1,)](given, 2)
    assert given.tolist() == [0.0, 0.0, 1.0]


def test_bad_arguments_that_are_accepted_are_that_first() -> None:
    """Where they lead is what comes of it."""
    interpreter.repair()
    arena = Arena("cpu")
    x, z, weight = (arena.place(name, torch.ones(4)) for name in ("x", "z", "weight"))

    def accepts(*tensors: Tensor) -> Tensor:
        _filled[(1,)](torch.empty(3), 3)
        return x

    context = Context(operators.get("gated_rmsnorm"), accepts, torch.device("cpu"))
    missing = arguments.Breakage("z missing", "z", lambda _: None)
    call = Call((x, z, weight), {}, arena)
    with pytest.raises(Failure, match="z missing was accepted") as caught:
        arguments._require_rejected(context, missing, call, {"x": x, "z": None, "weight": weight})
    assert caught.value.symptom == "not rejected"
