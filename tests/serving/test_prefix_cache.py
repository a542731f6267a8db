"""What is remembered, what is found again, and what goes when room is needed."""

from __future__ import annotations

import pytest

from serving.prefix_cache import PrefixCache
from serving.state import PagePool, SlotPool


class Pools:
    """A cache over pools of its own. Pages of two tokens, blocks of four; copies of slots are written down."""

    def __init__(self, slots: int = 4, pages: int = 12, hash_bits: int = 64) -> None:
        self.slots, self.pages = SlotPool(slots), PagePool(pages)
        self.copies: list[tuple[int, int]] = []
        self.cache = PrefixCache(
            4, 2, 4, self.slots, self.pages, lambda a, b: self.copies.append((a, b)), hash_bits=hash_bits
        )

    def remember(self, tokens: range | list[int]) -> None:
        """As a request does that computes this prefix and ends."""
        slot = self.slots.take("request")
        assert slot is not None
        pages = [self.pages.take() for _ in range(len(tokens) // 2)]
        assert None not in pages
        self.cache.insert(list(tokens), [p for p in pages if p is not None], slot)
        for page in pages:
            self.pages.release(page)  # type: ignore[arg-type]
        self.slots.give(slot, "request")

    def known(self, tokens: range | list[int]) -> int:
        node = self.cache.find(list(tokens))
        return 0 if node is None else node.depth * 4


def test_the_longest_prefix_with_a_snapshot_is_found() -> None:
    pools = Pools()
    pools.remember(range(4))
    pools.remember(range(8))
    assert pools.known(range(20)) == 8
    assert pools.known(range(7)) == 4
    assert pools.known([*range(4), 9, 9, 9, 9, 9]) == 4
    assert pools.known([9, *range(1, 20)]) == 0


@pytest.mark.parametrize(("length", "known"), [(8, 4), (9, 8), (4, 0), (5, 4)])
def test_the_last_token_is_left_to_compute(length: int, known: int) -> None:
    pools = Pools()
    pools.remember(range(4))
    pools.remember(range(8))
    assert pools.known(range(length)) == known


def test_a_block_without_a_snapshot_is_passed_but_not_stopped_at() -> None:
    pools = Pools()
    pools.remember(range(8))
    assert pools.known(range(7)) == 0
    assert pools.known(range(9)) == 8
    node = pools.cache.find(list(range(9)))
    assert node is not None
    assert pools.cache.pages_of(node) == [0, 1, 2, 3]


def test_the_state_is_copied_to_a_slot_of_its_own() -> None:
    pools = Pools()
    pools.remember(range(4))
    assert pools.copies == [(0, 1)]
    pools.remember(range(4))
    assert pools.copies == [(0, 1)], "what is known is not copied again"


def test_the_least_recently_used_snapshot_goes_first() -> None:
    pools = Pools()
    pools.remember([1] * 4)
    pools.remember([2] * 4)
    assert pools.known([1] * 5) == 4
    assert pools.cache.drop_snapshot()
    assert (pools.known([1] * 5), pools.known([2] * 5)) == (4, 0)


def test_what_is_being_restored_stays() -> None:
    pools = Pools()
    pools.remember([1] * 4)
    node = pools.cache.find([1] * 5)
    assert node is not None
    node.pins += 1
    assert not pools.cache.drop_snapshot()
    assert not pools.cache.drop_pages() or pools.pages.free
    pools.cache.clear()
    assert pools.known([1] * 5) == 4
    node.pins -= 1
    assert pools.cache.drop_snapshot()
    assert pools.pages.references == [0] * 12


def test_pages_are_freed_from_the_ends_of_prefixes() -> None:
    pools = Pools(pages=4)
    pools.remember(range(4))
    pools.remember([*range(4)])
    slot = pools.slots.take("request")
    assert slot is not None
    held = [pools.pages.take(), pools.pages.take()]
    assert None not in held
    assert pools.pages.take() is None
    assert pools.cache.drop_pages()
    assert pools.known(range(5)) == 0
    assert len(pools.pages.free) == 2


def test_two_prefixes_of_one_hash_are_not_taken_for_each_other() -> None:
    pools = Pools(hash_bits=0)
    pools.remember([1] * 4)
    pools.remember([2] * 4)
    assert (pools.known([1] * 5), pools.known([2] * 5)) == (4, 0)
    assert sum(pools.pages.references) == 2


@pytest.mark.parametrize(("interval", "page", "chunk"), [(6, 4, 2), (4, 2, 8), (0, 1, 1)])
def test_an_interval_that_cuts_pages_or_chunks_is_refused(interval: int, page: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="snapshot_interval: got"):
        PrefixCache(interval, page, chunk, SlotPool(1), PagePool(1), lambda a, b: None)
