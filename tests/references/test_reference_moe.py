"""The mixture of experts against a loop over tokens, against transformers, and the sync-free form against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimized import moe as optimized
from references.moe import METHODS, moe, moe_routing


@st.composite
def cases(draw: st.DrawFn) -> dict:
    experts = draw(st.integers(1, 9))
    tokens, hidden, size = draw(st.integers(0, 7)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    logits = 2 * torch.randn(tokens, experts, generator=random, dtype=torch.float64)
    if draw(st.booleans()):
        # Few values: many ties.
        logits = logits.round()
    return {
        "x": torch.randn(tokens, hidden, generator=random, dtype=torch.float64),
        "router_logits": logits,
        "w_gate_up": torch.randn(experts, 2 * size, hidden, generator=random, dtype=torch.float64),
        "w_down": torch.randn(experts, hidden, size, generator=random, dtype=torch.float64),
        "top_k": draw(st.integers(1, experts)),
        "method": draw(st.sampled_from(METHODS)),
    }


def chosen_by_hand(logits: list[float], top_k: int, method: str) -> dict[int, float]:
    """Pick the best remaining expert k times, the first of equal ones; weights from the definition of softmax."""
    remaining, picked = list(range(len(logits))), []
    for _ in range(top_k):
        best = remaining[0]
        for expert in remaining:
            if logits[expert] > logits[best]:
                best = expert
        remaining.remove(best)
        picked.append(best)
    over = picked if method == "renormalize" else range(len(logits))
    total = sum(math.exp(logits[expert]) for expert in over)
    return {expert: math.exp(logits[expert]) / total for expert in picked}


def by_hand(case: dict) -> Tensor:
    """Token by token, number by number."""
    x, w_gate_up, w_down = case["x"].tolist(), case["w_gate_up"].tolist(), case["w_down"].tolist()
    size = len(w_gate_up[0]) // 2
    y = torch.zeros_like(case["x"])
    for t, token in enumerate(x):
        weights = chosen_by_hand(case["router_logits"][t].tolist(), case["top_k"], case["method"])
        for expert, weight in weights.items():
            rows = [sum(w * value for w, value in zip(row, token, strict=True)) for row in w_gate_up[expert]]
            hidden = [rows[i] / (1 + math.exp(-rows[i])) * rows[size + i] for i in range(size)]
            for j, row in enumerate(w_down[expert]):
                y[t, j] += weight * sum(w * value for w, value in zip(row, hidden, strict=True))
    return y


@given(cases())
@settings(max_examples=60, deadline=None)
def test_the_loop_over_tokens_agrees(case: dict) -> None:
    torch.testing.assert_close(moe(**case), by_hand(case), rtol=1e-12, atol=1e-12)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_routing_agrees_in_order_too(case: dict) -> None:
    ids, weights = moe_routing(case["router_logits"], top_k=case["top_k"], method=case["method"])
    assert ids.dtype == torch.int32
    for row, logits in enumerate(case["router_logits"].tolist()):
        expected = chosen_by_hand(logits, case["top_k"], case["method"])
        assert ids[row].tolist() == list(expected)
        assert weights[row].tolist() == pytest.approx(list(expected.values()), rel=1e-12)


@given(st.integers(2, 600), st.data())
@settings(max_examples=20, deadline=None)
def test_equal_logits_go_to_the_lowest_ids(experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    for route in (moe_routing, optimized.moe_routing):
        ids, _ = route(torch.zeros(3, experts), top_k=top_k, method="renormalize")
        assert ids.tolist() == [list(range(top_k))] * 3


def test_a_bias_takes_part_in_the_choice_alone() -> None:
    logits, bias = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([5.0, 0.0, 0.0])
    for route in (moe_routing, optimized.moe_routing):
        ids, weights = route(logits, top_k=2, method="renormalize", bias=bias)
        assert ids.tolist() == [[0, 2]]
        expected = torch.softmax(torch.tensor([0.0, 2.0]), 0)
        torch.testing.assert_close(weights[0].float(), expected, rtol=1e-6, atol=0)


@given(cases())
@example(
    # An expert that was not asked returns infinity.
    {
        "x": torch.full((1, 1), 1.0, dtype=torch.float64),
        "router_logits": torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        "w_gate_up": torch.tensor([[[1.0], [1.0]], [[1e30], [1e30]]], dtype=torch.float64),
        "w_down": torch.ones(2, 1, 1, dtype=torch.float64),
        "top_k": 1,
        "method": "renormalize",
    }
)
@settings(max_examples=60, deadline=None)
def test_the_sync_free_form_agrees(case: dict) -> None:
    """In float32, whose ties are those of the rounded logits: both are given the same numbers."""
    rounded = {name: value.float() if isinstance(value, Tensor) else value for name, value in case.items()}
    torch.testing.assert_close(optimized.moe(**rounded), moe(**rounded), rtol=1e-4, atol=1e-5)


def test_the_sync_free_form_takes_tokens_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    shapes = {"x": (7, 4), "router_logits": (7, 3), "w_gate_up": (3, 6, 4), "w_down": (3, 4, 3)}
    case = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    expected = moe(**case, top_k=2, method="default")
    monkeypatch.setattr(optimized, "_MOST_ELEMENTS", 3 * 6 * 3)
    torch.testing.assert_close(optimized.moe(**case, top_k=2, method="default"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"method": "sigmoid"}, {"top_k": 0}, {"top_k": 4}])
def test_what_cannot_be_is_refused(wrong: dict) -> None:
    good = {"top_k": 2, "method": "renormalize"}
    (name,) = wrong
    for route in (moe_routing, optimized.moe_routing):
        with pytest.raises(ValueError, match=name):
            route(torch.zeros(2, 3), **good | wrong)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_transformers_agrees(norm_topk_prob: bool) -> None:
    module = pytest.importorskip(
        "transformers.models.qwen3_next.modeling_qwen3_next",
        reason="transformers (a development dependency) is not installed",
    )
    config = module.Qwen3NextConfig(
        hidden_size=12, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=10, norm_topk_prob=norm_topk_prob
    )
    config._experts_implementation = "eager"
    router, experts = module.Qwen3NextTopKRouter(config), module.Qwen3NextExperts(config)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (*router.parameters(), *experts.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=random))
        x = torch.randn(20, 12, generator=random)
        logits, weights, ids = router(x)
        expected = experts(x, ids, weights)
    method = "renormalize" if norm_topk_prob else "default"
    got_ids, got_weights = moe_routing(logits, top_k=3, method=method)
    assert torch.equal(got_ids.long(), ids)
    torch.testing.assert_close(got_weights.float(), weights, rtol=1e-5, atol=1e-7)
    got = moe(x, logits, experts.gate_up_proj.detach(), experts.down_proj.detach(), top_k=3, method=method)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
