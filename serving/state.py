"""Who owns which slot and which page, and the proof after a step that nothing was lost or given away twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


class OwnershipError(RuntimeError):
    """Something was freed twice, or by somebody who does not own it."""


class SlotPool:
    """A fixed number of state slots, each owned by one request or one snapshot, or free.

    What was freed last is taken first (or any, by `seed`): whoever gets a slot meets the state of its last owner, so a
    request that trusts it is noticed soon.
    """

    def __init__(self, count: int, seed: int | None = None) -> None:
        self.count = count
        self.free = list(range(count - 1, -1, -1))
        self.owners: dict[int, str] = {}
        self._random = None if seed is None else random.Random(seed)

    def take(self, owner: str) -> int | None:
        """A slot for this owner; None when all are taken."""
        if not self.free:
            return None
        slot = self.free.pop(-1 if self._random is None else self._random.randrange(len(self.free)))
        self.owners[slot] = owner
        return slot

    def give(self, slot: int, owner: str) -> None:
        """Back into the pool. Raises `OwnershipError` unless it is this owner's."""
        found = self.owners.get(slot)
        if found != owner:
            raise OwnershipError(f"slot {slot}: {owner} gives it back, but it belongs to {found or 'nobody'}")
        del self.owners[slot]
        self.free.append(slot)


class PagePool:
    """Pages of keys and values. A page that the prefix cache shares has several owners; the last one to release it frees it."""

    def __init__(self, count: int, seed: int | None = None) -> None:
        self.count = count
        self.free = list(range(count - 1, -1, -1))
        self.references = [0] * count
        self._random = None if seed is None else random.Random(seed)

    def take(self) -> int | None:
        """A page with one owner; None when all are taken."""
        if not self.free:
            return None
        page = self.free.pop(-1 if self._random is None else self._random.randrange(len(self.free)))
        self.references[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more owner. Raises `OwnershipError` for a free page."""
        if self.references[page] < 1:
            raise OwnershipError(f"page {page}: to be shared, but it is free")
        self.references[page] += 1

    def release(self, page: int) -> None:
        """One owner less. Raises `OwnershipError` for a free page."""
        if self.references[page] < 1:
            raise OwnershipError(f"page {page}: released, but it is free already")
        self.references[page] -= 1
        if self.references[page] == 0:
            self.free.append(page)


@dataclass(frozen=True)
class Ownership:
    """Who says to own what, at one moment: copies, so that it can be looked at later.

    Attributes:
        slots, pages: how many there are. free_slots, free_pages: those that the pools would give away.
        slot_of: owner ("request 3", "snapshot 7") to its slot. pages_of: owner to its pages.
        references: how many owners the pool counts for each page.
        page_size, tokens: how many tokens each request has in its pages.
    """

    slots: int
    free_slots: tuple[int, ...]
    slot_of: Mapping[str, int]
    pages: int
    free_pages: tuple[int, ...]
    references: tuple[int, ...]
    pages_of: Mapping[str, tuple[int, ...]]
    page_size: int
    tokens: Mapping[str, int]


def check(ownership: Ownership) -> list[str]:
    """Every breach of: a slot or page is free once or owned; a slot by one owner, a page by as many as the pool counts."""
    if _balanced(ownership):
        return []
    return [*_check_slots(ownership), *_check_pages(ownership), *_check_lengths(ownership)]


def _balanced(of: Ownership) -> bool:
    """The same in few words: yes or no, for every step."""
    owned = Counter(page for pages in of.pages_of.values() for page in pages)
    return (
        sorted([*of.free_slots, *of.slot_of.values()]) == list(range(of.slots))
        and sorted([*of.free_pages, *owned]) == list(range(of.pages))
        and all(owned[page] == count for page, count in enumerate(of.references))
        and all(len(set(pages)) == len(pages) for pages in of.pages_of.values())
        and not _check_lengths(of)
    )


def _check_slots(of: Ownership) -> list[str]:
    found = []
    owners: dict[int, list[str]] = {}
    for owner, slot in of.slot_of.items():
        owners.setdefault(slot, []).append(owner)
    free = Counter(of.free_slots)
    for slot in sorted({*range(of.slots), *owners, *free}):
        names = owners.get(slot, [])
        if not 0 <= slot < of.slots:
            found.append(f"slot {slot}: there are {of.slots}")
        if len(names) > 1:
            found.append(f"slot {slot}: shared by {' and '.join(sorted(names))}")
        if names and free[slot]:
            found.append(f"slot {slot}: free, yet {names[0]} has it")
        if free[slot] > 1:
            found.append(f"slot {slot}: {free[slot]} times in the free list")
        if not names and not free[slot]:
            found.append(f"slot {slot}: leaked, neither free nor owned")
    return found


def _check_pages(of: Ownership) -> list[str]:
    found = []
    owners: dict[int, list[str]] = {}
    for owner, pages in of.pages_of.items():
        for page in pages:
            owners.setdefault(page, []).append(owner)
        twice = [page for page, count in Counter(pages).items() if count > 1]
        found += [f"page {page}: twice in the table of {owner}" for page in twice]
    free = Counter(of.free_pages)
    for page in sorted({*range(of.pages), *owners, *free}):
        names = owners.get(page, [])
        if not 0 <= page < of.pages:
            found.append(f"page {page}: there are {of.pages}")
            continue
        if of.references[page] != len(names):
            said = " and ".join(sorted(names)) or "nobody"
            found.append(f"page {page}: {of.references[page]} owners counted, but it is owned by {said}")
        if free[page] > 1:
            found.append(f"page {page}: {free[page]} times in the free list")
        if bool(free[page]) == bool(names):
            found.append(
                f"page {page}: " + (f"free, yet {names[0]} has it" if names else "leaked, neither free nor owned")
            )
    return found


def _check_lengths(of: Ownership) -> list[str]:
    found = []
    for owner, tokens in of.tokens.items():
        want, have = -(-tokens // of.page_size), len(of.pages_of.get(owner, ()))
        if have < want:
            found.append(f"{owner}: {tokens} tokens in {have} pages of {of.page_size}, expected {want}")
    return found
