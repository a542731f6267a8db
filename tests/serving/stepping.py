"""Steps formed by hand: what an engine would do, without its decisions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from references import step_metadata
from serving.batch import StepBatch
from serving.caches import Caches
from serving.model import HybridModel

#: Beyond a request's own pages, tables hold this page: whoever reads it reads NaN.
NOT_OWNED = 0


@dataclass
class Request:
    """A request's tokens so far are those that the caches hold; `pages` must be enough for all that will come."""

    slot: int
    pages: list[int]
    tokens: list[int] = field(default_factory=list)


@dataclass
class Piece:
    """New tokens of a request in one step: as a context, or as one decode."""

    request: Request
    tokens: list[int]
    context: bool = True


class Stepper:
    """A model, its caches, and steps of any composition."""

    def __init__(
        self,
        model: HybridModel,
        *,
        slots: int = 8,
        pages: int = 64,
        page_size: int = 4,
        state_dtype: torch.dtype | None = None,
        builder=step_metadata,
    ) -> None:
        self.model = model
        # Page 0 belongs to nobody.
        self.caches = Caches.allocate(
            model.config,
            slots=slots,
            pages=pages + 1,
            page_size=page_size,
            dtype=model.dtype,
            state_dtype=state_dtype or model.dtype,
            device=model.device,
        )
        self.page_size = page_size
        self.builder = builder(64, 64, model.device)
        self.free = list(range(1, pages + 1))

    def request(self, slot: int, most_tokens: int) -> Request:
        count = -(-most_tokens // self.page_size)
        pages, self.free = self.free[:count], self.free[count:]
        return Request(slot, pages)

    def batch(self, pieces: list[Piece], padding: int = 0, spare: int = 0, all_logits: bool = True) -> StepBatch:
        """Contexts first; `padding` rows at the end, `spare` more pages in the tables than anybody needs."""
        pieces = sorted(pieces, key=lambda piece: not piece.context)
        contexts = [piece for piece in pieces if piece.context]
        device = self.model.device
        cached = [len(piece.request.tokens) for piece in pieces]
        metadata = self.builder.prepare(
            seq_lens=[len(piece.tokens) for piece in pieces] + [1] * padding,
            num_contexts=len(contexts),
            num_cached_tokens=cached + [0] * padding,
            state_slots=[piece.request.slot for piece in pieces] + [-1] * padding,
        )
        positions = [before + i for piece, before in zip(pieces, cached, strict=True) for i in range(len(piece.tokens))]
        owners = [piece.request for piece in pieces for _ in piece.tokens]
        size = self.page_size
        slots = [r.pages[at // size] * size + at % size for r, at in zip(owners, positions, strict=True)]
        lengths = [before + len(piece.tokens) for piece, before in zip(pieces, cached, strict=True)]
        widest = max([len(piece.request.pages) for piece in pieces], default=0) + spare
        tables = [piece.request.pages + [NOT_OWNED] * (widest - len(piece.request.pages)) for piece in pieces]
        tables += [[NOT_OWNED] * widest] * padding
        flat = [token for piece in pieces for token in piece.tokens] + [0] * padding

        def ints(values: list, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return StepBatch(
            tokens=ints(flat),
            positions=ints(positions + [0] * padding),
            metadata=metadata,
            num_contexts=len(contexts),
            context_lens=[len(piece.tokens) for piece in contexts],
            write_slots=ints(slots + [-1] * padding),
            page_tables=ints(tables, torch.int32).reshape(len(pieces) + padding, widest),
            lengths=ints(lengths + [0] * padding, torch.int32),
            max_length=max(lengths, default=0) + spare * size,
            logit_rows=torch.arange(len(positions), device=device),
        )

    def step(self, pieces: list[Piece], padding: int = 0, spare: int = 0) -> list[Tensor]:
        """Run one step; logits [new tokens, vocab] of each piece, in the order given."""
        ordered = sorted(pieces, key=lambda piece: not piece.context)
        logits = self.model(self.batch(pieces, padding, spare), self.caches)
        parts = dict(zip(map(id, ordered), logits.split([len(piece.tokens) for piece in ordered]), strict=True))
        for piece in pieces:
            piece.request.tokens += piece.tokens
        return [parts[id(piece)] for piece in pieces]

    def run(self, request: Request, tokens: list[int], lengths: list[int], decode: bool = False) -> Tensor:
        """A request's tokens in pieces of these lengths, alone; logits [tokens, vocab]."""
        found, begin = [], 0
        for length in lengths:
            piece = Piece(request, tokens[begin : begin + length], context=not decode)
            found += self.step([piece])
            begin += length
        return torch.cat(found)
