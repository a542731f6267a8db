"""What the two convolution operators share: how their cases are drawn and their contents made."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness import strategies
from harness.batch import Batch
from harness.case import Case, Segment
from harness.operators.base import AMPLITUDES, generator, only_resumed, torch_dtype
from harness.strategies import Scale

WIDTHS = st.sampled_from([4, 4, 4, 2, 3])


def conv_cases(
    operator: str, scale: Scale, dtype: str, segments: SearchStrategy[tuple[Segment, ...]]
) -> SearchStrategy[Case]:
    states = st.sampled_from([dtype, dtype, "float32"])
    return st.builds(
        Case,
        operator=st.just(operator),
        sequences=segments,
        dims=st.fixed_dictionaries({"D": st.sampled_from(scale.channels), "W": WIDTHS}),
        dtype=st.just(dtype),
        state_dtype=states,
        regime=st.fixed_dictionaries({"amplitude": st.sampled_from(["unit", "unit", "large", "tiny"])}),
        options=st.fixed_dictionaries({"activation": st.sampled_from(["silu", "silu", None]), "bias": st.booleans()}),
        layout=strategies.layouts(heads=False, fused=False),
        pool_slots=st.just(scale.slots),
        pad_slot=strategies.PAD_SLOTS,
        choice=strategies.CHOICES,
        seed=strategies.SEEDS,
    )


def conv_batch(case: Case, device: torch.device) -> Batch:
    """x, states ~ amplitude x N(0, 1); taps ~ N(0, 1) scaled apart, so that no two taps or channels can be swapped unseen."""
    draw = generator(case, device)
    dtype, channels, width = torch_dtype(case.dtype), case.dims["D"], case.dims["W"]
    amplitude = AMPLITUDES[case.regime["amplitude"]]

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, device=device) * scale

    weight = normal(channels, width) * torch.linspace(0.4, 1.0, width, device=device)
    shared = {"weight": weight.to(dtype)}
    if case.options["bias"]:
        shared["bias"] = normal(channels).to(dtype)
    x = normal(case.tokens, channels, scale=amplitude).to(dtype)
    states = normal(len(case.sequences), channels, width - 1, scale=amplitude).to(torch_dtype(case.state_dtype))
    return Batch(
        case=case,
        segments=case.sequences,
        tokens=tuple({"x": part} for part in x.split(case.lengths)),
        states=only_resumed(case.sequences, states),
        shared=shared,
        layout=case.layout,
        pool_slots=case.pool_slots,
    )


def conv_coverage(case: Case) -> dict[str, list[str | int]]:
    return {
        "width": [case.dims["W"]],
        "channels": [case.dims["D"]],
        "amplitude": [case.regime["amplitude"]],
        "activation": [str(case.options["activation"])],
        "state dtype": [case.state_dtype],
        "sequence kind": [s.kind for s in case.sequences],
        "layout": ["dense" if case.layout.dense else "strided"],
    }
