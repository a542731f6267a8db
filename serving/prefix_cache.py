"""Prefixes that were computed before: their pages, shared, and snapshots of the state at their ends.

A tree of blocks of `interval` tokens. A block is found by a hash of its tokens chained to its parent's, and believed only
if the tokens are the same. Attention could go on from any block; the delta rule needs the state at its end, which is only
there where a chunk of some request ended: those blocks have a snapshot, a slot of the same pool as the requests'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .state import PagePool, SlotPool

Block = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """A block behind its parent's. `pages` hold its keys and values; `slot`, if there is one, the state at its end.

    used: when it was last met. pins: how many are restoring from it; it must not go away.
    """

    number: int
    parent: Node | None
    key: int
    tokens: Block
    pages: tuple[int, ...]
    depth: int
    slot: int | None = None
    used: int = 0
    pins: int = 0
    children: set[int] = field(default_factory=set)

    @property
    def owner(self) -> str:
        return f"snapshot {self.number}"


class PrefixCache:
    """Raises ValueError where `interval` is not a multiple of the page size and of the kernels' chunk size."""

    def __init__(
        self,
        interval: int,
        page_size: int,
        chunk_size: int,
        slots: SlotPool,
        pages: PagePool,
        copy_slot: Callable[[int, int], None],
        hash_bits: int = 64,
    ) -> None:
        if interval < 1 or interval % page_size or interval % chunk_size:
            raise ValueError(
                f"snapshot_interval: got {interval}, expected a multiple of the page size {page_size} and of the"
                f" kernels' chunk size {chunk_size}: pages are shared whole, and only there may a prompt be cut"
            )
        self.interval = interval
        self.page_size = page_size
        self._slots, self._pages, self._copy = slots, pages, copy_slot
        self._mask = 2**hash_bits - 1
        self._nodes: dict[int, Node] = {}
        self._clock = 0
        self._made = 0

    # -- finding ----------------------------------------------------------------------------------------------------

    def find(self, tokens: Sequence[int]) -> Node | None:
        """The longest prefix of `tokens` with a snapshot that leaves at least one token to compute: its logits are wanted."""
        best = None
        for node in self._walk(tokens, len(tokens) - 1):
            if node.slot is not None:
                best = node
        return best

    def path(self, node: Node) -> list[Node]:
        """From the first block to this one."""
        found = [node]
        while found[-1].parent is not None:
            found.append(found[-1].parent)
        return found[::-1]

    def pages_of(self, node: Node) -> list[int]:
        return [page for block in self.path(node) for page in block.pages]

    def _walk(self, tokens: Sequence[int], most: int) -> Iterator[Node]:
        parent: Node | None = None
        for start in range(0, most - self.interval + 1, self.interval):
            block = tuple(tokens[start : start + self.interval])
            node = self._nodes.get(self._key(parent, block))
            # Another prefix may have the same hash: the tokens decide, and so does what came before them.
            if node is None or node.tokens != block or node.parent is not parent:
                return
            self._clock += 1
            node.used = self._clock
            yield node
            parent = node

    def _key(self, parent: Node | None, block: Block) -> int:
        return hash((0 if parent is None else parent.key, block)) & self._mask

    # -- filling ----------------------------------------------------------------------------------------------------

    def insert(self, tokens: Sequence[int], pages: Sequence[int], slot: int) -> None:
        """Remember this prefix, whose state is in `slot` now. Its length is a multiple of the interval.

        Blocks that are known keep their pages. Without a free slot the oldest snapshot makes room; where none may, or where
        another prefix has the hash, nothing is remembered.
        """
        known = list(self._walk(tokens, len(tokens)))
        for node in known:
            node.pins += 1
        try:
            end = known[-1] if known else None
            for depth in range(len(known), len(tokens) // self.interval):
                block = tuple(tokens[depth * self.interval : (depth + 1) * self.interval])
                key = self._key(end, block)
                if key in self._nodes:
                    return
                per_block = self.interval // self.page_size
                end = self._add(end, key, block, tuple(pages[depth * per_block : (depth + 1) * per_block]), depth + 1)
                end.pins += 1
                known.append(end)
            if end is None or end.slot is not None:
                return
            if not self._slots.free:
                self.drop_snapshot()
            end.slot = self._slots.take(end.owner)
            if end.slot is not None:
                self._copy(slot, end.slot)
        finally:
            for node in known:
                node.pins -= 1
            if known:
                self._prune(known[-1])

    def _add(self, parent: Node | None, key: int, block: Block, pages: tuple[int, ...], depth: int) -> Node:
        self._made += 1
        self._clock += 1
        node = Node(self._made, parent, key, block, pages, depth, used=self._clock)
        for page in pages:
            self._pages.share(page)
        self._nodes[key] = node
        if parent is not None:
            parent.children.add(key)
        return node

    # -- emptying ---------------------------------------------------------------------------------------------------

    def drop_snapshot(self) -> bool:
        """Give the slot of the least recently used snapshot back; False when there is none that may go."""
        candidates = [node for node in self._nodes.values() if node.slot is not None and not node.pins]
        if not candidates:
            return False
        oldest = min(candidates, key=lambda node: node.used)
        self._drop(oldest)
        self._prune(oldest)
        return True

    def drop_pages(self) -> bool:
        """Forget least recently used prefixes until a page is free; False when none that may go frees one."""
        while not self._pages.free:
            leaves = [node for node in self._nodes.values() if not node.children and not node.pins]
            if not leaves:
                return False
            self._remove(min(leaves, key=lambda node: node.used))
        return True

    def clear(self) -> None:
        """Forget everything that is not in use."""
        for node in sorted(self._nodes.values(), key=lambda node: -node.depth):
            if not node.children and not node.pins:
                self._remove(node)

    def _drop(self, node: Node) -> None:
        if node.slot is not None:
            self._slots.give(node.slot, node.owner)
            node.slot = None

    def _remove(self, node: Node) -> None:
        self._drop(node)
        for page in node.pages:
            self._pages.release(page)
        del self._nodes[node.key]
        if node.parent is not None:
            node.parent.children.discard(node.key)

    def _prune(self, node: Node | None) -> None:
        """From this block up: those that lead to no snapshot are of no use."""
        while node is not None and node.slot is None and not node.children and not node.pins:
            self._remove(node)
            node = node.parent

    def owned(self) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
        """Owner to slot, and owner to pages."""
        nodes = self._nodes.values()
        return {n.owner: n.slot for n in nodes if n.slot is not None}, {n.owner: n.pages for n in nodes}
