"""Whatever a call writes where it may not is seen, and named for what it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.execution import Call, invoke
from harness.failure import Failure
from harness.memory import GUARD_BYTES, INTEGER_POISON, Arena, PoisonedAllocations, Stale, as_bits, same_bits, span

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool)


def poke(tensor: Tensor, offset: int, value: float = 1.0) -> None:
    """Write one element at a distance from the tensor's first one, as a stray pointer would."""
    tensor.as_strided((1,), (1,), tensor.storage_offset() + offset).fill_(value)


def pool_arena(strides: tuple[int, int] | None = None) -> tuple[Arena, Tensor]:
    """A pool of four slots of six values, of which slot 1 may be written."""
    arena = Arena("cpu")
    pool = arena.place("conv_state", torch.arange(24.0).view(4, 6), strides=strides, writable_rows=[1])
    arena.arm()
    return arena, pool


def symptom_of(body: Callable[[], object]) -> str:
    with pytest.raises(Failure) as caught:
        body()
    return caught.value.symptom


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [-1, "-guard", "end", "end+guard"])
def test_guard_band(dtype: torch.dtype, offset: int | str) -> None:
    arena = Arena("cpu")
    tensor = arena.place("x", torch.zeros(3, 5, dtype=dtype))
    arena.arm()
    guard = GUARD_BYTES // dtype.itemsize
    # The poison of a flag is true, so it takes a false to change it.
    poke(
        tensor,
        {"-guard": -guard, "end": 15, "end+guard": 14 + guard}.get(offset, offset),
        0 if dtype == torch.bool else 1,
    )
    assert symptom_of(arena.check) == "guard band written"


def test_guard_band_says_how_far_outside() -> None:
    arena = Arena("cpu")
    poked = arena.place("x", torch.zeros(4))
    arena.arm()
    poke(poked, 5)
    with pytest.raises(Failure, match=r"x: 1 elements outside .* \+2 elements"):
        arena.check()


def test_input_changed() -> None:
    arena = Arena("cpu")
    x = arena.place("x", torch.zeros(3, 5))
    arena.arm()
    x[2, 0] = 1
    with pytest.raises(Failure, match=r"x: .* row 2 \(0.0 became 1.0\)") as caught:
        arena.check()
    assert caught.value.symptom == "input changed"


def test_written_back_with_other_bits_is_a_change() -> None:
    arena = Arena("cpu")
    x = arena.place("x", torch.zeros(3))
    arena.arm()
    x.neg_()  # -0.0 equals 0.0, and is not what was there
    assert symptom_of(arena.check) == "input changed"


def test_gap_between_rows_is_part_of_the_input() -> None:
    arena = Arena("cpu")
    x = arena.place("x", torch.zeros(3, 5), strides=(8, 1))
    arena.arm()
    poke(x, 6)
    assert symptom_of(arena.check) == "input changed"


@pytest.mark.parametrize("slot", [0, 2, 3])
def test_untouched_slot(slot: int) -> None:
    arena, pool = pool_arena()
    pool[slot, 5] = -1
    with pytest.raises(Failure, match=f"slot {slot} belongs to no active row") as caught:
        arena.check()
    assert caught.value.symptom == "untouched slot changed"


def test_padding_of_an_active_slot_is_untouchable() -> None:
    arena, pool = pool_arena(strides=(9, 1))
    pool[1] = 7
    poke(pool, 9 + 6)
    assert symptom_of(arena.check) == "untouched slot changed"


def test_pool_without_active_rows() -> None:
    arena = Arena("cpu")
    pool = arena.place("state", torch.zeros(2, 3))
    arena.arm()
    pool[0] = 1
    assert symptom_of(arena.check) == "untouched slot changed"


def test_flags_are_an_input_and_no_pool() -> None:
    arena = Arena("cpu")
    flags = arena.place("has_initial_state", torch.tensor([True, False]))
    arena.arm()
    flags[1] = True
    assert symptom_of(arena.check) == "input changed"


@pytest.mark.parametrize("strides", [None, (9, 1)])
def test_right_call_passes(strides: tuple[int, int] | None) -> None:
    arena, pool = pool_arena(strides)
    arena.place("x", torch.randn(3, 5))
    arena.arm()
    pool[1] = 7
    arena.check()
    assert pool[1].tolist() == [7.0] * 6


def test_check_needs_arming() -> None:
    arena = Arena("cpu")
    arena.place("x", torch.zeros(3))
    with pytest.raises(RuntimeError, match="arm the arena"):
        arena.check()


# -- poison -----------------------------------------------------------------------------------------------------------


def test_nan_equals_itself_bit_by_bit() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        poison = torch.full((3,), float("nan"), dtype=dtype)
        assert same_bits(poison, poison.clone())
        assert not same_bits(poison, torch.zeros_like(poison))
    assert not same_bits(torch.zeros(2), torch.tensor([0.0, -0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    assert as_bits(torch.tensor([float("nan")])).dtype == torch.int32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_placed_buffers_lie_in_poison(dtype: torch.dtype) -> None:
    arena = Arena("cpu")
    view = arena.place("x", torch.zeros(2, 2, dtype=dtype), strides=(4, 1), offset=1)
    storage = arena.buffers[0].storage
    around = torch.ones(storage.numel(), dtype=torch.bool)
    around.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
    poison = storage[around]
    assert poison.numel() == storage.numel() - 4
    if dtype.is_floating_point:
        assert bool(poison.isnan().all())
    elif dtype == torch.bool:
        assert bool(poison.all())
    else:
        assert bool((poison == INTEGER_POISON).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stale_numbers_are_all_different_and_the_same_every_time(dtype: torch.dtype) -> None:
    first, second = (Stale()((4, 25), dtype, torch.device("cpu")) for _ in range(2))
    assert first.shape == (4, 25)
    assert first.dtype == dtype
    assert same_bits(first, second)
    assert first.isfinite().all()
    assert first.unique().numel() > 80
    stale = Stale()
    assert not same_bits(*(stale((3,), dtype, torch.device("cpu")) for _ in range(2))), "two buffers are not alike"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
def test_stale_whole_numbers_may_be_ids(dtype: torch.dtype) -> None:
    numbers = Stale()((400,), dtype, torch.device("cpu"))
    assert numbers.dtype == dtype
    assert numbers.unique().tolist() == ([False, True] if dtype == torch.bool else list(range(Stale.BELOW)))


def test_a_stale_arena_has_no_poison() -> None:
    arena = Arena("cpu", Stale())
    placed = arena.place("x", torch.ones(2, 3), strides=(7, 1), offset=1)
    assert torch.equal(placed, torch.ones(2, 3))
    assert not arena.buffers[0].storage.isnan().any()
    arena.arm()
    arena.check()
    poke(placed, -1)
    assert symptom_of(arena.check) == "guard band written"


# -- placement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 8])
@pytest.mark.parametrize("strides", [None, (40, 8, 1), (23, 7, 1)])
def test_strided_placement_holds_the_content(strides: tuple[int, ...] | None, offset: int) -> None:
    content = torch.arange(30).view(3, 2, 5)
    placed = Arena("cpu").place("x", content, strides=strides, offset=offset)
    assert torch.equal(placed, content)
    assert placed.stride() == (strides or (10, 5, 1))
    assert (placed.data_ptr() % 64 == 0) == (offset % 8 == 0)


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_fused_placement_holds_every_part(tokens: int) -> None:
    parts = {"q": torch.randn(tokens, 2, 3), "k": torch.randn(tokens, 2, 3), "b": torch.randn(tokens, 5)}
    arena = Arena("cpu")
    views = arena.place_fused(parts, row_pad=2, offset=1)
    arena.arm()
    for name, part in parts.items():
        assert torch.equal(views[name], part)
    assert {v.stride(0) for v in views.values()} == {6 + 6 + 5 + 2}
    assert len(arena.buffers) == 1, "the parts share one buffer"
    arena.check()
    if tokens:
        views["k"][0, 1, 2] = 99
        assert symptom_of(arena.check) == "input changed"


def test_span_of_views() -> None:
    assert span((3, 5), (8, 1)) == 21
    assert span((0, 5), (8, 1)) == 0
    assert span((), ()) == 1


# -- the subject's own memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(4, 3),
        lambda: torch.empty_like(torch.zeros(4, 3)),
        lambda: torch.empty_strided((4, 3), (1, 4)),
        lambda: torch.zeros(1).new_empty(4, 3),
        lambda: torch.zeros(1).new_empty_strided((4, 3), (3, 1)),
    ],
)
def test_own_allocation(allocate: Callable[[], Tensor]) -> None:
    with PoisonedAllocations() as poison:
        out = allocate()
        # Memory that nobody has touched may happen to hold NaN.
        assert len(poison._fenced) == 1
        assert bool(out.isnan().all()), "what nobody wrote is not a number"
        out.fill_(1)
        poison.check()
        poke(out, 12)
    assert symptom_of(poison.check) == "guard band written"


def test_own_allocation_is_stale_between_its_fences() -> None:
    expected = Stale()((12,), torch.float32, torch.device("cpu"))
    with PoisonedAllocations(Stale()) as poison:
        out = torch.empty(4, 3)
        assert torch.equal(out, expected.view(4, 3))
    poison.check()
    poke(out, 12)
    assert symptom_of(poison.check) == "guard band written"


def test_own_allocation_before_its_start() -> None:
    with PoisonedAllocations() as poison:
        poke(torch.empty(5, dtype=torch.int32), -1)
    assert symptom_of(poison.check) == "guard band written"


def test_own_integers_are_absurd() -> None:
    assert INTEGER_POISON < 0, "as a slot it means inactive; a positive one may exist"
    with PoisonedAllocations():
        assert torch.empty(2, dtype=torch.int32).tolist() == [INTEGER_POISON] * 2


def test_allocations_outside_are_left_alone() -> None:
    poison = PoisonedAllocations()
    with poison:
        torch.empty(3)
    before = len(poison._fenced)
    torch.empty(3)
    assert (before, len(poison._fenced)) == (1, 1)


@pytest.mark.parametrize("check_memory", [True, False])
def test_invoke_checks_all_of_it(check_memory: bool) -> None:
    def overruns(x: Tensor) -> Tensor:
        out = torch.empty(3)
        poke(out, 3)
        return out

    arena = Arena("cpu")
    call = Call((arena.place("x", torch.zeros(2)),), {}, arena)
    if check_memory:
        assert symptom_of(lambda: invoke(overruns, call)) == "guard band written"
    else:
        assert invoke(overruns, call, check_memory=False).shape == (3,)


def test_a_subject_that_raises_is_a_finding() -> None:
    def raises() -> None:
        raise KeyError("weights")

    with pytest.raises(Failure, match=r"the subject raised KeyError at .*test_memory.py:\d+: 'weights'") as caught:
        invoke(raises, Call((), {}, Arena("cpu")))
    assert caught.value.symptom == "raised"
    assert "Traceback" in caught.value.details
