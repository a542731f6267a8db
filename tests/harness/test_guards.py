"""Each guard fires for the habit that it is meant to catch, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from harness import guards, interpreter, operators
from harness.case import Case, Segment
from harness.context import Context, Property
from harness.failure import Failure

interpreted = pytest.mark.skipif(
    not interpreter.requested(),
    reason="counts Triton's launches in the interpreter; with an NVIDIA GPU the profiler counts",
)
CASE = Case(
    operator="conv_update",
    sequences=(Segment(1, "resumed", 2), Segment(1, "inactive", -1), Segment(1, "resumed", 0)),
    dims={"D": 8, "W": 4},
    regime={"amplitude": "unit"},
    options={"activation": "silu", "bias": True},
    pool_slots=4,
)
HABITS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "item": lambda x, slots: slots.max().item(),
    "int()": lambda x, slots: int(slots[0]),
    "float()": lambda x, slots: float(x.sum()),
    "if tensor": lambda x, slots: 1 if (slots >= 0).all() else 0,
    "range(tensor)": lambda x, slots: range(slots[0] + 1),
    "tolist": lambda x, slots: slots.tolist(),
    "cpu": lambda x, slots: slots.cpu(),
    "numpy": lambda x, slots: slots.numpy(),
    "in": lambda x, slots: 3 in slots,
    "boolean mask": lambda x, slots: x[slots >= 0],
    "boolean mask, assigned rows": lambda x, slots: torch.zeros_like(x).index_put_((slots >= 0,), x[:1]),
    "masked_select": lambda x, slots: x.masked_select(x > 0),
    "nonzero": lambda x, slots: torch.nonzero(slots >= 0),
    "where of one argument": lambda x, slots: torch.where(slots >= 0),
    "unique": lambda x, slots: slots.unique(),
    "equal": lambda x, slots: torch.equal(slots, slots + 1),
    "repeat_interleave": lambda x, slots: torch.repeat_interleave(x, slots.clamp(min=0), dim=0),
    "a tensor as a slice's end": lambda x, slots: x[: slots[0]],
}
HARMLESS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "nothing": lambda x, slots: None,
    "shapes": lambda x, slots: (x.shape[0], x.numel(), x.stride(), len(x), x.data_ptr()),
    "where of three arguments": lambda x, slots: torch.where(slots[:, None] >= 0, x, 0.0),
    "gather and scatter by number": lambda x, slots: torch.zeros_like(x).index_put_((slots.clamp(min=0).long(),), x),
    "repeat_interleave of known size": lambda x, slots: torch.repeat_interleave(
        x, slots.clamp(min=0), dim=0, output_size=1
    ),
    "repeat_interleave by a number": lambda x, slots: x.repeat_interleave(3, dim=0),
    "cumsum and sort": lambda x, slots: (slots.cumsum(0), slots.sort()),
    "masked_fill": lambda x, slots: x.masked_fill((slots < 0)[:, None], 0),
}


@triton.jit
def _double(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)


@triton.jit
def _double_known(x, y, N: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < N) * 2, mask=i < N)


@triton.jit(do_not_specialize=["n"])
def _double_any(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)


def launching(*kernels: Any, constexpr: bool = False) -> Callable[..., Tensor]:
    """A subject that launches these and does not compute a convolution: guards look at cost alone."""

    def subject(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
        y = torch.empty_like(x)
        for kernel in kernels:
            size = {"N": x.numel()} if constexpr else {"n": x.numel()}
            kernel[(triton.cdiv(x.numel(), 64),)](x, y, **size, BLOCK=64)
        return y

    return subject


def judge(prop: Property, subject: Callable[..., Any], case: Case = CASE) -> None:
    prop.body(Context(operators.get(case.operator), subject, torch.device("cpu")), case)


def doing(habit: Callable[[Tensor, Tensor], object]) -> Callable[..., Tensor]:
    def subject(x: Tensor, weight: Tensor, *, state_indices: Tensor, **rest: Any) -> Tensor:
        habit(x, state_indices)
        return x

    return subject


# -- host syncs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("habit", HABITS)
def test_host_sync(habit: str) -> None:
    with pytest.raises(Failure, match="conv_update must not wait for the device: ") as caught:
        judge(guards.host_sync, doing(HABITS[habit]))
    assert caught.value.symptom == "host sync"


@pytest.mark.parametrize("habit", HARMLESS)
def test_no_host_sync(habit: str) -> None:
    judge(guards.host_sync, doing(HARMLESS[habit]))


def test_the_guard_is_gone_after_the_call() -> None:
    with pytest.raises(Failure, match="must not wait"):
        judge(guards.host_sync, doing(HABITS["item"]))
    assert torch.ones(1).item() == 1


def test_an_error_under_the_guard_is_reported_as_one() -> None:
    def fails(x: Tensor, slots: Tensor) -> None:
        raise OverflowError("planted")

    with pytest.raises(Failure, match="raised OverflowError") as caught:
        judge(guards.host_sync, doing(fails))
    assert caught.value.symptom == "raised"


def test_a_batch_may_have_more_rows_than_the_pool_has_slots() -> None:
    """Rows of padding need none: who refuses such a batch refuses a captured graph."""

    def refuses(x: Tensor, weight: Tensor, *, conv_state: Tensor, **rest: Any) -> Tensor:
        if len(x) > len(conv_state):
            raise ValueError(f"{len(x)} rows in a pool of {len(conv_state)} slots")
        return x

    with pytest.raises(Failure, match="3 rows in a pool of 2 slots") as caught:
        judge(guards.host_sync, refuses)
    assert caught.value.symptom == "raised"


# -- copies -----------------------------------------------------------------------------------------------------------


def _pool_copied(x: Tensor, weight: Tensor, *, conv_state: Tensor, **rest: Any) -> Tensor:
    pool = conv_state.clone()
    conv_state.copy_(pool)
    return torch.empty_like(x)


def _rows_gathered(x: Tensor, weight: Tensor, *, conv_state: Tensor, state_indices: Tensor, **rest: Any) -> Tensor:
    conv_state[state_indices.clamp(min=0).long()]
    return torch.empty_like(x)


def _made_contiguous(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    weight.t().contiguous()
    return torch.empty_like(x)


def _views_only(x: Tensor, weight: Tensor, *, conv_state: Tensor, **rest: Any) -> Tensor:
    conv_state[1:].transpose(1, 2).unsqueeze(0).expand(2, -1, -1, -1)
    weight.contiguous()
    return torch.empty_like(x).view(-1).view(x.shape)


def _packed(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    """Free where x is packed already, which a column slice of a projection never is."""
    return torch.empty_like(x.contiguous())


@pytest.mark.parametrize("subject", [_pool_copied, _rows_gathered, _made_contiguous, _packed])
def test_copies(subject: Callable[..., Tensor]) -> None:
    with pytest.raises(
        Failure, match=r"conv_update moved \d+ bytes in \d tensor operations beside its kernel"
    ) as caught:
        judge(guards.copied_bytes, subject)
    assert caught.value.symptom == "copies state"


def test_copied_bytes_are_counted() -> None:
    # Two slots (one an active row), each of 8 channels x 3 floats, there and back.
    with pytest.raises(Failure, match=rf"moved {2 * 2 * 8 * 3 * 4} bytes in 2 tensor operations .*\(clone, copy_\)"):
        judge(guards.copied_bytes, _pool_copied)


def test_views_and_allocations_are_free() -> None:
    judge(guards.copied_bytes, _views_only)


# -- launches and variants --------------------------------------------------------------------------------------------


@interpreted
def test_two_launches() -> None:
    with pytest.raises(Failure, match="launched 2 kernels in one call, at most 1 expected: _double, _double") as caught:
        judge(guards.launch_count, launching(_double, _double))
    assert caught.value.symptom == "too many launches"


@interpreted
def test_one_launch() -> None:
    judge(guards.launch_count, launching(_double))


@interpreted
@pytest.mark.parametrize("count", [2, 3])
def test_an_operator_says_how_many_launches_it_may_take(count: int) -> None:
    def subject(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
        return launching(*[_double] * count)(v, v)

    case = Case(
        operator="gdn_prefill",
        sequences=(Segment(3, "fresh", 0),),
        dims={"H": 1, "HV": 1, "K": 4, "V": 4},
        regime={"amplitude": "unit", "decay": "none", "keys": "random", "beta": "random"},
        options={"scale": None},
    )
    if count == 2:
        judge(guards.launch_count, subject, case)
    else:
        with pytest.raises(Failure, match="launched 3 kernels in one call, at most 2 expected"):
            judge(guards.launch_count, subject, case)


@interpreted
def test_constexpr_size_recompiles() -> None:
    with pytest.raises(Failure, match=r"_double_known needs \d+ compiled variants") as caught:
        judge(guards.variants, launching(_double_known, constexpr=True))
    assert caught.value.symptom == "recompiles"


@interpreted
@pytest.mark.parametrize("kernel", [_double, _double_any])
def test_runtime_size_does_not_recompile(kernel: Any) -> None:
    judge(guards.variants, launching(kernel))


@interpreted
@pytest.mark.parametrize(("kernel", "variants"), [(_double, 3), (_double_any, 1), (_double_known, 5)])
def test_variants_are_those_that_triton_would_compile(kernel: Any, variants: int) -> None:
    """Of a plain integer one for 1, one for multiples of 16 and one for all others; of a constexpr each value's own."""
    from harness import launches

    subject = launching(kernel, constexpr=kernel is _double_known)
    with launches.recorded() as seen:
        for size in (1, 16, 17, 32, 35):
            subject(torch.zeros(size), torch.zeros(size))
    assert [len(keys) for keys in seen.variants.values()] == [variants]


def test_launches_are_not_recorded_afterwards() -> None:
    from harness import launches

    with launches.recorded() as seen:
        launching(_double)(torch.zeros(4), torch.zeros(4))
    launching(_double)(torch.zeros(4), torch.zeros(4))
    assert seen.kernels == ["_double"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("habit", ["item", "tolist", "cpu", "boolean mask", "nonzero", "repeat_interleave"])
def test_host_sync_on_a_gpu(habit: str) -> None:
    subject = doing(HABITS[habit])
    with pytest.raises(Failure, match="must not wait for the device"):
        guards.host_sync.body(Context(operators.get("conv_update"), subject, torch.device("cuda")), CASE)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_copy_of_the_pool_on_a_gpu() -> None:
    # Slots wide enough that 64 times as many of them exceed what is forgiven.
    case = CASE.with_(dims={**CASE.dims, "D": 4096})
    context = Context(operators.get("conv_update"), _pool_copied, torch.device("cuda"))
    with pytest.raises(Failure, match="bytes beside a pool of"):
        guards.pool_memory.body(context, case)
    guards.pool_memory.body(Context(operators.get("conv_update"), _views_only, torch.device("cuda")), case)
