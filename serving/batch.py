"""What the engine hands to the model for one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class StepBatch:
    """B rows packed into T tokens: `num_contexts` contexts first (a prompt, or the next piece of one), then one token a decode.

    Attributes:
        tokens, positions: int64 [T]; a token's position counts from 0 at the start of its request.
        metadata: what a `step_metadata` builder returned for this step: `query_start_loc` [B+1], `has_initial_state` [B],
            `state_indices` [B] (negative for a padding row), `seq_idx`, `chunk_indices`, `chunk_offsets`.
        num_contexts: the first rows; the others are decodes, among them padding rows.
        context_lens: new tokens of each context, on the host: their sum is where the decodes' tokens begin.
        write_slots: int64 [T], where a token's keys and values go: page x page size + offset; negative for a padding row.
        page_tables: int32 [B, pages a request may own], in the order of the tokens; what lies beyond `lengths` is never read.
        lengths: int32 [B], tokens of the row's request once this step is done; 0 for a padding row.
        max_length: on the host, no smaller than any of `lengths`: what attention must be ready for.
        logit_rows: int64 [R], the tokens whose logits are wanted, in the order in which they are wanted.
    """

    tokens: Tensor
    positions: Tensor
    metadata: Any
    num_contexts: int
    context_lens: list[int]
    write_slots: Tensor
    page_tables: Tensor
    lengths: Tensor
    max_length: int
    logit_rows: Tensor

    @property
    def context_tokens(self) -> int:
        return sum(self.context_lens)
