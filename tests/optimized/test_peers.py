"""The adapters keep our contract around libraries that keep another one: stand-ins for the libraries, with their conventions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optimized.peers import fla, flashinfer, packed, sglang
from references.gdn import gdn_decode, gdn_recurrence

H, HV, K, V = 1, 2, 3, 5
SLOTS = 6


def _prefill_inputs(
    lengths: list[int], slots: list[int], resumed: list[bool], beyond: int = 0, dims: tuple[int, int] = (K, V)
) -> dict[str, Any]:
    torch.manual_seed(0)
    key_dim, value_dim = dims
    tokens = sum(lengths) + beyond
    return {
        "q": torch.randn(tokens, H, key_dim),
        "k": torch.randn(tokens, H, key_dim),
        "v": torch.randn(tokens, HV, value_dim),
        "g": -torch.rand(tokens, HV),
        "beta": torch.rand(tokens, HV),
        "state": torch.randn(SLOTS, HV, value_dim, key_dim),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "state_indices": torch.tensor(slots, dtype=torch.int32),
        "has_initial_state": torch.tensor(resumed, dtype=torch.bool),
    }


BATCHES = {
    "mixed": _prefill_inputs([4, 0, 2, 0, 3], [3, 1, -1, 4, 0], [True, False, True, True, False], beyond=2),
    "nobody active": _prefill_inputs([2, 1], [-1, -5], [True, False]),
    "nothing but empty": _prefill_inputs([0, 0], [2, 5], [True, False], beyond=1),
    "no token": _prefill_inputs([0, 0], [2, 5], [True, False]),
    "no sequence": _prefill_inputs([], [], [], beyond=3),
}


def _recurrence(q: Any, k: Any, v: Any, *, g: Any, beta: Any, states: Any, starts: Any, scale: float) -> torch.Tensor:
    """All sequences resumed, sequence n in row n; undefined output where no sequence is."""
    count = states.shape[0]
    o = gdn_recurrence(
        q,
        k,
        v,
        g=g,
        beta=beta,
        state=states,
        cu_seqlens=starts,
        state_indices=torch.arange(count),
        has_initial_state=torch.ones(count, dtype=torch.bool),
        scale=scale,
        compute_dtype=torch.float32,
    )
    o[int(starts[-1]) :] = torch.nan
    return o


def _sglang_chunk(q, k, v, g, beta, scale, initial_state, initial_state_indices, cu_seqlens, use_qk_l2norm_in_kernel):
    assert use_qk_l2norm_in_kernel
    assert initial_state.is_contiguous()
    # An empty sequence shifts the chunks of all that follow.
    assert (cu_seqlens.diff() > 0).all()
    assert (initial_state_indices >= 0).all()
    rows = initial_state[initial_state_indices.long()]
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    o = _recurrence(q[0], k[0], v[0], g=g[0], beta=beta[0], states=rows, starts=cu_seqlens, scale=scale)
    initial_state[initial_state_indices.long()] = rows
    return o.unsqueeze(0), None, None


def _fla_chunk(q, k, v, g, beta, **rest):
    assert rest["use_qk_l2norm_in_kernel"]
    assert rest["output_final_state"]
    assert rest["state_v_first"]
    rows = rest["initial_state"].clone()
    scale = k.shape[-1] ** -0.5 if rest["scale"] is None else rest["scale"]
    o = _recurrence(q[0], k[0], v[0], g=g[0], beta=beta[0], states=rows, starts=rest["cu_seqlens"], scale=scale)
    return o.unsqueeze(0), rows


def _fla_recurrent(q, k, v, g, **rest):
    assert rest["use_gate_in_kernel"]
    assert rest["use_beta_sigmoid_in_kernel"]
    rows = rest["initial_state"].clone()
    o = gdn_decode(
        q.squeeze(1),
        k.squeeze(1),
        v.squeeze(1),
        a=g.squeeze(1),
        b=rest["beta"].squeeze(1),
        A_log=rest["A_log"],
        dt_bias=rest["dt_bias"],
        state=rows,
        state_indices=torch.arange(rows.shape[0]),
        scale=rest["scale"],
        compute_dtype=torch.float32,
    )
    return o.unsqueeze(1), rows


def _flashinfer_chunk(q, k, v, g, beta, **rest):
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] == 128
    assert rest["use_qk_l2norm_in_kernel"]
    assert rest["output_final_state"]
    slots = rest["state_indices"]
    slots = torch.arange(len(rest["initial_state"])) if slots is None else slots.long()
    rows = rest["initial_state"][slots]
    starts = rest["cu_seqlens"]
    o = _recurrence(q, k, v, g=g.log(), beta=beta, states=rows, starts=starts, scale=rest["scale"])
    filled = starts.diff() > 0
    rest["output_state"][slots[filled]] = rows[filled]
    return o, rest["output_state"]


def _flashinfer_pretranspose(q, k, v, state, A_log, a, dt_bias, b, **rest):
    assert state is None
    assert q.shape[-1] == v.shape[-1] == 128
    assert (rest["initial_state_indices"] >= 0).all()
    o = gdn_decode(
        q.squeeze(1),
        k.squeeze(1),
        v.squeeze(1),
        a=a.squeeze(1),
        b=b.squeeze(1),
        A_log=A_log,
        dt_bias=dt_bias,
        state=rest["initial_state"],
        state_indices=rest["initial_state_indices"],
        scale=rest["scale"],
        compute_dtype=torch.float32,
    )
    return o.unsqueeze(1), rest["initial_state"]


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang, "_chunk", lambda: SimpleNamespace(chunk_gated_delta_rule=_sglang_chunk))
    library = SimpleNamespace(chunk_gated_delta_rule=_fla_chunk, fused_recurrent_gated_delta_rule=_fla_recurrent)
    monkeypatch.setattr(fla, "_library", lambda: library)
    prefill = SimpleNamespace(chunk_gated_delta_rule=_flashinfer_chunk)
    monkeypatch.setattr(flashinfer, "_prefill", lambda: prefill)
    decode = SimpleNamespace(gated_delta_rule_decode_pretranspose=_flashinfer_pretranspose)
    monkeypatch.setattr(flashinfer, "_decode", lambda: decode)


def _same_as_reference(function: Any, reference: Any, inputs: dict[str, Any], **more: Any) -> None:
    expected_state, state = inputs["state"].clone(), inputs["state"].clone()
    expected = reference(**inputs | {"state": expected_state}, compute_dtype=torch.float32)
    o = function(**inputs | {"state": state}, **more)
    assert o.dtype == expected.dtype
    torch.testing.assert_close(o, expected)
    torch.testing.assert_close(state, expected_state, equal_nan=True)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("peer", [sglang, fla, flashinfer])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_prefill_keeps_the_contract(peer: Any, batch: str, scale: float | None) -> None:
    inputs = BATCHES[batch]
    state = inputs["state"].clone()
    # What a fresh sequence finds in its slot, and what nobody reads, may be anything.
    read = inputs["state_indices"][inputs["has_initial_state"] & (inputs["state_indices"] >= 0)].long()
    unread = torch.ones(SLOTS, dtype=torch.bool)
    unread[read] = False
    state[unread] = torch.nan
    _same_as_reference(peer.gdn_prefill, gdn_recurrence, inputs | {"state": state, "scale": scale})


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("peer", [sglang, fla, flashinfer])
def test_prefill_of_resumed_sequences(peer: Any) -> None:
    inputs = _prefill_inputs([4, 1, 2], [3, 1, 5], [True, True, True], dims=(128, 128))
    _same_as_reference(peer.gdn_prefill, gdn_recurrence, inputs, all_resumed=True)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("peer", [fla, flashinfer])
@pytest.mark.parametrize("slots", [[2, -1, 0, 5], [-1, -1, -3, -1], [4, 3, 2, 1]])
def test_decode_keeps_the_contract(peer: Any, slots: list[int]) -> None:
    torch.manual_seed(0)
    rows = len(slots)
    inputs = {
        "q": torch.randn(rows, H, K),
        "k": torch.randn(rows, H, K),
        "v": torch.randn(rows, HV, V),
        "a": torch.randn(rows, HV),
        "b": torch.randn(rows, HV),
        "A_log": torch.rand(HV),
        "dt_bias": torch.randn(HV),
        "state": torch.randn(SLOTS, HV, V, K),
        "state_indices": torch.tensor(slots, dtype=torch.int32),
    }
    _same_as_reference(peer.gdn_decode, gdn_decode, inputs)


def test_inactive_and_untouched_slots_keep_their_bits() -> None:
    inputs = BATCHES["mixed"]
    state = inputs["state"].clone()
    state[2], state[5] = torch.nan, -0.0
    before = state.clone()
    names = ("v", "cu_seqlens", "state_indices", "has_initial_state")
    packed.call(lambda rows: (inputs["v"], rows + 1), state=state, **{name: inputs[name] for name in names})
    for slot in (2, 5):
        assert torch.equal(state[slot].view(torch.int32), before[slot].view(torch.int32))
    assert torch.equal(state[3], before[3] + 1)
