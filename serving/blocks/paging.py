"""Where a step's keys and values go and where they are read from: worked out once, used by every attention layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from serving.batch import StepBatch


@dataclass(frozen=True)
class ContextRow:
    """One context: its tokens in the step, how many tokens the request then has, and the places [length] that hold them."""

    tokens: slice
    length: int
    places: Tensor


@dataclass(frozen=True)
class Paging:
    """A place is page x page size + offset, an index into a pool whose pages are laid end to end.

    Attributes:
        source: int64 [T], which token's keys are written by this token.
        target: int64 [T], the place that it writes to.
        written: bool [T], false where there is nothing to write at all.
        contexts: the contexts, in order.
        decode_places: int64 [decodes, most tokens], places of the request's tokens; where `decode_mask` is false, any.
        decode_mask: bool, likewise, whether there is such a token.
    """

    source: Tensor
    target: Tensor
    written: Tensor
    contexts: list[ContextRow]
    decode_places: Tensor
    decode_mask: Tensor

    @classmethod
    def of(cls, batch: StepBatch, page_size: int) -> Paging:
        """Reads lengths back to the host if there are contexts; a step of decodes alone never waits for the device."""
        source, target, written = writes(batch.write_slots)
        places, mask = decode_reads(batch, page_size)
        return cls(source, target, written, context_rows(batch, page_size), places, mask)

    def store(self, pool: Tensor, tokens: Tensor) -> None:
        """Write tokens [T, kv heads, head dim] to their places in pool [pages, page size, kv heads, head dim]."""
        if tokens.shape[0] == 0:
            return
        places = pool.view(-1, *pool.shape[2:])
        kept = places[self.target]
        places[self.target] = torch.where(self.written[:, None, None], tokens[self.source].to(pool.dtype), kept)


def writes(write_slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(source, target, written), see `Paging`.

    A padding row must not write, and the host does not know which rows these are. So each repeats the write of the first real
    row: the same bits to the same place. If there is none, all write what place 0 holds.
    """
    tokens = torch.arange(write_slots.shape[0], device=write_slots.device)
    if write_slots.shape[0] == 0:
        return tokens, write_slots, write_slots >= 0
    real = write_slots >= 0
    source = torch.where(real, tokens, real.int().argmax())
    target = write_slots[source]
    return source, target.clamp(min=0), target >= 0


def decode_reads(batch: StepBatch, page_size: int) -> tuple[Tensor, Tensor]:
    """(places, mask) of the decodes, as wide as `max_length`. Page table entries beyond a row's length are never used."""
    first = batch.num_contexts
    lengths = batch.lengths[first:, None].long()
    pages = -(-batch.max_length // page_size)
    tables = batch.page_tables[first:, :pages]
    position = torch.arange(tables.shape[1] * page_size, device=tables.device)
    mask = position < lengths
    places = tables.long().repeat_interleave(page_size, dim=1) * page_size + position % page_size
    return torch.where(mask, places, 0), mask


def context_rows(batch: StepBatch, page_size: int) -> list[ContextRow]:
    rows: list[ContextRow] = []
    if not batch.num_contexts:
        return rows
    begin = 0
    lengths = batch.lengths[: batch.num_contexts].tolist()
    for row, (new, length) in enumerate(zip(batch.context_lens, lengths, strict=True)):
        position = torch.arange(length, device=batch.page_tables.device)
        places = batch.page_tables[row].long()[position // page_size] * page_size + position % page_size
        rows.append(ContextRow(slice(begin, begin + new), length, places))
        begin += new
    return rows
