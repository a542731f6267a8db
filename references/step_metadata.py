"""What the layers must know about one step of a server, worked out from nothing on every step.

A step packs B rows: first `num_contexts` contexts (a prompt, or the next piece of one), then the decodes. The reference
keeps nothing between steps, so it cannot be stale; addresses that survive from step to step are the subject's promise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from references.chunk_metadata import chunk_metadata
from references.strict import strict_mode


@dataclass(frozen=True)
class StepMetadata:
    """One step of B rows.

    Attributes:
        query_start_loc: int32 [B+1], where each row's tokens start in the packed step; the last entry is their number.
        has_initial_state: bool [B], whether the row continues a state (contexts and decodes alike).
        state_indices: int32 [B], each row's slot; negative for a padding row.
        seq_idx: int32 [context tokens], the row that owns each context token.
        chunk_indices: int32 [M], logical chunks of the context tokens; None when no context has an initial state.
        chunk_offsets: int32 [M], likewise.
    """

    query_start_loc: Tensor
    has_initial_state: Tensor
    state_indices: Tensor
    seq_idx: Tensor
    chunk_indices: Tensor | None
    chunk_offsets: Tensor | None


@dataclass(frozen=True)
class StepMetadataBuilder:
    """Builds the metadata of one step at a time; see `step_metadata`."""

    max_batch_size: int
    chunk_size: int
    device: torch.device

    def prepare(
        self,
        *,
        seq_lens: Sequence[int],
        num_contexts: int,
        num_cached_tokens: Sequence[int],
        state_slots: Sequence[int],
    ) -> StepMetadata:
        """The metadata of the step whose row i has `seq_lens[i]` new tokens after `num_cached_tokens[i]` old ones.

        Raises:
            ValueError: lists of different lengths, more rows than `max_batch_size`, `num_contexts` outside 0..B, a
                negative length or count; in strict mode also two rows with the same non-negative slot.
        """
        self._check(seq_lens, num_contexts, num_cached_tokens, state_slots)

        starts = [0]
        for length in seq_lens:
            starts.append(starts[-1] + length)
        seq_idx = []
        for row in range(num_contexts):
            seq_idx += [row] * seq_lens[row]
        continues = [cached > 0 for cached in num_cached_tokens]

        query_start_loc = torch.tensor(starts, dtype=torch.int32, device=self.device)
        chunk_indices = chunk_offsets = None
        if any(continues[:num_contexts]):
            chunk_indices, chunk_offsets = chunk_metadata(query_start_loc[: num_contexts + 1], self.chunk_size)
        return StepMetadata(
            query_start_loc=query_start_loc,
            has_initial_state=torch.tensor(continues, dtype=torch.bool, device=self.device),
            state_indices=torch.tensor(state_slots, dtype=torch.int32, device=self.device),
            seq_idx=torch.tensor(seq_idx, dtype=torch.int32, device=self.device),
            chunk_indices=chunk_indices,
            chunk_offsets=chunk_offsets,
        )

    def _check(
        self,
        seq_lens: Sequence[int],
        num_contexts: int,
        num_cached_tokens: Sequence[int],
        state_slots: Sequence[int],
    ) -> None:
        rows = len(seq_lens)
        for name, values in (("num_cached_tokens", num_cached_tokens), ("state_slots", state_slots)):
            if len(values) != rows:
                raise ValueError(f"{name}: expected one entry for each of the {rows} seq_lens, got {len(values)}")
        if rows > self.max_batch_size:
            raise ValueError(
                f"seq_lens: expected at most max_batch_size={self.max_batch_size} rows, got {rows}; "
                "split the step or make the builder larger"
            )
        if not 0 <= num_contexts <= rows:
            raise ValueError(f"num_contexts: expected 0 to {rows}, the number of rows, got {num_contexts}")
        for name, values in (("seq_lens", seq_lens), ("num_cached_tokens", num_cached_tokens)):
            for row, value in enumerate(values):
                if value < 0:
                    raise ValueError(f"{name}: expected 0 or more, got {value} in row {row}")
        if strict_mode():
            owner: dict[int, int] = {}
            for row, slot in enumerate(state_slots):
                if slot >= 0 and slot in owner:
                    raise ValueError(
                        f"state_slots: expected a slot of its own for every active row, got slot {slot} in rows "
                        f"{owner[slot]} and {row}; mark padding rows with a negative slot"
                    )
                owner[slot] = row


def step_metadata(max_batch_size: int, chunk_size: int, device: torch.device | str) -> StepMetadataBuilder:
    """A builder for steps of at most `max_batch_size` rows and logical chunks of `chunk_size` tokens, on `device`.

    Raises:
        ValueError: a negative `max_batch_size`, or a `chunk_size` below 1.
    """
    if max_batch_size < 0:
        raise ValueError(f"max_batch_size: expected 0 or more, got {max_batch_size}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    return StepMetadataBuilder(max_batch_size, chunk_size, torch.device(device))
