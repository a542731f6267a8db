"""Causal depthwise convolution over packed sequences with indexed state (spec section 2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis.strategies import SearchStrategy

from harness import strategies
from harness.batch import Batch, Result
from harness.case import Case
from harness.execution import Call
from harness.memory import Arena
from harness.operators import base, published
from harness.operators.convolution import conv_batch, conv_cases, conv_coverage
from harness.strategies import Scale
from references.causal_conv import conv_prefill


class ConvPrefill(base.SequenceOperator):
    name = "conv_prefill"
    summary = "causal depthwise convolution of packed sequences, state read and written by slot"
    token_inputs = ("x",)
    state_name = "conv_state"
    state_is_copy = True

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        return conv_cases(
            self.name, scale, dtype, strategies.segments(scale, length=strategies.lengths(scale), empties=True)
        )

    def compile_cases(self, dtype: str) -> Iterator[Case]:
        return published.convolution(self.name, dtype, decode=self.decode)

    def describe(self, case: Case) -> str:
        return f"{base.say_segments(case, decode=self.decode)}; {base.say_rest(case)}"

    def coverage(self, case: Case) -> dict[str, list[str | int]]:
        return super().coverage(case) | conv_coverage(case)

    def batch(self, case: Case, device: torch.device) -> Batch:
        return conv_batch(case, device)

    def state_shape(self, batch: Batch) -> tuple[int, ...]:
        return (batch.case.dims["D"], batch.case.dims["W"] - 1)

    def output_shape(self, batch: Batch, tokens: int) -> tuple[int, ...]:
        return (tokens, batch.case.dims["D"])

    def pack(self, batch: Batch, arena: Arena) -> Call:
        tokens = self.place_tokens(batch, arena)
        weight = arena.place("weight", batch.shared["weight"])
        bias = arena.place("bias", batch.shared["bias"]) if "bias" in batch.shared else None
        keywords = {
            "bias": bias,
            "conv_state": self.place_pool(batch, arena, base.torch_dtype(batch.case.state_dtype)),
            "cu_seqlens": self.place_starts(batch, arena),
            "state_indices": self.place_slots(batch, arena),
            "has_initial_state": self.place_flags(batch, arena),
            "activation": batch.case.options["activation"],
        }
        return Call((tokens["x"], weight), keywords, arena)

    def reference(self, batch: Batch, *, compute: torch.dtype, storage: torch.dtype | None) -> Result:
        plain = batch.plain(storage)
        call = self.pack(plain, Arena(plain.device))
        out = conv_prefill(*call.arguments, **call.keywords, compute_dtype=compute)
        return self.unpack(out, call, plain)

    def magnitude(self, batch: Batch) -> Result:
        """Sum of |weight x input| over the taps, plus |bias|: the same convolution on absolute values."""
        return self.reference(batch.absolute(activation=None), compute=torch.float64, storage=torch.float64)
