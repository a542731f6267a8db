"""The tensors of a step that the engine itself makes, brought to the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batch import StepBatch
from .scheduler import Row

#: No slot, no page: what padding rows have.
NONE = -1


class StepInputs:
    """Makes the `StepBatch` of one step after the other.

    On a GPU two pinned buffers take turns; an event says when the copy out of one is over, so that none is written while
    it is read. The device's side is new memory each step, which the allocator has at hand.
    """

    def __init__(self, page_size: int, pages_a_request: int, device: torch.device) -> None:
        self.page_size, self.pages_a_request, self.device = page_size, pages_a_request, device
        self._staging = [_Staging(), _Staging()] if device.type == "cuda" else []

    def batch(self, rows: Sequence[Row], padded_to: int, metadata: Any) -> StepBatch:
        """The rows of a step, contexts first, and behind them padding rows of one token each."""
        size = self.page_size
        tokens: list[int] = []
        positions: list[int] = []
        write_slots: list[int] = []
        lengths: list[int] = []
        logit_rows: list[int] = []
        tables = np.full((padded_to, self.pages_a_request), NONE, dtype=np.int32)
        for number, row in enumerate(rows):
            tracked, end = row.tracked, row.cached + row.new
            pages = tracked.pages
            tables[number, : len(pages)] = pages
            where = range(row.cached, end)
            tokens += tracked.between(row.cached, end)
            positions += where
            write_slots += [pages[p // size] * size + p % size for p in where]
            lengths.append(end)
            if wants_logits(row):
                logit_rows.append(len(tokens) - 1)
        contexts = [row.new for row in rows if row.is_context]
        padding = padded_to - len(rows)
        if not contexts:
            # A step of decodes alone is always alike: all its rows have logits, those of padding too.
            logit_rows = list(range(padded_to))
        wide = (
            [*tokens, *[0] * padding],
            [*positions, *[0] * padding],
            [*write_slots, *[NONE] * padding],
            logit_rows,
        )
        longs = [np.asarray(values, dtype=np.int64) for values in wide]
        ints = [tables, np.asarray([*lengths, *[0] * padding], dtype=np.int32)]
        *moved, page_tables, row_lengths = self._moved([*longs, *ints])
        return StepBatch(
            tokens=moved[0],
            positions=moved[1],
            metadata=metadata,
            num_contexts=len(contexts),
            context_lens=contexts,
            write_slots=moved[2],
            page_tables=page_tables,
            lengths=row_lengths,
            max_length=max(lengths, default=0),
            logit_rows=moved[3],
        )

    def _moved(self, arrays: list[Any]) -> list[Tensor]:
        """The arrays on the device: views of one buffer, the wide ones first so that all are aligned."""
        if not self._staging:
            return [torch.from_numpy(array) for array in arrays]
        staging = self._staging[0]
        self._staging.reverse()
        packed = np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays])
        on_device = staging.send(packed, self.device)
        out, start = [], 0
        for array in arrays:
            dtype = torch.int64 if array.dtype == np.int64 else torch.int32
            out.append(on_device[start : start + array.nbytes].view(dtype).view(array.shape))
            start += array.nbytes
        return out


def wants_logits(row: Row) -> bool:
    """Whether the row's last token is the last one known of its request, so that the next one is chosen."""
    return row.cached + row.new == row.tracked.length


@dataclass
class _Staging:
    """Pinned memory, and the event that its last copy is over."""

    buffer: Tensor | None = None
    event: torch.cuda.Event | None = None

    def send(self, content: Any, device: torch.device) -> Tensor:
        if self.event is not None:
            self.event.synchronize()
        if self.buffer is None or self.buffer.numel() < content.size:
            self.buffer = torch.empty(2 * content.size, dtype=torch.uint8, pin_memory=True)
        self.buffer[: content.size].numpy()[:] = content
        sent = self.buffer[: content.size].to(device, non_blocking=True)
        self.event = torch.cuda.Event()
        self.event.record()
        return sent
