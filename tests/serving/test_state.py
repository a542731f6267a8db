"""Pools refuse what is not theirs, and the check of accounts sees each way in which they may be wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.state import Ownership, OwnershipError, PagePool, SlotPool, check

RIGHT = Ownership(
    slots=3,
    free_slots=(2,),
    slot_of={"request 0": 0, "snapshot 1": 1},
    pages=4,
    free_pages=(3,),
    references=(1, 2, 1, 0),
    pages_of={"request 0": (0, 1), "snapshot 1": (1, 2)},
    page_size=4,
    tokens={"request 0": 8},
)


def test_right_accounts_have_no_findings() -> None:
    assert check(RIGHT) == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"free_slots": ()}, "slot 2: leaked, neither free nor owned"),
        ({"free_slots": (2, 2)}, "slot 2: 2 times in the free list"),
        ({"free_slots": (2, 0)}, "slot 0: free, yet request 0 has it"),
        ({"slot_of": {"request 0": 0, "snapshot 1": 0}}, "slot 0: shared by request 0 and snapshot 1"),
        ({"slot_of": {"request 0": 0, "snapshot 1": 1, "request 2": 7}}, "slot 7: there are 3"),
        ({"free_pages": ()}, "page 3: leaked, neither free nor owned"),
        ({"free_pages": (3, 3)}, "page 3: 2 times in the free list"),
        ({"free_pages": (3, 0)}, "page 0: free, yet request 0 has it"),
        ({"references": (1, 1, 1, 0)}, "page 1: 1 owners counted, but it is owned by request 0 and snapshot 1"),
        ({"references": (1, 2, 1, 1)}, "page 3: 1 owners counted, but it is owned by nobody"),
        ({"pages_of": {"request 0": (0, 0), "snapshot 1": (1, 2)}}, "page 0: twice in the table of request 0"),
        ({"tokens": {"request 0": 9}}, "request 0: 9 tokens in 2 pages of 4, expected 3"),
    ],
)
def test_each_breach_is_named(change: dict[str, object], finding: str) -> None:
    assert finding in check(replace(RIGHT, **change))  # type: ignore[arg-type]


def test_what_was_freed_last_is_taken_first() -> None:
    pool = SlotPool(3)
    first, second = pool.take("a"), pool.take("b")
    assert (first, second) == (0, 1)
    pool.give(0, "a")
    assert pool.take("c") == 0
    assert pool.take("d") == 2
    assert pool.take("e") is None


def test_a_seed_draws_among_the_free() -> None:
    orders = {tuple(SlotPool(8, seed).take(str(i)) for i in range(1)) for seed in range(40)}
    assert len(orders) > 3
    assert SlotPool(8, 1).take("a") == SlotPool(8, 1).take("a")


def test_a_slot_is_given_back_once_and_by_its_owner() -> None:
    pool = SlotPool(2)
    pool.take("request 0")
    with pytest.raises(OwnershipError, match="slot 0: request 1 gives it back, but it belongs to request 0"):
        pool.give(0, "request 1")
    pool.give(0, "request 0")
    with pytest.raises(OwnershipError, match="belongs to nobody"):
        pool.give(0, "request 0")


def test_a_shared_page_is_free_when_its_last_owner_leaves() -> None:
    pool = PagePool(1)
    assert pool.take() == 0
    pool.share(0)
    pool.release(0)
    assert pool.take() is None
    pool.release(0)
    with pytest.raises(OwnershipError, match="page 0: released, but it is free already"):
        pool.release(0)
    with pytest.raises(OwnershipError, match="page 0: to be shared, but it is free"):
        pool.share(0)
    assert pool.take() == 0
