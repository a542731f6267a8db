"""What the two operators of the gated delta rule share: dims, regimes and contents of their cases, shapes, words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from harness import strategies
from harness.batch import Batch
from harness.case import Case, Layout, Segment
from harness.operators import base
from harness.strategies import Scale

#: How fast a head forgets, in -log decay a token: each hides a fault that another one shows (spec 3.11).
DECAYS = ["mixed", "mixed", "none", "slow", "published", "underflow"]
#: Zero hides all outputs, so it is rare; it is a number like any other, and no word for the default.
SCALES = [*[None] * 5, *[0.5] * 3, 0.0]
KEYS = ["random", "random", "correlated", "orthogonal", "zero"]


class DeltaRule(base.SequenceOperator):
    """q, k [rows, H, K], v [rows, HV, V] and a state [slots, HV, V, K]."""

    state_name = "state"

    def describe(self, case: Case) -> str:
        return f"{base.say_segments(case, decode=self.decode)}; {base.say_rest(case)}"

    def coverage(self, case: Case) -> dict[str, list[str | int]]:
        dims = case.dims
        return (
            super().coverage(case)
            | {name: [word] for name, word in case.regime.items()}
            | {
                "K x V": [f"{dims['K']}x{dims['V']}"],
                "value heads a key head": [dims["HV"] // dims["H"]],
                "state dtype": [case.state_dtype],
                "sequence kind": [s.kind for s in case.sequences],
                "layout": ["fused" if case.layout.fused else "dense" if case.layout.dense else "strided"],
            }
        )

    @staticmethod
    def output_scale(batch: Batch) -> float:
        """The case's, K^-1/2 where it gives none. Zero is a number like any other."""
        given: float | None = batch.case.options["scale"]
        return batch.case.dims["K"] ** -0.5 if given is None else given

    def state_shape(self, batch: Batch) -> tuple[int, ...]:
        dims = batch.case.dims
        return (dims["HV"], dims["V"], dims["K"])

    def output_shape(self, batch: Batch, tokens: int) -> tuple[int, ...]:
        return (tokens, batch.case.dims["HV"], batch.case.dims["V"])

    def output_dtype(self, batch: Batch) -> torch.dtype:
        return batch.tokens[0]["v"].dtype


def delta_cases(
    operator: str,
    scale: Scale,
    dtype: str,
    *,
    segments: SearchStrategy[tuple[Segment, ...]],
    dims: SearchStrategy[dict[str, int]],
    regime: Mapping[str, list[str]],
    options: Mapping[str, SearchStrategy[Any]],
    layouts: SearchStrategy[Layout] | None = None,
) -> SearchStrategy[Case]:
    """Cases with ``dims`` H, R = HV / H, K and V, a word of each ``regime`` and these ``options``; in any layout or these."""
    return st.builds(
        _case,
        st.just(operator),
        segments,
        dims,
        st.just(dtype),
        st.sampled_from(["float32", "float32", "bfloat16"]),
        st.fixed_dictionaries({name: st.sampled_from(words) for name, words in regime.items()}),
        st.fixed_dictionaries({"scale": st.sampled_from(SCALES), **options}),
        strategies.layouts(heads=True, fused=True) if layouts is None else layouts,
        st.just(scale.slots),
        strategies.PAD_SLOTS,
        strategies.CHOICES,
        strategies.SEEDS,
    )


def _case(operator: str, sequences: tuple[Segment, ...], dims: dict[str, int], *rest: Any) -> Case:
    dims = {"H": dims["H"], "HV": dims["H"] * dims["R"], "K": dims["K"], "V": dims["V"]}
    names = ("dtype", "state_dtype", "regime", "options", "layout", "pool_slots", "pad_slot", "choice", "seed")
    return Case(operator=operator, sequences=sequences, dims=dims, **dict(zip(names, rest, strict=True)))


def draws(case: Case, device: torch.device) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """(normal, uniform): each takes a shape and gives float32, in turns from the one generator of the case."""
    draw = base.generator(case, device)
    return partial(torch.randn, generator=draw, device=device), partial(torch.rand, generator=draw, device=device)


def draw_keys(kind: str, normal: Callable[..., Tensor], rows: int, heads: int, dim: int) -> Tensor:
    """[rows, heads, dim], not normalised. The orthogonal key of row t is unit vector t, counted round."""
    draw = normal(rows, heads, dim)
    if kind == "zero":
        return torch.zeros_like(draw)
    if kind == "correlated":
        return draw * 0.1 + draw[:1, :1]
    if kind == "orthogonal":
        numbers = torch.arange(rows, device=draw.device) % dim
        return torch.eye(dim, device=draw.device)[numbers][:, None].expand(rows, heads, dim)
    return draw


def draw_decay_rates(
    kind: str, normal: Callable[..., Tensor], uniform: Callable[..., Tensor], rows: int, heads: int
) -> Tensor:
    """-log decay for each row and head; in the mixed regime every head has a rate of its own, decades apart."""
    if kind == "none":
        return torch.zeros_like(uniform(rows, heads))
    if kind == "underflow":
        return 50.0 + 100.0 * uniform(rows, heads)
    if kind == "slow":
        return 0.01 * uniform(rows, heads)
    if kind == "published":
        # A ~ U(0, 16), dt_bias = 1: a head forgets within a token or two.
        return 16.0 * uniform(1, heads) * torch.nn.functional.softplus(1.0 + normal(rows, heads))
    if kind == "varied":
        # One token in ten forgets everything, those between hardly anything: sums over a chunk lose digits.
        forgets = uniform(rows, heads) < 0.1
        return torch.where(forgets, 50.0 * 20.0 ** uniform(rows, heads), 0.01 * uniform(rows, heads))
    rates = 10.0 ** (uniform(1, heads) * 5 - 4)
    return rates * (0.5 + uniform(rows, heads))
