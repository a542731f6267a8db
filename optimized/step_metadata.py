"""What every layer of a model step must know about the packed batch, rebuilt each step in buffers that never move.

All fields of a step live in one int32 buffer on the device at fixed offsets, so that their addresses hold from step to
step (a CUDA graph may keep them) and one asynchronous copy brings a whole step over.  The host fills a pinned staging
buffer with numpy; a small ring of those, each guarded by a CUDA event, keeps a copy in flight from being overwritten.
On the CPU the host fills the buffer itself.

Every field is rewritten in every step, whatever the batch is made of: a flag left over from the previous step would let
a fresh sequence read the state of the slot's previous owner.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from . import checks

_RING = 3
_ALIGN = 32  # words: every field starts on 128 bytes, whatever vector width its readers use
_INT32 = np.iinfo(np.int32)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StepMetadata:
    """One step of B rows, contexts first.  Views of the builder's buffer, valid until its next ``prepare``.

    Attributes:
        query_start_loc: int32 [B + 1], cumulative row lengths.
        has_initial_state: bool [B], whether row i continues a state: ``num_cached_tokens[i] > 0``.
        state_indices: int32 [B], slot of row i; negative for padding rows.
        seq_idx: int32 [context tokens], the row that owns each context token.
        chunk_indices: int32 [M], logical chunks of the context rows; None when no context row has an initial state.
        chunk_offsets: int32 [M], likewise.
    """

    query_start_loc: torch.Tensor
    has_initial_state: torch.Tensor
    state_indices: torch.Tensor
    seq_idx: torch.Tensor
    chunk_indices: torch.Tensor | None
    chunk_offsets: torch.Tensor | None


def step_metadata(
    max_batch_size: int, chunk_size: int, device: torch.device | str, *, max_num_tokens: int = 32768
) -> StepMetadataBuilder:
    """A builder for the steps of one engine; its ``prepare`` makes the metadata of one step.

    Args:
        max_batch_size: most rows (contexts, decodes and padding) that a step may have.
        chunk_size: C, tokens in a physical chunk.
        device: where the metadata is wanted.
        max_num_tokens: most tokens that a step may have, contexts and decodes together.

    Raises:
        ValueError: a size that is not an integer, is too small, or does not fit int32.
    """
    return StepMetadataBuilder(max_batch_size, chunk_size, torch.device(device), max_num_tokens)


class StepMetadataBuilder:
    """Owns the buffers.  ``prepare`` belongs on the stream that the step's kernels run on, outside graph capture."""

    def __init__(self, max_batch_size: int, chunk_size: int, device: torch.device, max_num_tokens: int) -> None:
        least = {"max_batch_size": 0, "chunk_size": 1, "max_num_tokens": 0}
        values = (max_batch_size, chunk_size, max_num_tokens)
        for (name, minimum), value in zip(least.items(), values, strict=True):
            checks.check_int(name, value, minimum)
            if value > _INT32.max:
                raise checks.fail(name, value, f"at most {_INT32.max}", "the fields are int32")
        self.max_batch_size = max_batch_size
        self.chunk_size = chunk_size
        self.max_num_tokens = max_num_tokens
        self.device = device
        max_chunks = -(-max_num_tokens // chunk_size) + max_batch_size
        layout = _Layout(max_batch_size, max_chunks, max_num_tokens)
        self._device_fields = _Fields(torch.zeros(layout.words, dtype=torch.int32, device=device), layout, torch.bool)
        if device.type == "cuda":
            self._ring = [_Staging(layout) for _ in range(_RING)]
        else:
            self._host_fields = _Fields(self._device_fields.words.numpy(), layout, np.bool_)
        self._turn = 0
        self._views_of_rows: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._count = np.arange(max(max_batch_size, max_chunks) + 1, dtype=np.int32)

    def prepare(
        self,
        *,
        seq_lens: Sequence[int],
        num_contexts: int,
        num_cached_tokens: Sequence[int],
        state_slots: Sequence[int],
    ) -> StepMetadata:
        """The metadata of a step whose row i has ``seq_lens[i]`` new tokens after ``num_cached_tokens[i]`` old ones.

        Host work O(B + context tokens); no host sync (it waits for its own copy of three steps ago at most).

        Args:
            seq_lens: B lengths >= 0, in the order of the packed tokens.
            num_contexts: how many of the first rows are contexts; the others are decodes or padding.
            num_cached_tokens: B counts >= 0.
            state_slots: B slots, negative for padding rows.

        Raises:
            ValueError: lists that are not B integers, more rows or tokens than the builder has room for, num_contexts
                outside 0..B, negative lengths or counts; with ``SLUICEGATE_STRICT=1`` also a slot in two active rows.
                The buffers of the previous step are then untouched.
        """
        step, ends = self._check(seq_lens, num_contexts, num_cached_tokens, state_slots)
        if self.device.type == "cuda":
            staging = self._ring[self._turn]
            self._turn = (self._turn + 1) % _RING
            staging.wait()
            context_tokens, num_chunks = self._fill(staging.fields, num_contexts, step, ends)
            staging.send(self._device_fields, context_tokens)
        else:
            context_tokens, num_chunks = self._fill(self._host_fields, num_contexts, step, ends)
        fields = self._device_fields
        query_start_loc, has_initial_state, state_indices = self._row_views(len(ends))
        return StepMetadata(
            query_start_loc=query_start_loc,
            has_initial_state=has_initial_state,
            state_indices=state_indices,
            seq_idx=fields.seq_idx[:context_tokens],
            chunk_indices=None if num_chunks is None else fields.chunk_indices[:num_chunks],
            chunk_offsets=None if num_chunks is None else fields.chunk_offsets[:num_chunks],
        )

    def _fill(self, fields: _Fields, num_contexts: int, step: Array, ends: Array) -> tuple[int, int | None]:
        """Write the step into numpy ``fields``; the number of context tokens, and of logical chunks or None."""
        rows = len(ends)
        lengths = step[0, :num_contexts]
        starts = fields.query_start_loc
        starts[0] = 0
        starts[1 : rows + 1] = ends
        continues = fields.has_initial_state[:rows]
        np.greater(step[1], 0, out=continues)
        fields.state_indices[:rows] = step[2]
        context_tokens = int(starts[num_contexts])
        fields.seq_idx[:context_tokens] = self._count[:num_contexts].repeat(lengths)
        if not continues[:num_contexts].any():
            return context_tokens, None
        # The closed form of optimized.chunk_metadata, on the host, where every length is known.
        starts = starts[:num_contexts]
        inside = starts % self.chunk_size
        (opening,) = (inside * lengths).nonzero()
        num_chunks = -(-context_tokens // self.chunk_size) + len(opening)
        offsets = fields.chunk_offsets[:num_chunks]
        offsets[:] = 0
        offsets[starts[opening] // self.chunk_size + self._count[1 : len(opening) + 1]] = inside[opening]
        opened = np.add.accumulate(offsets != 0, dtype=np.int32)
        np.subtract(self._count[:num_chunks], opened, out=fields.chunk_indices[:num_chunks])
        return context_tokens, num_chunks

    def _row_views(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Starts, flags and slots of a step of ``rows`` rows: always the same memory, so made once for each size."""
        views = self._views_of_rows.get(rows)
        if views is None:
            fields = self._device_fields
            views = (fields.query_start_loc[: rows + 1], fields.has_initial_state[:rows], fields.state_indices[:rows])
            self._views_of_rows[rows] = views
        return views

    def _check(
        self, seq_lens: Sequence[int], num_contexts: int, num_cached_tokens: Sequence[int], state_slots: Sequence[int]
    ) -> tuple[Array, Array]:
        """Lengths, cached counts and slots as one int64 [3, B], and where each row ends, if all of it is right."""
        rows = len(seq_lens)
        if rows > self.max_batch_size:
            limit = f"at most max_batch_size={self.max_batch_size}"
            raise checks.fail("seq_lens", f"{rows} rows", limit, "split the step or make the builder larger")
        step = np.empty((3, rows), dtype=np.int64)
        step[0] = _integers("seq_lens", seq_lens, rows)
        step[1] = _integers("num_cached_tokens", num_cached_tokens, rows)
        step[2] = _integers("state_slots", state_slots, rows)
        checks.check_int("num_contexts", num_contexts, 0)
        if num_contexts > rows:
            raise checks.fail("num_contexts", num_contexts, f"0 to {rows}, the number of rows", "contexts are rows too")
        least = np.minimum.reduce(step, axis=1, initial=0)
        most = np.maximum.reduce(step, axis=1, initial=0)
        for field, name in enumerate(("seq_lens", "num_cached_tokens")):
            if least[field] < 0:
                row = int(step[field].argmin())
                raise checks.fail(name, f"{least[field]} in row {row}", "values >= 0", "pass a number of tokens")
        ends = np.add.accumulate(step[0])
        # The longest row first: a sum of absurd lengths could wrap around to a small one.
        if most[0] > self.max_num_tokens or (rows > 0 and ends[-1] > self.max_num_tokens):
            limit = f"at most max_num_tokens={self.max_num_tokens}"
            raise checks.fail("seq_lens", f"{sum(seq_lens)} tokens", limit, "split the step or make the builder larger")
        if least[2] < _INT32.min or most[2] > _INT32.max:
            raise checks.fail("state_slots", f"{least[2]} to {most[2]}", "int32 values", "pass -1 for padding rows")
        if checks.check_strict():
            _check_unique(step[2])
        return step, ends


class _Layout:
    """Where each field lies in a buffer of ``words`` int32; what a step may lack comes last: a copy can stop early."""

    def __init__(self, max_batch_size: int, max_chunks: int, max_num_tokens: int) -> None:
        words = 0

        def place(size: int) -> slice:
            nonlocal words
            field = slice(words, words + size)
            words += -(-size // _ALIGN) * _ALIGN
            return field

        self.query_start_loc = place(max_batch_size + 1)
        self.state_indices = place(max_batch_size)
        self.flag_words = place(-(-max_batch_size // 4))
        self.chunk_indices = place(max_chunks)
        self.chunk_offsets = place(max_chunks)
        self.seq_idx = place(max_num_tokens)
        self.words = words


class _Fields:
    """Full-size views of the fields in a flat int32 buffer: a torch tensor or a numpy array, which slice alike."""

    def __init__(self, words: Any, layout: _Layout, bool_dtype: Any) -> None:
        self.words = words
        self.layout = layout
        self.query_start_loc = words[layout.query_start_loc]
        self.state_indices = words[layout.state_indices]
        self.has_initial_state = words[layout.flag_words].view(bool_dtype)
        self.chunk_indices = words[layout.chunk_indices]
        self.chunk_offsets = words[layout.chunk_offsets]
        self.seq_idx = words[layout.seq_idx]


class _Staging:
    """Pinned memory that one step is written to, and the event after which it may be written again."""

    def __init__(self, layout: _Layout) -> None:
        self._pinned = torch.zeros(layout.words, dtype=torch.int32, pin_memory=True)
        self._sent = torch.cuda.Event()
        self.fields = _Fields(self._pinned.numpy(), layout, np.bool_)

    def wait(self) -> None:
        """Until the last copy from here is done; returns at once unless the device is a whole ring of steps behind."""
        self._sent.synchronize()

    def send(self, target: _Fields, context_tokens: int) -> None:
        """One asynchronous copy of everything up to the last context token's entry in ``seq_idx``."""
        layout = target.layout
        # Without context tokens there are no chunks either, and nothing behind the flags is read.
        end = layout.seq_idx.start + context_tokens if context_tokens else layout.chunk_indices.start
        target.words[:end].copy_(self._pinned[:end], non_blocking=True)
        self._sent.record(torch.cuda.current_stream(target.words.device))


def _integers(name: str, values: Sequence[int], rows: int) -> array[int]:
    """``values`` as 64-bit integers, ``rows`` of them; ValueError naming ``name`` otherwise."""
    if len(values) != rows:
        raise checks.fail(name, f"{len(values)} entries", f"{rows}, as many as seq_lens", "pass lists of one length")
    try:
        # Not numpy.asarray: it would cut the fraction off a float instead of refusing it.
        return array("q", values)
    except (TypeError, OverflowError) as error:
        raise checks.fail(name, f"{values!r}", "64-bit integers", "pass a list of Python integers") from error


def _check_unique(slots: Array) -> None:
    """No slot twice among the active (non-negative) rows."""
    active, counts = np.unique(slots[slots >= 0], return_counts=True)
    if len(active) > 0 and counts.max() > 1:
        slot = int(active[counts.argmax()])
        found = f"slot {slot} in rows {np.flatnonzero(slots == slot).tolist()}"
        advice = "give every active row its own slot, and padding rows -1"
        raise checks.fail("state_slots", found, "no slot twice among active rows", advice)
