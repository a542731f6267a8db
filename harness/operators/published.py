"""Shapes of the published models (spec 6.5), as cases whose kernels `harness.compiling` compiles.

All of them have K = V = 128, a convolution of width 4, and 16 key heads; they differ in the value heads. What a kernel is
compiled for depends on heads, dims, dtypes and strides, hardly on the numbers of tokens, so a batch is a few sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.case import Case, Layout, Segment

HEAD_DIM = 128
WIDTH = 4
#: (H, HV): Qwen3.5-0.8B and 2B; Qwen3-Next-80B-A3B, Qwen3.5-4B, 9B and 35B-A3B; 27B; 122B-A10B and 397B-A17B.
HEADS = ((16, 16), (16, 32), (16, 48), (16, 64))
#: The heads of most of the models: dtypes and layouts are varied on these.
COMMON = HEADS[1]
#: Nothing here is a power of two or a multiple of 16.
ODD = {"H": 2, "HV": 6, "K": 20, "V": 36}

_PROMPTS = (Segment(65, "fresh", 2), Segment(1, "resumed", 0), Segment(7, "resumed", 1))
_DECODES = (Segment(1, "resumed", 2), Segment(1, "resumed", 0), Segment(1, "resumed", 1))


def channels(heads: int, value_heads: int) -> int:
    """D of the convolution: q, k and v side by side."""
    return (2 * heads + value_heads) * HEAD_DIM


def delta_rule(
    operator: str, dtype: str, *, decode: bool, regime: Mapping[str, str], options: Mapping[str, Any]
) -> Iterator[Case]:
    """All ratios HV / H with a float32 state; on the common one, every other state dtype and int64 indices; an odd shape."""

    def case(
        dims: Mapping[str, int],
        state: str = "float32",
        layout: Layout = Layout(fused=True),  # noqa: B008 - frozen
    ) -> Case:
        sequences = _DECODES if decode else _PROMPTS
        return Case(operator, sequences, dims, dtype, state, regime, options, layout, pool_slots=3)

    def dims(heads: int, value_heads: int) -> dict[str, int]:
        return {"H": heads, "HV": value_heads, "K": HEAD_DIM, "V": HEAD_DIM}

    for pair in HEADS:
        yield case(dims(*pair))
    for state in ("float16", "bfloat16"):
        yield case(dims(*COMMON), state)
    yield case(dims(*COMMON), layout=Layout(fused=True, wide_indices=True))
    yield case(ODD, layout=Layout())


def convolution(operator: str, dtype: str, *, decode: bool) -> Iterator[Case]:
    """Every D, a state of the inputs' dtype and of float32, int64 indices; an odd shape without bias and activation."""

    def case(size: int, state: str = dtype, *, wide: bool = False) -> Case:
        plain = {"activation": "silu", "bias": True}
        return Case(
            operator,
            _DECODES if decode else _PROMPTS,
            {"D": size, "W": WIDTH},
            dtype,
            state,
            {"amplitude": "unit"},
            plain,
            Layout(wide_indices=wide),
            pool_slots=3,
        )

    for pair in HEADS:
        yield case(channels(*pair))
    if dtype != "float32":
        yield case(channels(*COMMON), "float32")
    yield case(channels(*COMMON), wide=True)
    yield case(37).with_(dims={"D": 37, "W": 3}, options={"activation": None, "bias": False})


def norm(operator: str, dtype: str, *, regime: Mapping[str, str], options: Mapping[str, Any]) -> Iterator[Case]:
    """Value heads of every model; weights of the inputs' dtype and of float32; an odd shape."""
    tokens = tuple(Segment(segment.length) for segment in _PROMPTS)
    whole = dict.fromkeys(value_heads for _, value_heads in HEADS)
    for size in whole:
        dims = {"HV": size, "V": HEAD_DIM}
        yield Case(operator, tokens, dims, dtype, dtype, regime, options, Layout(fused=True))
    common = Case(operator, tokens, {"HV": COMMON[1], "V": HEAD_DIM}, dtype, dtype, regime, options, Layout(fused=True))
    yield common.with_(options={**options, "float32_weight": True})
    yield common.with_(dims={"HV": ODD["HV"], "V": ODD["V"]}, layout=Layout())
