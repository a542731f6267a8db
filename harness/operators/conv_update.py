"""One token of causal convolution for each of B sequences, state shifted in place (spec section 2)."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness import strategies
from harness.batch import Batch, Result
from harness.case import Case
from harness.execution import Call
from harness.memory import Arena
from harness.operators.conv_prefill import ConvPrefill
from harness.operators.convolution import conv_cases
from harness.strategies import Scale
from references.causal_conv import conv_update


class ConvUpdate(ConvPrefill):
    name = "conv_update"
    summary = "one token of causal convolution for each row, state shifted in place by slot"
    decode = True

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        rows = strategies.segments(scale, length=st.just(1), kinds=("resumed", "inactive"))
        return conv_cases(self.name, scale, dtype, rows)

    def pack(self, batch: Batch, arena: Arena) -> Call:
        call = super().pack(batch, arena)
        for prefill_only in ("cu_seqlens", "has_initial_state"):
            del call.keywords[prefill_only]
        return call

    def reference(self, batch: Batch, *, compute: torch.dtype, storage: torch.dtype | None) -> Result:
        plain = batch.plain(storage)
        call = self.pack(plain, Arena(plain.device))
        out = conv_update(*call.arguments, **call.keywords, compute_dtype=compute)
        return self.unpack(out, call, plain)
