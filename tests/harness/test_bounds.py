"""Accesses outside the buffers of a call: seen under the interpreter, read or written, and only those."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from harness import interpreter
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


def test_a_gap_between_rows_is_no_edge() -> None:
    assert judged(lambda x: reads(x.as_strided((10,), (1,)), 8), strides=[3]) == ""


def test_a_write_far_beyond_the_fence_is_seen() -> None:
    def far(x: Tensor) -> Tensor:
        given, other = torch.empty(3), torch.zeros(8)
        _filled[(1,)](given, (other.data_ptr() - given.data_ptr()) // 4)
        return x

    assert "_filled writes 1 elements outside" in judged(far)


def test_a_tensor_made_otherwise_may_be_read_whole() -> None:
    assert judged(lambda x: reads(torch.cat([x, x, x])[4:], 8)) == ""


def test_without_the_memory_checks_nothing_is_said() -> None:
    interpreter.repair()
    arena = Arena("cpu")
    x = arena.place("x", torch.arange(4.0))
    assert invoke(lambda x: reads(x, 5), Call((x,), {}, arena), check_memory=False).tolist() == [0.0, 1.0, 2.0]
