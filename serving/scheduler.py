"""Which requests compute how many tokens in the next step, and what happens when slots or pages run out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .prefix_cache import PrefixCache
from .request import Status, Tracked
from .state import PagePool, SlotPool


@dataclass(frozen=True)
class Row:
    """`new` tokens of one request in one step. What it was when the step was planned: a step moves the request on."""

    tracked: Tracked
    is_context: bool
    new: int
    cached: int
    slot: int


class Scheduler:
    """Continuous batching: decodes first claim the budget of tokens, then contexts in the order of their arrival.

    A context longer than what is left of the budget is computed in pieces. When pages run out, the request that arrived
    last gives up what it has, and computes all its tokens anew later: so the oldest always gets on.
    """

    def __init__(
        self,
        *,
        slots: SlotPool,
        pages: PagePool,
        page_size: int,
        max_batch_size: int,
        cache: PrefixCache | None,
        copy_slot: Callable[[int, int], None],
        cut_at_snapshots: bool = True,
    ) -> None:
        self.slots, self.pages, self.page_size = slots, pages, page_size
        self.max_batch_size = max_batch_size
        self.cache, self._copy = cache, copy_slot
        self._cut = cut_at_snapshots and cache is not None
        #: Both in the order of arrival.
        self.waiting: list[Tracked] = []
        self.running: list[Tracked] = []
        self._preempted_now = False

    # -- a step -----------------------------------------------------------------------------------------------------

    def plan(self, budget: int) -> list[Row]:
        """The rows of the next step, contexts first; their slots and pages are theirs. Empty only if nothing waits or runs."""
        self._preempted_now = False
        new: dict[Tracked, int] = {}
        for tracked in sorted(self.running, key=lambda t: (t.is_context, t.arrival)):
            left = budget - sum(new.values())
            if left < 1:
                break
            if tracked.status is Status.RUNNING:
                tokens = self._tokens_of(tracked, left)
                if self._reserve(tracked, tokens, new):
                    new[tracked] = tokens
        # Who has just lost its pages must not take them back from those it lost them to.
        while self.waiting and not self._preempted_now and len(self.running) < self.max_batch_size:
            left = budget - sum(new.values())
            tracked = self.waiting[0]
            if left < 1 or not self._admit(tracked, left):
                break
            new[tracked] = self._tokens_of(tracked, left)
        ordered = sorted(new, key=lambda t: (not t.is_context, t.arrival))
        return [Row(t, t.is_context, new[t], t.computed, _slot_of(t)) for t in ordered]

    def _tokens_of(self, tracked: Tracked, left: int) -> int:
        """How many tokens this request computes next, of so many that are left in the budget."""
        if not tracked.is_context:
            return 1
        end = min(tracked.computed + left, tracked.context_end)
        if self._cut and self.cache is not None:
            # The last token of a context is always computed, so a snapshot behind it helps nobody who asks the same again.
            last = end - 1 if end == tracked.context_end else end
            edge = last // self.cache.interval * self.cache.interval
            if edge > tracked.computed:
                end = edge
        return end - tracked.computed

    # -- slots and pages --------------------------------------------------------------------------------------------

    def _admit(self, tracked: Tracked, left: int) -> bool:
        """Give a waiting request a slot, what the prefix cache knows of its tokens, and the pages of its first piece."""
        hit = self.cache.find(tracked.tokens) if self.cache else None
        if hit is not None:
            hit.pins += 1
        try:
            slot = self._take_slot(tracked)
            if slot is None and hit is not None and not self.running:
                # Nobody will free a slot, and the snapshot that would save some work has the last one.
                hit.pins -= 1
                hit, slot = None, self._take_slot(tracked)
            if slot is None:
                return False
            tracked.slot = slot
            tracked.context_end = tracked.length
            if hit is not None and self.cache is not None:
                tracked.computed = hit.depth * self.cache.interval
                tracked.pages = self.cache.pages_of(hit)
                for page in tracked.pages:
                    self.pages.share(page)
            if not self._grow(tracked, self._tokens_of(tracked, left)):
                self._strip(tracked)
                return False
            if hit is not None and hit.slot is not None:
                self._copy(hit.slot, slot)
        finally:
            if hit is not None:
                hit.pins -= 1
        tracked.status = Status.RUNNING
        self.waiting.remove(tracked)
        _insert(self.running, tracked)
        return True

    def _take_slot(self, tracked: Tracked) -> int | None:
        slot = self.slots.take(_owner(tracked))
        if slot is None and self.cache is not None and self.cache.drop_snapshot():
            slot = self.slots.take(_owner(tracked))
        return slot

    def _grow(self, tracked: Tracked, tokens: int) -> bool:
        """Pages for so many more tokens, from the pool or from the prefix cache; what was got is kept if it is too little."""
        for _ in range(tracked.pages_for(tracked.computed + tokens, self.page_size)):
            page = self.pages.take()
            if page is None and self.cache is not None and self.cache.drop_pages():
                page = self.pages.take()
            if page is None:
                return False
            tracked.pages.append(page)
        return True

    def _reserve(self, tracked: Tracked, tokens: int, new: dict[Tracked, int]) -> bool:
        """Pages for a running request, if need be from those that came last; False where it came last itself."""
        while not self._grow(tracked, tokens):
            victim = self.running[-1]
            new.pop(victim, None)
            self.preempt(victim)
            if victim is tracked:
                return False
        return True

    def _strip(self, tracked: Tracked) -> None:
        """Take back all that a request owns."""
        if tracked.slot is not None:
            self.slots.give(tracked.slot, _owner(tracked))
            tracked.slot = None
        for page in tracked.pages:
            self.pages.release(page)
        tracked.pages = []
        tracked.computed = 0

    # -- comings and goings -----------------------------------------------------------------------------------------

    def add(self, tracked: Tracked) -> None:
        _insert(self.waiting, tracked)

    def preempt(self, tracked: Tracked) -> None:
        """Back to the waiting ones, to compute everything anew, its answer so far included."""
        self._strip(tracked)
        self.running.remove(tracked)
        tracked.status = Status.PREEMPTED
        _insert(self.waiting, tracked)
        self._preempted_now = True

    def finish(self, tracked: Tracked, reason: str) -> None:
        """The end of a request, wherever it is."""
        self._strip(tracked)
        (self.running if tracked.status is Status.RUNNING else self.waiting).remove(tracked)
        tracked.status, tracked.reason = Status.FINISHED, reason

    def computed(self, row: Row) -> None:
        """The step of this row is done: a piece that ends at a snapshot's place leaves one."""
        tracked = row.tracked
        tracked.computed += row.new
        if self.cache is not None and row.is_context and tracked.computed % self.cache.interval == 0:
            self.cache.insert(tracked.tokens[: tracked.computed], tracked.pages, _slot_of(tracked))


def _insert(queue: list[Tracked], tracked: Tracked) -> None:
    queue.append(tracked)
    queue.sort(key=lambda t: t.arrival)


def _owner(tracked: Tracked) -> str:
    return f"request {tracked.id}"


def _slot_of(tracked: Tracked) -> int:
    if tracked.slot is None:
        raise RuntimeError(f"request {tracked.id}: in a step without a slot")
    return tracked.slot
