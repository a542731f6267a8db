"""Which experts each token goes to, and with which weights (spec 5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from harness import strategies
from harness.batch import Batch, Result
from harness.case import Case, Segment
from harness.execution import Call
from harness.failure import Row, fail
from harness.memory import Arena
from harness.operators import base, expert_choice, published
from harness.operators.base import generator
from harness.plural import plural
from harness.strategies import Scale
from references.moe import moe_routing


class MoeRouting(base.TokenOperator):
    """A result's outputs are the weights; the chosen ids are where others have states, and are judged by equality."""

    name = "moe_routing"
    summary = "the experts of each token and their weights, by ten ways to route"
    token_inputs = ("logits",)
    chooses = True
    far_arguments = 1

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        groups = strategies.segments(scale, length=strategies.lengths(scale), kinds=("fresh",), empties=True)
        return self._cases(groups, expert_choice.routings(scale, expert_choice.ROUTED_EXPERTS), dtype)

    def _cases(
        self,
        groups: SearchStrategy[tuple[Segment, ...]],
        routings: SearchStrategy[tuple[dict[str, int], dict[str, Any]]],
        dtype: str,
    ) -> SearchStrategy[Case]:
        return st.builds(
            lambda groups, routing, **rest: Case(
                self.name, tuple(Segment(g.length) for g in groups), routing[0], options=routing[1], **rest
            ),
            groups,
            routings,
            dtype=st.just(dtype),
            state_dtype=st.just(dtype),
            regime=st.fixed_dictionaries(expert_choice.regimes()),
            layout=strategies.layouts(heads=False, fused=False, slots=False),
            choice=strategies.CHOICES,
            seed=strategies.SEEDS,
        )

    def published_cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        """Experts and k of published models, as they route and in other ways; any number of tokens."""
        groups = strategies.segments(
            published.few_sequences(scale), length=strategies.lengths(scale), kinds=("fresh",), empties=True
        )
        return self._cases(groups, published.routings(), dtype)

    def compile_cases(self, dtype: str) -> Iterator[Case]:
        return published.routers(self.name, dtype)

    def far_cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        """Cases for `run_far_apart`."""
        return self.cases(scale, dtype).map(lambda case: case.with_(sequences=(Segment(self.far_tokens),)))

    def describe(self, case: Case) -> str:
        return f"{say_tokens(case)}; {expert_choice.say_options(case)}; {base.say_rest(case.with_(options={}), stateless=True)}"

    def coverage(self, case: Case) -> dict[str, list[str | int]]:
        layout = "dense" if case.layout.dense else "strided"
        return super().coverage(case) | expert_choice.coverage(case) | {"layout": [layout]}

    def batch(self, case: Case, device: torch.device) -> Batch:
        expert_choice.check(case)
        draw = generator(case, device)
        bias = expert_choice.draw_bias(case, draw, device)
        logits = expert_choice.draw_logits(case, draw, device, bias)
        return Batch(
            case=case,
            segments=case.sequences,
            tokens=tuple({"logits": rows} for rows in logits.split(case.lengths)),
            states=(None,) * len(case.sequences),
            shared={} if bias is None else {"bias": bias},
            layout=case.layout,
            pool_slots=case.pool_slots,
        )

    def output_shape(self, batch: Batch, tokens: int) -> tuple[int, ...]:
        return (tokens, batch.case.dims["k"])

    def output_dtype(self, batch: Batch) -> torch.dtype:
        return torch.float32

    def pack(self, batch: Batch, arena: Arena) -> Call:
        placed = self.place_tokens(batch, arena)
        bias = arena.place("bias", batch.shared["bias"]) if "bias" in batch.shared else None
        return Call((placed["logits"],), {**expert_choice.keywords(batch.case), "bias": bias}, arena)

    def parts(self, out: Any) -> tuple[Tensor, ...]:
        ids, weights = out
        return weights, ids

    def unpack(self, out: Any, call: Call, batch: Batch) -> Result:
        """Checks what holds of any ids: distinct, and in range."""
        if not (isinstance(out, tuple) and len(out) == 2 and all(isinstance(part, Tensor) for part in out)):
            fail("wrong shape", f"moe_routing returned {type(out).__name__}, expected (expert_ids, weights)")
        ids, weights = out
        expected = self.output_shape(batch, sum(batch.lengths))
        for name, tensor, dtype in (("expert_ids", ids, torch.int32), ("weights", weights, self.output_dtype(batch))):
            if tuple(tensor.shape) != expected:
                fail("wrong shape", f"{name} has shape {tuple(tensor.shape)}, expected {expected}", mark=name)
            if tensor.dtype != dtype:
                fail("wrong dtype", f"{name} is {tensor.dtype}, expected {dtype}", mark=name)
        require_ids(ids, batch.case.dims["E"])
        return Result(tuple(weights.clone().split(batch.lengths)), tuple(ids.clone().split(batch.lengths)))

    def reference(self, batch: Batch, *, compute: torch.dtype, storage: torch.dtype | None) -> Result:
        plain = batch.plain(storage)
        call = self.pack(plain, Arena(plain.device))
        ids, weights = moe_routing(*call.arguments, **call.keywords, compute_dtype=compute)
        return Result(tuple(weights.split(batch.lengths)), tuple(ids.split(batch.lengths)))

    def magnitude(self, batch: Batch) -> Result:
        truth = self.oracle(batch)
        terms = [
            expert_choice.weight_terms(item["logits"], ids, weights, batch.case.options["method"])
            for item, weights, ids in zip(batch.tokens, truth.outputs, truth.states, strict=True)
            if ids is not None
        ]
        return Result(tuple(terms), truth.states)


def say_tokens(case: Case) -> str:
    """``5 tokens in groups of 2, 3``."""
    groups = "" if len(case.sequences) == 1 else f" in groups of {', '.join(str(n) for n in case.lengths[:6])}"
    more = f", … and {len(case.sequences) - 6} more" if len(case.sequences) > 6 else ""
    return f"{plural(case.tokens, 'token')}{groups}{more}"


def require_ids(ids: Tensor, experts: int) -> None:
    """Fail unless every row of ids [T, k] names distinct experts that there are."""
    outside = ((ids < 0) | (ids >= experts)).any(1)
    ordered = ids.sort(1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    for wrong, what in ((outside, f"from 0 to {experts - 1}"), (twice, "of which none occurs twice")):
        if bool(wrong.any()):
            token = int(torch.nonzero(wrong)[0])
            row = Row(f"expert_ids of token {token}", [], ids[token, :8].double().tolist())
            fail(
                "wrong experts",
                f"expert_ids: got {ids[token].tolist()[:16]} in token {token}, expected ids {what}",
                [row],
            )
