"""Mixture of experts: tokens through the experts that they are routed to (spec section 5)."""

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
from harness.memory import Arena
from harness.operators import base, expert_choice, published
from harness.operators.base import generator, torch_dtype
from harness.operators.moe_routing import say_tokens
from harness.operators.moe_terms import Terms, terms
from harness.strategies import Scale
from references.moe import moe, moe_experts, moe_routing

#: Of x. What comes out of an expert grows with its square, and is to fit float16.
AMPLITUDES = {"unit": 1.0, "tiny": 3e-3, "large": 16.0}
#: The first is the plainest. None is a whole number of tiles for long.
HIDDEN = {"cpu": (16, 1, 8, 20, 40, 72), "cuda": (64, 16, 40, 128, 264, 1000, 2048)}
SIZES = {"cpu": (8, 1, 16, 20, 36), "cuda": (32, 8, 20, 64, 96, 200, 512)}
#: As all products of multiples of it with small whole numbers are exact, so is silu of them: sigmoid(64) is 1 in any dtype.
GATE = 64.0


class Moe(base.TokenOperator):
    name = "moe"
    summary = "tokens routed to k of E experts, each a SwiGLU MLP, and what they return weighed and added up"
    token_inputs = ("x", "router_logits")
    #: The router, the sort (three where rows are many), two products and the sum over experts.
    max_launches = 7
    far_arguments = 1

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        groups = strategies.segments(scale, length=strategies.lengths(scale), kinds=("fresh",), empties=True)
        sizes = st.fixed_dictionaries(
            {"I": st.sampled_from(SIZES[scale.name]), "Hd": st.sampled_from(HIDDEN[scale.name])}
        )
        routings = expert_choice.routings(scale, expert_choice.EXPERTS)
        part = strategies.weighted((3, st.none()), (1, st.tuples(st.integers(0, 15), st.integers(0, 15))))
        return self._cases(groups, routings, sizes, part, dtype)

    def _cases(
        self,
        groups: SearchStrategy[tuple[Segment, ...]],
        routings: SearchStrategy[tuple[dict[str, int], dict[str, Any]]],
        sizes: SearchStrategy[dict[str, int]],
        part: SearchStrategy[tuple[int, int] | None],
        dtype: str,
    ) -> SearchStrategy[Case]:
        return st.builds(
            _case,
            groups,
            routings,
            sizes,
            part,
            st.sampled_from([dtype, dtype, "float32"]),
            dtype=st.just(dtype),
            state_dtype=st.just(dtype),
            regime=st.fixed_dictionaries(
                {
                    "amplitude": st.sampled_from(["unit", "unit", "large", "tiny"]),
                    "contents": st.sampled_from(["random", "random", "exact"]),
                    **expert_choice.regimes(),
                }
            ),
            layout=strategies.layouts(heads=False, fused=False, slots=False),
            choice=strategies.CHOICES,
            seed=strategies.SEEDS,
        )

    def published_cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        """Experts of published models, whole or split over GPUs by experts or by intermediate columns."""
        groups = strategies.segments(
            published.few_sequences(scale), length=strategies.lengths(scale), kinds=("fresh",), empties=True
        )
        return published.mixtures(groups, dtype, self.published_case)

    def published_case(self, shape: published.Mixture, groups: tuple[Segment, ...], dtype: str, **rest: Any) -> Case:
        """A case of this shape of a published model."""
        routing = expert_choice.routing(shape.experts, shape.top_k, "renormalize", None, 0, 0, 1.0)
        sizes = {"I": shape.size, "Hd": shape.hidden}
        part = None if shape.local == shape.experts else (shape.first, shape.local - 1)
        regime = {"amplitude": "unit", "contents": "random", "logits": "random", "load": "random"}
        plain = {"dtype": dtype, "state_dtype": dtype, "regime": regime}
        return _case(groups, routing, sizes, part, dtype, **{**plain, **rest})

    def compile_cases(self, dtype: str) -> Iterator[Case]:
        for shape, tokens in published.compiled_mixtures():
            yield self.published_case(shape, (Segment(tokens),), dtype)

    def far_cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        """Cases for `run_far_apart`."""
        return self.cases(scale, dtype).map(lambda case: case.with_(sequences=(Segment(self.far_tokens),)))

    def describe(self, case: Case) -> str:
        options, dims = case.options, case.dims
        part = ""
        if dims["El"] != dims["E"]:
            part = f", of which experts {options['first']} to {options['first'] + dims['El'] - 1} are here"
        logits = "" if options["logits_dtype"] == case.dtype else f", {options['logits_dtype']} logits"
        rest = base.say_rest(case.with_(options={}), stateless=True)
        return f"{say_tokens(case)}; {expert_choice.say_options(case)}{part}{logits}; {rest}"

    def coverage(self, case: Case) -> dict[str, list[str | int]]:
        return (
            super().coverage(case)
            | expert_choice.coverage(case)
            | {
                "hidden": [case.dims["Hd"]],
                "intermediate": [case.dims["I"]],
                "amplitude": [case.regime["amplitude"]],
                "contents": [case.regime["contents"]],
                "experts here": ["all" if case.dims["El"] == case.dims["E"] else "some"],
                "logits dtype": [case.options["logits_dtype"]],
                "layout": ["dense" if case.layout.dense else "strided"],
            }
        )

    # -- contents -------------------------------------------------------------------------------------------------------

    def batch(self, case: Case, device: torch.device) -> Batch:
        expert_choice.check(case)
        dims, dtype = case.dims, torch_dtype(case.dtype)
        if not 0 < dims["El"] <= dims["E"] - case.options["first"]:
            raise ValueError(f"expert_offset: {dims['El']} experts from {case.options['first']} of {dims['E']}")
        draw = generator(case, device)
        bias = expert_choice.draw_bias(case, draw, device)
        logits = expert_choice.draw_logits(case, draw, device, bias)
        make = exact_contents if case.regime["contents"] == "exact" else random_contents
        x, w_gate_up, w_down = make(case, draw, device)
        shared = {"w_gate_up": w_gate_up.to(dtype), "w_down": w_down.to(dtype)}
        lengths = case.lengths
        return Batch(
            case=case,
            segments=case.sequences,
            tokens=tuple(
                {"x": rows, "router_logits": of_rows}
                for rows, of_rows in zip(x.to(dtype).split(lengths), logits.split(lengths), strict=True)
            ),
            states=(None,) * len(case.sequences),
            shared=shared if bias is None else shared | {"bias": bias},
            layout=case.layout,
            pool_slots=case.pool_slots,
        )

    def output_shape(self, batch: Batch, tokens: int) -> tuple[int, ...]:
        return (tokens, batch.case.dims["Hd"])

    def pack(self, batch: Batch, arena: Arena) -> Call:
        layout, logits = batch.layout, batch.packed("router_logits")
        placed = self.place_tokens(batch, arena, ("x",))
        # A pitch of its own: it must not be read with that of x.
        pitch = logits.shape[1] + (3 * layout.row_pad if layout.row_pad else 0)
        router_logits = arena.place("router_logits", logits, strides=(pitch, 1), offset=layout.base_offset)
        weights = [arena.place(name, batch.shared[name]) for name in ("w_gate_up", "w_down")]
        bias = arena.place("bias", batch.shared["bias"]) if "bias" in batch.shared else None
        keywords = {
            **expert_choice.keywords(batch.case),
            "bias": bias,
            "expert_offset": batch.case.options["first"],
        }
        return Call((placed["x"], router_logits, *weights), keywords, arena)

    # -- truth ----------------------------------------------------------------------------------------------------------

    def reference(self, batch: Batch, *, compute: torch.dtype, storage: torch.dtype | None) -> Result:
        plain = batch.plain(storage)
        call = self.pack(plain, Arena(plain.device))
        out = moe(*call.arguments, **call.keywords, compute_dtype=compute)
        return self.unpack(out, call, plain)

    def model(self, batch: Batch) -> Result:
        """Float32, but for what goes from one product into the other, and for weights that a subject declares rounded."""
        plain = batch.plain(None)
        call = self.pack(plain, Arena(plain.device))
        x, logits, *experts = call.arguments
        routing = {name: value for name, value in call.keywords.items() if name != "expert_offset"}
        ids, weights = moe_routing(logits, **routing, compute_dtype=torch.float32)
        if rounded := weights_dtype(batch.case):
            weights = weights.to(rounded).float()
        # A subject that rounds more has the rest of it in its noise.
        out = moe_experts(
            x,
            ids,
            weights,
            *experts,
            expert_offset=batch.case.options["first"],
            compute_dtype=torch.float32,
            operand_dtype=operand_dtype(batch),
        )
        return self.unpack(out, call, plain)

    def magnitude(self, batch: Batch) -> Result:
        return _split(self._terms(batch).magnitude, batch)

    def operand_noise(self, batch: Batch) -> Result | None:
        if operand_dtype(batch) is None and weights_dtype(batch.case) is None:
            return None
        return _split(self._terms(batch).noise, batch)

    def _terms(self, batch: Batch) -> Terms:
        case = batch.case
        plain = batch.plain(None)
        call = self.pack(plain, Arena(plain.device))
        x, logits, *experts = call.arguments
        routing = {name: value for name, value in call.keywords.items() if name != "expert_offset"}
        ids, weights = moe_routing(logits, **routing)
        return terms(
            x,
            ids.long() - case.options["first"],
            weights,
            expert_choice.weight_terms(logits, ids, weights, case.options["method"]),
            *experts,
            operand=operand_dtype(batch),
            rounded=weights_dtype(case),
            products=bool(case.options.get("products_rounded")),
            parts=bool(case.options.get("parts_rounded")),
        )


def _case(
    groups: tuple[Segment, ...],
    routing: tuple[dict[str, int], dict[str, Any]],
    sizes: dict[str, int],
    part: tuple[int, int] | None,
    logits_dtype: str,
    **rest: Any,
) -> Case:
    """``part``: where the experts that are here begin and how many there are, to be made to fit; None: all."""
    dims, options = routing
    first, local = (part[0] % dims["E"], part[1]) if part else (0, dims["E"] - 1)
    here = 1 + local % (dims["E"] - first)
    return Case(
        Moe.name,
        tuple(Segment(group.length) for group in groups),
        {**dims, **sizes, "El": here},
        options={**options, "first": first, "logits_dtype": logits_dtype},
        **rest,
    )


def random_contents(case: Case, draw: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x ~ amplitude x N(0, 1), weights ~ N(0, 1 / width): no two experts, halves or rows are alike."""
    dims = case.dims

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=draw, device=device) * scale

    # Logits are weights of this method: with large x besides, float16 would overflow.
    amplitude = "unit" if case.options["method"] == "top_k" else case.regime["amplitude"]
    x = normal(case.tokens, dims["Hd"], scale=AMPLITUDES[amplitude])
    w_gate_up = normal(dims["El"], 2 * dims["I"], dims["Hd"], scale=dims["Hd"] ** -0.5)
    return x, w_gate_up, normal(dims["El"], dims["Hd"], dims["I"], scale=dims["I"] ** -0.5)


def exact_contents(case: Case, draw: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Few small whole numbers, gates multiples of 64: every sum is exact, and whatever is in the wrong place is far off."""
    dims = case.dims

    def sparse(*shape: int, least: int, density: float) -> Tensor:
        values = torch.randint(least, 2, shape, generator=draw, device=device).float()
        return values * (torch.rand(*shape, generator=draw, device=device) < density)

    x = sparse(case.tokens, dims["Hd"], least=0, density=1.0)
    gate = sparse(dims["El"], dims["I"], dims["Hd"], least=0, density=min(1.0, 3 / dims["Hd"]))
    up = sparse(dims["El"], dims["I"], dims["Hd"], least=-1, density=min(1.0, 3 / dims["Hd"]))
    down = sparse(dims["El"], dims["Hd"], dims["I"], least=-1, density=min(1.0, 4 / dims["I"]))
    return x, torch.cat([GATE * gate, up], dim=1), down


def operand_dtype(batch: Batch) -> torch.dtype | None:
    """What goes into the second product is rounded to it; None: not at all."""
    dtype = batch.tokens[0]["x"].dtype
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def weights_dtype(case: Case) -> torch.dtype | None:
    """What a subject says that it rounds routing weights to (`harness.subjects.Capabilities`)."""
    name = case.options.get("weights_rounded")
    return torch_dtype(name) if name else None


def _split(rows: Tensor, batch: Batch) -> Result:
    return Result(tuple(rows.split(batch.lengths)), (None,) * batch.size)
