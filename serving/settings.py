"""How large an engine is, and what it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EngineSettings:
    """Sizes and switches.

    Attributes:
        slots, pages, page_size: of the pools; slots are shared by requests and snapshots.
        max_batch_size: most requests that run at once. max_tokens: most tokens in a step; the budget is no larger.
        max_length: most tokens of a request, its answer included.
        token_budget: tokens of a step, at first; None: `max_tokens`.
        graph_sizes: a step of decodes alone is padded to the smallest of these that holds it. graphs: "off"; "cuda": one
            graph a size, captured when it is first needed; "emulated": the same buffers and the same replay with a plain
            call in place of the graph, so that a CPU meets what a stale buffer does.
        snapshot_interval: tokens between the places where a prefix may be remembered; 0: no prefix cache.
        hash_bits: of a prefix's key; few of them make different prefixes collide, as they do once in an age with all.
        cut_at_snapshots: whether a context is cut where a snapshot can be taken.
        slot_seed: None takes what was freed last; a number draws among the free.
        state_dtype: of the delta rule's states.
        record_logits: keep the logits of every token, on the CPU. check: prove after every step that no slot or page is lost.
    """

    slots: int
    pages: int
    page_size: int
    max_batch_size: int
    max_tokens: int
    max_length: int
    token_budget: int | None = None
    graph_sizes: tuple[int, ...] = ()
    graphs: str = "off"
    snapshot_interval: int = 0
    hash_bits: int = 64
    cut_at_snapshots: bool = True
    slot_seed: int | None = None
    state_dtype: torch.dtype = torch.float32
    record_logits: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        for name in ("slots", "pages", "page_size", "max_batch_size", "max_tokens", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.graphs not in ("off", "emulated", "cuda"):
            raise ValueError(f'graphs: got {self.graphs!r}, expected "off", "emulated" or "cuda"')
        if self.graphs != "off" and not self.graph_sizes:
            raise ValueError("graph_sizes: got none, expected the numbers of rows that a graph is made for")
        if list(self.graph_sizes) != sorted(set(self.graph_sizes)) or any(size < 1 for size in self.graph_sizes):
            raise ValueError(f"graph_sizes: got {self.graph_sizes}, expected rising numbers from 1")

    @property
    def pages_a_request(self) -> int:
        return -(-self.max_length // self.page_size)

    @property
    def max_rows(self) -> int:
        """Requests and padding."""
        return max(self.max_batch_size, *self.graph_sizes, 0)

    def padded(self, decodes: int) -> int:
        """Rows of a step of so many decodes; more than the largest size stay as they are."""
        return next((size for size in self.graph_sizes if size >= decodes), decodes)
