"""The references against torch functions that other projects publish.

Those compute in float32, so agreement is to float32; conventions differ (state as [B, HV, K, V], batches instead of
packed sequences, norms outside) and are translated here.
"""

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from references.causal_conv import conv_prefill, conv_update
from references.gated_norm import gated_rmsnorm
from references.gdn import gates, gdn_decode, gdn_recurrence, l2norm

# Development dependencies, with the reason shown when one is missing. CI requires that none of these tests is skipped.
PUBLISHED = {
    "transformers.models.qwen3_next.modeling_qwen3_next": "transformers (a development dependency) is not installed",
    "fla.ops.gated_delta_rule.naive": "fla-core and einops (development dependencies) are not installed",
}
TRANSFORMERS, FLA = PUBLISHED
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def published(module: str) -> ModuleType:
    pytest.importorskip(module.partition(".")[0], reason=PUBLISHED[module])
    return importlib.import_module(module)


def torch_only(function: Callable) -> Callable:
    """What transformers would run without a kernel library: its wrapper prefers one that happens to be installed."""
    plain = inspect.unwrap(function)
    assert plain.__module__ == TRANSFORMERS, f"{function} no longer wraps a torch function, but {plain}"
    return plain


@st.composite
def batches(draw: st.DrawFn) -> dict:
    """B sequences of one length L as [B, L, ...] float32 tensors, with initial states [B, HV, V, K] or None."""
    batch, length = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 17, 63, 64, 65, 80]))
    heads, ratio = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    key_dim, value_dim = draw(st.sampled_from([(4, 6), (8, 3), (16, 16)]))
    resumed = draw(st.booleans())
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    value_heads = heads * ratio
    rate = 10 ** (4 * torch.rand(value_heads, generator=random) - 4)
    return {
        "q": torch.randn(batch, length, heads, key_dim, generator=random),
        "k": torch.randn(batch, length, heads, key_dim, generator=random),
        "v": torch.randn(batch, length, value_heads, value_dim, generator=random),
        "g": -rate * (0.5 + torch.rand(batch, length, value_heads, generator=random)),
        "beta": torch.rand(batch, length, value_heads, generator=random),
        "state": torch.randn(batch, value_heads, value_dim, key_dim, generator=random) if resumed else None,
    }


def reference(case: dict) -> tuple[Tensor, Tensor]:
    """(o [B, L, HV, V], state [B, HV, V, K]) from the packed reference, with a slot order of its own."""
    v, state = case["v"], case["state"]
    batch, length, value_heads, value_dim = v.shape
    slots = torch.arange(batch - 1, -1, -1)
    pool = torch.full((batch, value_heads, value_dim, case["k"].shape[-1]), float("nan"))
    if state is not None:
        pool[slots] = state
    o = gdn_recurrence(
        *(case[name].flatten(0, 1) for name in ("q", "k", "v")),
        g=case["g"].flatten(0, 1), beta=case["beta"].flatten(0, 1), state=pool,
        cu_seqlens=torch.arange(batch + 1) * length, state_indices=slots,
        has_initial_state=torch.full((batch,), state is not None),
    )  # fmt: skip
    return o.unflatten(0, (batch, length)), pool[slots]


def key_first(state: Tensor | None) -> Tensor | None:
    return None if state is None else state.transpose(-1, -2).contiguous()


@pytest.mark.parametrize("name", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
def test_recurrence_equals_transformers(name: str) -> None:
    theirs = torch_only(getattr(published(TRANSFORMERS), name))

    @settings(deadline=None, max_examples=25)
    @given(batches())
    def compare(case: dict) -> None:
        o, state = reference(case)
        got, got_state = theirs(
            case["q"], case["k"], case["v"], case["g"], case["beta"],
            initial_state=key_first(case["state"]), output_final_state=True, use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        torch.testing.assert_close(o, got, **CLOSE)
        torch.testing.assert_close(key_first(state), got_state, **CLOSE)

    compare()


@pytest.mark.parametrize("name", ["naive_recurrent_gated_delta_rule", "naive_chunk_gated_delta_rule"])
def test_recurrence_equals_flash_linear_attention(name: str) -> None:
    theirs = getattr(published(FLA), name)

    @settings(deadline=None, max_examples=25)
    @given(batches())
    def compare(case: dict) -> None:
        o, state = reference(case)
        ratio = case["v"].shape[2] // case["k"].shape[2]
        q, k = (l2norm(case[name]).repeat_interleave(ratio, dim=2) for name in ("q", "k"))
        got, got_state = theirs(
            q=q, k=k, v=case["v"], g=case["g"], beta=case["beta"],
            initial_state=key_first(case["state"]), output_final_state=True,
        )  # fmt: skip
        torch.testing.assert_close(o, got, **CLOSE)
        torch.testing.assert_close(key_first(state), got_state, **CLOSE)

    compare()


def test_decode_with_gates_equals_transformers() -> None:
    theirs = torch_only(published(TRANSFORMERS).torch_recurrent_gated_delta_rule)
    random = torch.Generator().manual_seed(7)
    rows, heads, value_heads, key_dim, value_dim = 5, 2, 6, 8, 12
    q, k = torch.randn(2, rows, heads, key_dim, generator=random)
    v = torch.randn(rows, value_heads, value_dim, generator=random)
    a, b = 6 * torch.randn(2, rows, value_heads, generator=random)
    A_log, dt_bias = torch.randn(2, value_heads, generator=random)
    pool = torch.randn(rows, value_heads, value_dim, key_dim, generator=random)
    slots = torch.randperm(rows, generator=random)
    g = -A_log.exp() * F.softplus(a + dt_bias)  # as the published layer computes it
    want, want_state = theirs(
        q[:, None], k[:, None], v[:, None], g[:, None], b.sigmoid()[:, None],
        initial_state=key_first(pool[slots]), output_final_state=True, use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    torch.testing.assert_close(gates(a, b, A_log, dt_bias)[0].float(), g, **CLOSE)
    got = gdn_decode(q, k, v, a=a, b=b, A_log=A_log, dt_bias=dt_bias, state=pool, state_indices=slots)
    torch.testing.assert_close(got, want[:, 0], **CLOSE)
    torch.testing.assert_close(key_first(pool[slots]), want_state, **CLOSE)


@pytest.mark.parametrize("activation", ["silu", None])
def test_convolution_equals_transformers(activation: str | None) -> None:
    """A prompt of L tokens, then three updates; their cache is their own padding of the prompt."""
    modeling = published(TRANSFORMERS)
    prefill, update = torch_only(modeling.causal_conv1d_fn), torch_only(modeling.causal_conv1d_update)

    @settings(deadline=None, max_examples=25)
    @given(st.integers(1, 9), st.integers(1, 7), st.integers(2, 5), st.booleans(), st.integers(0, 2**16))
    def compare(length: int, channels: int, width: int, with_bias: bool, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(length + 3, channels, generator=random)
        weight = torch.randn(channels, width, generator=random)
        bias = torch.randn(channels, generator=random) if with_bias else None
        pool = torch.full((3, channels, width - 1), float("nan"))
        slot = {"conv_state": pool, "state_indices": torch.tensor([1])}
        got = conv_prefill(
            x[:length], weight, bias=bias, cu_seqlens=torch.tensor([0, length]),
            has_initial_state=torch.tensor([False]), activation=activation, **slot,
        )  # fmt: skip
        want = prefill(x[:length].T[None], weight, bias=bias, activation=activation)[0].T
        torch.testing.assert_close(got, want, **CLOSE)
        cache = F.pad(x[:length].T[None], (width, 0))[..., -(width - 1) :].clone()
        for t in range(length, length + 3):
            got = conv_update(x[t : t + 1], weight, bias=bias, activation=activation, **slot)
            want = update(x[t : t + 1].T[None], cache, weight, bias=bias, activation=activation)[0].T
            torch.testing.assert_close(got, want, **CLOSE)
        assert torch.equal(pool[1], cache[0])

    compare()


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_gated_norm_equals_transformers(eps: float) -> None:
    """In float32: with half precision theirs rounds the normalised row and its product with the weight as well."""
    modeling = published(TRANSFORMERS)

    @settings(deadline=None, max_examples=25)
    @given(
        st.integers(0, 5), st.integers(1, 4), st.integers(1, 40), st.sampled_from([1.0, 1e-3]), st.integers(0, 2**16)
    )
    def compare(tokens: int, heads: int, width: int, amplitude: float, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        x, z = (
            torch.randn(2, tokens, heads, width, generator=random) * torch.tensor([amplitude, 3.0])[:, None, None, None]
        )
        weight = torch.randn(width, generator=random)
        theirs = modeling.Qwen3NextRMSNormGated(width, eps=eps)
        theirs.weight.data.copy_(weight)
        with torch.no_grad():
            # They are called with the heads of all tokens as rows of one matrix.
            want = theirs(x.reshape(-1, width), z.reshape(-1, width)).reshape(x.shape)
        torch.testing.assert_close(gated_rmsnorm(x, z, weight, eps=eps), want, **CLOSE)

    compare()
