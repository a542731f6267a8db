"""Norm, weight and gate of each token's heads, after the delta rule (spec 6.2, step 5)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness import strategies
from harness.batch import Batch, Result
from harness.case import Case, Segment
from harness.execution import Call
from harness.memory import Arena
from harness.operators import base, published
from harness.operators.base import generator, torch_dtype
from harness.plural import plural
from harness.strategies import Scale
from references.gated_norm import gated_rmsnorm

#: Of x. Tiny: the epsilon outweighs the mean of squares. Large: squares overflow float16.
AMPLITUDES = {"unit": 1.0, "tiny": 3e-4, "large": 1000.0}
#: The first is the plainest. Others leave part of the last block of a row empty, and every block of a power of two occurs.
VALUE_DIMS = (4, 1, 2, 8, 12, 20, 64, 100, 128, 130, 256)
#: Gates that are shut, and one that is open as wide as float16 allows y to be.
SHUT, OPEN = -1e4, 1e3


def epsilon(case: Case) -> float:
    """The one of the published models, unless the case has another."""
    return case.options["eps"] or 1e-6


class GatedRmsNorm(base.TokenOperator):
    name = "gated_rmsnorm"
    summary = "RMS norm of each token's heads, weighed and gated by silu(z)"
    token_inputs = ("x", "z")
    far_arguments = 2

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        # A segment is some tokens and nothing else: relations pack, permute and perturb segments.
        groups = strategies.segments(scale, length=strategies.lengths(scale), kinds=("fresh",), empties=True)
        return st.builds(
            Case,
            operator=st.just(self.name),
            sequences=groups.map(lambda drawn: tuple(Segment(group.length) for group in drawn)),
            dims=st.fixed_dictionaries(
                {"HV": st.integers(1, 2 * scale.max_heads), "V": st.sampled_from(VALUE_DIMS)},
            ),
            dtype=st.just(dtype),
            state_dtype=st.just(dtype),
            regime=st.fixed_dictionaries(
                {
                    "amplitude": st.sampled_from(["unit", "unit", "tiny", "large"]),
                    "gate": st.sampled_from(["random", "random", "saturated"]),
                    "rows": st.sampled_from(["random", "random", "some zero"]),
                }
            ),
            options=st.fixed_dictionaries(
                {"eps": st.sampled_from([None, None, 1e-5, 0.5]), "float32_weight": st.booleans()}
            ),
            layout=strategies.layouts(heads=True, fused=True, slots=False),
            choice=strategies.CHOICES,
            seed=strategies.SEEDS,
        )

    def compile_cases(self, dtype: str) -> Iterator[Case]:
        regime = {"amplitude": "unit", "gate": "random", "rows": "random"}
        return published.norm(self.name, dtype, regime=regime, options={"eps": None, "float32_weight": False})

    def far_cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        """Cases for `run_far_apart`."""
        return self.cases(scale, dtype).map(lambda case: case.with_(sequences=(Segment(self.far_tokens),)))

    def describe(self, case: Case) -> str:
        groups = "" if len(case.sequences) == 1 else f" in groups of {', '.join(str(n) for n in case.lengths[:6])}"
        more = f", … and {len(case.sequences) - 6} more" if len(case.sequences) > 6 else ""
        return f"{plural(case.tokens, 'token')}{groups}{more}; {base.say_rest(case, stateless=True)}"

    def coverage(self, case: Case) -> dict[str, list[str | int]]:
        return super().coverage(case) | {
            "V": [case.dims["V"]],
            "value heads": [case.dims["HV"]],
            "amplitude": [case.regime["amplitude"]],
            "gate": [case.regime["gate"]],
            "rows": [case.regime["rows"]],
            "eps": [str(epsilon(case))],
            "layout": ["fused" if case.layout.fused else "dense" if case.layout.dense else "strided"],
        }

    def batch(self, case: Case, device: torch.device) -> Batch:
        """x ~ amplitude x N(0, 1), z ~ N(0, 4), weights ~ N(0, 1): all of them differ, and none is near what the others are."""
        draw = generator(case, device)
        dtype, shape = torch_dtype(case.dtype), (case.tokens, case.dims["HV"], case.dims["V"])
        x = torch.randn(shape, generator=draw, device=device) * AMPLITUDES[case.regime["amplitude"]]
        z = torch.randn(shape, generator=draw, device=device) * 2
        weight = torch.randn(case.dims["V"], generator=draw, device=device)
        if case.regime["gate"] == "saturated":
            kind = torch.randint(0, 4, shape, generator=draw, device=device)
            ends = torch.tensor([SHUT, 0.0, OPEN], device=device)
            z = torch.where(kind == 3, z, ends[kind.clamp(max=2)])
        if case.regime["rows"] == "some zero":
            x = x * torch.randint(0, 2, (*shape[:2], 1), generator=draw, device=device)
        return Batch(
            case=case,
            segments=case.sequences,
            tokens=tuple(
                {"x": rows, "z": gates}
                for rows, gates in zip(x.to(dtype).split(case.lengths), z.to(dtype).split(case.lengths), strict=True)
            ),
            states=(None,) * len(case.sequences),
            shared={"weight": weight.to(torch.float32 if case.options["float32_weight"] else dtype)},
            layout=case.layout,
            pool_slots=case.pool_slots,
        )

    def output_shape(self, batch: Batch, tokens: int) -> tuple[int, ...]:
        return (tokens, batch.case.dims["HV"], batch.case.dims["V"])

    def pack(self, batch: Batch, arena: Arena) -> Call:
        placed = self.place_tokens(batch, arena)
        weight = arena.place("weight", batch.shared["weight"])
        return Call((placed["x"], placed["z"], weight), {"eps": epsilon(batch.case)}, arena)

    def reference(self, batch: Batch, *, compute: torch.dtype, storage: torch.dtype | None) -> Result:
        plain = batch.plain(storage)
        call = self.pack(plain, Arena(plain.device))
        out = gated_rmsnorm(*call.arguments, **call.keywords, compute_dtype=compute)
        return self.unpack(out, call, plain)

    def magnitude(self, batch: Batch) -> Result:
        """|y|, times what the exponential in the gate makes of rounding its argument: 1 + |z| (1 - sigmoid(z))."""
        outputs = (
            y.abs() * (1 + item["z"].double().abs() * torch.sigmoid(-item["z"].double()))
            for y, item in zip(self.oracle(batch).outputs, batch.tokens, strict=True)
        )
        return Result(tuple(outputs), (None,) * batch.size)
