"""Shapes of the published models (spec 6.5), as cases whose kernels `harness.compiling` compiles.

All of them have K = V = 128, a convolution of width 4, and 16 key heads; they differ in the value heads. What a kernel is
compiled for depends on heads, dims, dtypes and strides, hardly on the numbers of tokens, so a batch is a few sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.case import Case, Layout, Segment
from harness.strategies import Scale

HEAD_DIM = 128
WIDTH = 4
#: (H, HV): Qwen3.5-0.8B and 2B; Qwen3-Next-80B-A3B, Qwen3.5-4B, 9B and 35B-A3B; 27B; 122B-A10B and 397B-A17B.
HEADS = ((16, 16), (16, 32), (16, 48), (16, 64))
#: The heads of most of the models: dtypes and layouts are varied on these.
COMMON = HEADS[1]
#: Nothing here is a power of two or a multiple of 16.
ODD = {"H": 2, "HV": 6, "K": 20, "V": 36}


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts: experts, k, the intermediate and the hidden size; which of the experts one GPU holds."""

    experts: int
    top_k: int
    size: int
    hidden: int
    first: int
    local: int

    def shard(self, *, experts: int = 1, columns: int = 1, number: int = 0) -> Mixture:
        """What GPU ``number`` of so many holds, split by experts or by columns of the intermediate."""
        local = self.local // experts
        return replace(self, size=self.size // columns, first=local * (number % experts), local=local)


#: Qwen3.5-35B-A3B and 122B-A10B's experts, and Qwen3-Next-80B-A3B's.
MIXTURES = (Mixture(256, 8, 512, 2048, 0, 256), Mixture(512, 10, 512, 2048, 0, 512))
#: Tokens of a call: one, a few, and so many that most experts have a tile or several.
MIXTURE_TOKENS = (1, 16, 256, 4096)

_PROMPTS = (Segment(65, "fresh", 2), Segment(1, "resumed", 0), Segment(7, "resumed", 1))
_DECODES = (Segment(1, "resumed", 2), Segment(1, "resumed", 0), Segment(1, "resumed", 1))


#: What one GPU of 16, 8, 4, 2 or 1 holds of a layer: (H, HV), the smallest first.
SHARDS = tuple(dict.fromkeys((heads // n, value_heads // n) for n in (16, 8, 4, 2, 1) for heads, value_heads in HEADS))
#: A pool of a whole model's heads for hundreds of sequences is a gigabyte, which is nothing to draw a case from.
FEW = 5
SLOTS = 16


def shards() -> SearchStrategy[dict[str, int]]:
    """H, R = HV / H, K and V of a published model, whole or split over GPUs."""
    dims = [{"H": h, "R": hv // h, "K": HEAD_DIM, "V": HEAD_DIM} for h, hv in SHARDS]
    return st.sampled_from(dims)


def layouts() -> SearchStrategy[Layout]:
    """Memory as engines have it: q, k and v side by side or apart. Odd pitches and bases have properties of their own."""
    return st.builds(Layout, fused=st.booleans(), wide_indices=st.booleans())


def few_sequences(scale: Scale) -> Scale:
    """As large as ``scale`` otherwise."""
    return replace(scale, max_sequences=FEW, slots=SLOTS, max_tokens=min(scale.max_tokens, 2000))


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


def mixtures(
    groups: SearchStrategy[tuple[Segment, ...]], dtype: str, make: Callable[..., Case]
) -> SearchStrategy[Case]:
    """Of ``make`` (`Moe.published_case`): split over 8, 16 or 32 GPUs by experts, over 4 or 8 by columns; the smaller one whole.

    All of the larger one's weights, and their copies in float64, would fill a GPU.
    """
    splits = st.sampled_from([{"experts": 32}, {"experts": 16}, {"experts": 8}, {"columns": 8}, {"columns": 4}])
    shards = st.builds(
        lambda whole, split, number: whole.shard(**split, number=number),
        st.sampled_from(MIXTURES),
        splits,
        st.integers(0, 31),
    )
    return st.builds(
        make,
        st.one_of(shards, shards, shards, st.just(MIXTURES[0])),
        groups,
        st.just(dtype),
        choice=st.integers(0, 2**16 - 1),
        seed=st.integers(0, 2**31 - 1),
    )


def compiled_mixtures() -> Iterator[tuple[Mixture, int]]:
    """Shapes and numbers of tokens. Of the experts a few, as what is compiled does not depend on how many there are weights of."""
    for whole in MIXTURES:
        few = replace(whole, local=8)
        for tokens in MIXTURE_TOKENS:
            yield few, tokens
    yield replace(MIXTURES[0].shard(columns=4), local=8), 64
    yield Mixture(12, 3, 36, 40, 0, 12), 7


def routings() -> SearchStrategy[tuple[dict[str, int], dict[str, Any]]]:
    """Experts and k of the published models; their way to route first, and DeepSeek-V3's of 256 experts in 8 groups."""
    ways = [
        (m.experts, m.top_k, method, 1, 1)
        for m in MIXTURES
        for method in ("renormalize", "default", "renormalize_naive")
    ]
    ways.append((256, 8, "deepseek_v3", 8, 4))
    return st.sampled_from(ways).map(_way)


def _way(way: tuple[int, int, str, int, int]) -> tuple[dict[str, int], dict[str, Any]]:
    experts, top_k, method, groups, kept = way
    grouped = method == "deepseek_v3"
    options = {
        "method": method,
        "bias": "small" if grouped else None,
        "n_group": groups,
        "topk_group": kept,
        "scaling": 2.5 if grouped else 1.0,
    }
    return {"E": experts, "k": top_k}, options


def routers(operator: str, dtype: str) -> Iterator[Case]:
    """Every way of `routings` once, few and many tokens; an odd number of experts, all of them chosen."""
    regime = {"logits": "random", "load": "random"}
    for mixture in MIXTURES:
        dims, options = _way((mixture.experts, mixture.top_k, "renormalize", 1, 1))
        for tokens in (1, 4096):
            yield Case(operator, (Segment(tokens),), dims, dtype, dtype, regime, options)
    dims, options = _way((256, 8, "deepseek_v3", 8, 4))
    yield Case(operator, (Segment(16),), dims, dtype, dtype, regime, options)
    dims, options = _way((7, 7, "default", 1, 1))
    yield Case(operator, (Segment(16),), dims, dtype, dtype, regime, options)
