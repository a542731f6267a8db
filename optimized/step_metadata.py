"""What every layer of a model step must know about the packed batch, rebuilt each step in buffers that never move.

All fields of a step live in one int32 buffer on the device at fixed offsets, so that their addresses hold from step to
step (a CUDA graph may keep them) and one asynchronous copy brings a whole step over.  The host fills a pinned staging
buffer with numpy; a small ring of those, each guarded by a CUDA event, keeps a copy in flight from being overwritten.
On the CPU the host fills the buffer itself.

The work is a few hundred integers, so what costs is the number of calls, not the arithmetic: lists are converted by the
conversion that also refuses what is wrong, chunks come from one sort, and tensor views are kept for the next step.

Every field is rewritten in every step, whatever the batch is made of: a flag left over from the previous step would let
a fresh sequence read the state of the slot's previous owner.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from triton.runtime import driver

from . import checks

_RING = 3
_MOST = np.iinfo(np.int32).max
_ALIGN = 32  # words: every field starts on 128 bytes, whatever vector width its readers use
_COPY_GRAIN = 1024  # words: sizes of copies are this far apart, so that a few views serve all of them
_MOST_VIEWS = 1024  # of a field, before its views are forgotten: well under a megabyte

# Native C types: their characters mean the same to ``array``, ``struct`` and numpy.
_UINT32, _UINT64, _INT32 = np.dtype("I"), np.dtype("Q"), np.dtype("i")

Array = npt.NDArray[Any]
_Columns = tuple[Array, Array, Array]


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
            if value > _MOST:
                raise checks.fail(name, value, f"at most {_MOST}", "the fields are int32")
        self.max_batch_size = max_batch_size
        self.chunk_size = chunk_size
        self.max_num_tokens = max_num_tokens
        self.device = device
        max_chunks = -(-max_num_tokens // chunk_size) + max_batch_size
        layout = _Layout(max_batch_size, max_chunks, max_num_tokens)
        self._device_fields = _Fields(torch.zeros(layout.words, dtype=torch.int32, device=device), layout, torch.bool)
        if device.type == "cuda":
            self._ring = [_Staging(self._device_fields) for _ in range(_RING)]
            self._stream = _CurrentStream(self._device_fields.words.device)
        else:
            self._host_fields = _Fields(self._device_fields.words.numpy(), layout, np.bool_)
        self._turn = 0
        self._query_start_loc = _Prefixes(self._device_fields.query_start_loc)
        self._has_initial_state = _Prefixes(self._device_fields.has_initial_state)
        self._state_indices = _Prefixes(self._device_fields.state_indices)
        self._seq_idx = _Prefixes(self._device_fields.seq_idx)
        self._chunk_indices = _Prefixes(self._device_fields.chunk_indices)
        self._chunk_offsets = _Prefixes(self._device_fields.chunk_offsets)
        self._rows = np.arange(max_batch_size, dtype=np.int32)
        self._physical_starts = np.arange(0, max_num_tokens, chunk_size, dtype=np.int32)

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
            staging.send(context_tokens, self._stream.get())
        else:
            context_tokens, num_chunks = self._fill(self._host_fields, num_contexts, step, ends)
        rows = len(ends)
        return StepMetadata(
            query_start_loc=self._query_start_loc[rows + 1],
            has_initial_state=self._has_initial_state[rows],
            state_indices=self._state_indices[rows],
            seq_idx=self._seq_idx[context_tokens],
            chunk_indices=None if num_chunks is None else self._chunk_indices[num_chunks],
            chunk_offsets=None if num_chunks is None else self._chunk_offsets[num_chunks],
        )

    def _fill(self, fields: _Fields, num_contexts: int, step: _Columns, ends: Array) -> tuple[int, int | None]:
        """Write the step into numpy ``fields``; the number of context tokens, and of logical chunks or None."""
        lengths, cached, slots = step
        rows = len(ends)
        starts = fields.query_start_loc
        starts[0] = 0
        starts[1 : rows + 1] = ends
        continues = fields.has_initial_state[:rows]
        np.greater(cached, 0, out=continues)
        fields.state_indices[:rows] = slots
        context_tokens = int(starts[num_contexts])
        lengths = lengths[:num_contexts]
        fields.seq_idx[:context_tokens] = self._rows[:num_contexts].repeat(lengths)
        if not np.count_nonzero(continues[:num_contexts]):  # in half the time of any()
            return context_tokens, None
        # A logical chunk begins where a physical one does, and where a context with tokens does inside a physical one.
        starts = starts[:num_contexts]
        opening = np.logical_and(starts % self.chunk_size, lengths)
        num_physical = -(-context_tokens // self.chunk_size)
        begins = np.concatenate((self._physical_starts[:num_physical], starts[opening]))
        # The stable sort finds the two ascending runs and merges them, in linear time.
        begins.sort(kind="stable")
        num_chunks = len(begins)
        np.floor_divide(begins, self.chunk_size, out=fields.chunk_indices[:num_chunks])
        np.remainder(begins, self.chunk_size, out=fields.chunk_offsets[:num_chunks])
        return context_tokens, num_chunks

    def _check(
        self, seq_lens: Sequence[int], num_contexts: int, num_cached_tokens: Sequence[int], state_slots: Sequence[int]
    ) -> tuple[_Columns, Array]:
        """Lengths, cached counts and slots, each [B], and where each row ends (int64), if all of it is right."""
        rows = len(seq_lens)
        if rows > self.max_batch_size:
            limit = f"at most max_batch_size={self.max_batch_size}"
            raise checks.fail("seq_lens", f"{rows} rows", limit, "split the step or make the builder larger")
        lengths = _column("seq_lens", seq_lens, rows, _UINT32, "pass numbers of tokens")
        cached = _column("num_cached_tokens", num_cached_tokens, rows, _UINT64, "pass numbers of tokens")
        slots = _column("state_slots", state_slots, rows, _INT32, "pass -1 for padding rows")
        checks.check_int("num_contexts", num_contexts, 0)
        if num_contexts > rows:
            raise checks.fail("num_contexts", num_contexts, f"0 to {rows}, the number of rows", "contexts are rows too")
        ends = np.add.accumulate(lengths, dtype=np.int64)  # of uint32 values: cannot wrap around
        if rows > 0 and ends[-1] > self.max_num_tokens:
            limit = f"at most max_num_tokens={self.max_num_tokens}"
            raise checks.fail("seq_lens", f"{ends[-1]} tokens", limit, "split the step or make the builder larger")
        if checks.check_strict():
            _check_unique(slots)
        return (lengths, cached, slots), ends


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
        self.words = words + _COPY_GRAIN  # room to round a copy up, however many context tokens it has


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


class _Prefixes(dict[int, torch.Tensor]):
    """The first n elements of ``field`` under key n: looked up in a tenth of the time that it takes to make a view."""

    def __init__(self, field: torch.Tensor) -> None:
        super().__init__()
        self._field = field

    def __missing__(self, size: int) -> torch.Tensor:
        if len(self) >= _MOST_VIEWS:
            self.clear()
        view = self[size] = self._field[:size]
        return view


class _CurrentStream:
    """The caller's stream on ``device``, which may change with every step; its Python object is made only when it did."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._raw_handle = driver.active.get_current_stream
        self._handle: int | None = None

    def get(self) -> torch.cuda.Stream:
        handle = self._raw_handle(self._device.index)
        if handle != self._handle:
            self._stream = torch.cuda.current_stream(self._device)
            self._handle = handle
        return self._stream


class _Staging:
    """Pinned memory that one step is written to, and the event after which it may be written again."""

    def __init__(self, target: _Fields) -> None:
        pinned = torch.zeros(target.layout.words, dtype=torch.int32, pin_memory=True)
        self.fields = _Fields(pinned.numpy(), target.layout, np.bool_)
        self._source, self._target = _Prefixes(pinned), _Prefixes(target.words)
        self._sent = torch.cuda.Event()

    def wait(self) -> None:
        """Until the last copy from here is done; returns at once unless the device is a whole ring of steps behind."""
        self._sent.synchronize()

    def send(self, context_tokens: int, stream: torch.cuda.Stream) -> None:
        """One asynchronous copy, on the current ``stream``, of everything up to the last context token's entry."""
        layout = self.fields.layout
        # Without context tokens there are no chunks either, and nothing behind the flags is read.
        grains = -(-context_tokens // _COPY_GRAIN)
        end = layout.seq_idx.start + grains * _COPY_GRAIN if context_tokens else layout.chunk_indices.start
        self._target[end].copy_(self._source[end], non_blocking=True)
        self._sent.record(stream)


def _column(name: str, values: Sequence[int], rows: int, dtype: np.dtype[Any], advice: str) -> Array:
    """``values`` as ``dtype``, ``rows`` of them; ValueError naming ``name`` if they are not integers of that range."""
    if len(values) != rows:
        raise checks.fail(name, f"{len(values)} entries", f"{rows}, as many as seq_lens", "pass lists of one length")
    try:
        # Both refuse negative numbers, numbers too large and floats as they convert (numpy.asarray would cut fractions
        # off).  ``array`` is the faster one for unsigned integers, but takes twice as long as ``struct`` for signed.
        packed = array(dtype.char, values) if dtype.kind == "u" else struct.pack(f"{rows}{dtype.char}", *values)
        return np.frombuffer(packed, dtype)
    except (TypeError, OverflowError, struct.error) as error:
        try:
            integers = array("q", values)
        except (TypeError, OverflowError):
            raise checks.fail(name, f"{values!r}", "64-bit integers", "pass a list of Python integers") from error
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        row = next(row for row, value in enumerate(integers) if not least <= value <= most)
        raise checks.fail(name, f"{integers[row]} in row {row}", f"{least} to {most}", advice) from error


def _check_unique(slots: Array) -> None:
    """No slot twice among the active (non-negative) rows."""
    active, counts = np.unique(slots[slots >= 0], return_counts=True)
    if len(active) > 0 and counts.max() > 1:
        slot = int(active[counts.argmax()])
        found = f"slot {slot} in rows {np.flatnonzero(slots == slot).tolist()}"
        advice = "give every active row its own slot, and padding rows -1"
        raise checks.fail("state_slots", found, "no slot twice among active rows", advice)
