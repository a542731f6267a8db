"""The mixture of experts against a loop over tokens, against transformers, and the baseline against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimized import moe as optimized_moe
from optimized import moe_baseline
from optimized import moe_routing as optimized
from references.moe import METHODS, moe, moe_experts, moe_routing

ROUTES = (moe_routing, moe_baseline.moe_routing, optimized.moe_routing)


@st.composite
def routings(draw: st.DrawFn) -> dict[str, Any]:
    """Keywords of `moe_routing` beside the bias, and the number of experts."""
    method = draw(st.sampled_from(METHODS))
    n_group = draw(st.integers(1, 4)) if method == "deepseek_v3" else 1
    topk_group = draw(st.integers(1, n_group))
    size = draw(st.integers(1, 9 if n_group == 1 else 4))
    return {
        "experts": n_group * size,
        "method": method,
        "top_k": 1 if method == "llama4" else draw(st.integers(1, topk_group * size)),
        "n_group": n_group,
        "topk_group": topk_group,
        "scaling": draw(st.sampled_from([1.0, 2.5])) if method in ("deepseek_v3", "minimax2") else 1.0,
    }


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    routing = draw(routings())
    experts = routing.pop("experts")
    tokens, hidden, size = draw(st.integers(0, 7)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    logits = 2 * torch.randn(tokens, experts, generator=random, dtype=torch.float64)
    bias = torch.randn(experts, generator=random, dtype=torch.float64) if draw(st.booleans()) else None
    if draw(st.booleans()):
        # Few values: many ties. Of no mixed signs: σ(1) + σ(-1) = σ(0) + σ(0) is a tie of groups on paper only.
        logits = logits.round().abs()
        bias = None if bias is None else bias.round()
    first = draw(st.integers(0, experts - 1))
    local = draw(st.integers(1, experts - first))
    return {
        "x": torch.randn(tokens, hidden, generator=random, dtype=torch.float64),
        "router_logits": logits,
        "w_gate_up": torch.randn(local, 2 * size, hidden, generator=random, dtype=torch.float64),
        "w_down": torch.randn(local, hidden, size, generator=random, dtype=torch.float64),
        "bias": bias,
        "expert_offset": first,
        **routing,
    }


def routing_of(case: dict[str, Any]) -> dict[str, Any]:
    return {name: case[name] for name in ("method", "top_k", "bias", "n_group", "topk_group", "scaling")}


def sigmoid(number: float) -> float:
    return 1 / (1 + math.exp(-number)) if number > -700 else 0.0


def best(score: dict[int, float], count: int) -> list[int]:
    """Pick the best that remains `count` times, the first of equal ones."""
    remaining, picked = dict(sorted(score.items())), []
    for _ in range(count):
        largest = max(remaining.values())
        chosen = next(name for name, value in remaining.items() if value == largest)
        del remaining[chosen]
        picked.append(chosen)
    return picked


def chosen_by_hand(logits: list[float], case: dict[str, Any]) -> dict[int, float]:
    """Expert to weight, in the order of the score; number by number, from the definition of each method."""
    method, experts = case["method"], range(len(logits))
    squash = method in ("deepseek_v3", "sigmoid_renorm", "minimax2", "sigmoid")
    score = {e: sigmoid(logits[e]) if squash else logits[e] for e in experts}
    if case["bias"] is not None:
        score = {e: score[e] + case["bias"][e].item() for e in experts}
    if method == "deepseek_v3":
        size = len(logits) // case["n_group"]
        groups = {g: [score[e] for e in range(g * size, (g + 1) * size)] for g in range(case["n_group"])}
        kept = best({g: sum(sorted(scores)[-2:]) for g, scores in groups.items()}, case["topk_group"])
        score = {e: score[e] for e in experts if e // size in kept}
    picked = best(score, case["top_k"])
    exp = [math.exp(logit) for logit in logits]
    sig = [sigmoid(logit) for logit in logits]
    over_chosen = {
        "renormalize": exp,
        "renormalize_naive": exp,
        "sigmoid_renorm": sig,
        "deepseek_v3": sig,
        "minimax2": sig,
    }
    if method in over_chosen:
        of = over_chosen[method]
        return {e: case["scaling"] * of[e] / sum(of[chosen] for chosen in picked) for e in picked}
    if method == "default":
        return {e: exp[e] / sum(exp) for e in picked}
    return {e: logits[e] if method == "top_k" else sig[e] for e in picked}


def by_hand(case: dict[str, Any]) -> Tensor:
    """Token by token, number by number."""
    x, w_gate_up, w_down = case["x"].tolist(), case["w_gate_up"].tolist(), case["w_down"].tolist()
    size = len(w_gate_up[0]) // 2
    y = torch.zeros_like(case["x"])
    for t, token in enumerate(x):
        for expert, weight in chosen_by_hand(case["router_logits"][t].tolist(), case).items():
            local = expert - case["expert_offset"]
            if local not in range(len(w_down)):
                continue
            rows = [sum(w * value for w, value in zip(row, token, strict=True)) for row in w_gate_up[local]]
            hidden = [rows[i] * sigmoid(rows[i]) * rows[size + i] for i in range(size)]
            for j, row in enumerate(w_down[local]):
                y[t, j] += weight * sum(w * value for w, value in zip(row, hidden, strict=True))
    return y


@given(cases())
@settings(max_examples=100, deadline=None)
def test_the_loop_over_tokens_agrees(case: dict) -> None:
    torch.testing.assert_close(moe(**case), by_hand(case), rtol=1e-12, atol=1e-12)


@given(cases())
@settings(max_examples=150, deadline=None)
def test_routing_agrees_in_order_too(case: dict) -> None:
    ids, weights = moe_routing(case["router_logits"], **routing_of(case))
    assert ids.dtype == torch.int32
    for row, logits in enumerate(case["router_logits"].tolist()):
        expected = chosen_by_hand(logits, case)
        assert ids[row].tolist() == list(expected)
        assert weights[row].tolist() == pytest.approx(list(expected.values()), rel=1e-12)


@given(routings(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_equal_logits_go_to_the_lowest_ids(routing: dict, biased: bool) -> None:
    experts = 60 * routing.pop("experts")
    bias = torch.ones(experts) if biased else None
    for route in ROUTES:
        ids, _ = route(torch.zeros(3, experts), **routing, bias=bias)
        assert ids.tolist() == [list(range(routing["top_k"]))] * 3


@pytest.mark.parametrize("method", METHODS)
def test_a_sigmoid_that_rounds_to_one_creates_no_ties(method: str) -> None:
    for route in ROUTES:
        ids, _ = route(torch.tensor([[60.0, 61.0, 50.0]]), top_k=1, method=method)
        assert ids.tolist() == [[1]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("biased", [False, True])
def test_nan_counts_as_the_lowest(method: str, biased: bool) -> None:
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[nan, 1.0, nan, 2.0], [nan] * 4, [nan, -inf, 0.0, -inf]])
    top_k = 1 if method == "llama4" else 4
    # The sigmoid of -inf is 0, which is more.
    squashed = biased and method in ("deepseek_v3", "minimax2", "sigmoid_renorm", "sigmoid")
    expected = [[3, 1, 0, 2], [0, 1, 2, 3], [2, 1, 3, 0] if squashed else [2, 0, 1, 3]]
    for route in ROUTES:
        ids, _ = route(logits, top_k=top_k, method=method, bias=torch.zeros(4) if biased else None)
        assert ids.tolist() == [row[:top_k] for row in expected]


def test_experts_of_dropped_groups_stay_out_whatever_their_scores() -> None:
    logits = torch.tensor([[math.nan, -math.inf, 5.0, math.nan, 9.0, 9.0]])
    for route in ROUTES:
        ids, _ = route(logits, top_k=4, method="deepseek_v3", n_group=3, topk_group=2)
        # The sums of groups 0 and 1 are both -inf: the lower is kept, and the 5 of the other stays out.
        assert ids.tolist() == [[4, 5, 0, 1]]


def test_a_bias_takes_part_in_the_choice_alone() -> None:
    logits, bias = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([5.0, 0.0, 0.0])
    for route in ROUTES:
        ids, weights = route(logits, top_k=2, method="renormalize", bias=bias)
        assert ids.tolist() == [[0, 2]]
        expected = torch.softmax(torch.tensor([0.0, 2.0]), 0)
        torch.testing.assert_close(weights[0].float(), expected, rtol=1e-6, atol=0)


def test_ids_of_other_experts_contribute_nothing_whatever_their_weights() -> None:
    x, w_gate_up, w_down = torch.ones(3, 2), torch.ones(2, 2, 2), torch.ones(2, 2, 1)
    ids = torch.tensor([[4, 5], [-1, 6], [5, 7]], dtype=torch.int32)
    weights = torch.tensor([[1.0, 2.0], [math.nan, 3.0], [1.0, math.nan]])
    expert = 4 * sigmoid(2.0)
    for compute in (moe_experts, moe_baseline.moe_experts):
        y = compute(x, ids, weights, w_gate_up, w_down, expert_offset=5)
        torch.testing.assert_close(y, torch.tensor([[2.0] * 2, [3.0] * 2, [1.0] * 2]) * expert)


def test_an_expert_that_is_named_twice_counts_twice() -> None:
    x, w_gate_up, w_down = torch.ones(1, 2), torch.ones(1, 2, 2), torch.ones(1, 2, 1)
    ids, weights = torch.zeros(1, 2, dtype=torch.int32), torch.tensor([[1.0, 2.0]])
    for compute in (moe_experts, moe_baseline.moe_experts):
        y = compute(x, ids, weights, w_gate_up, w_down)
        torch.testing.assert_close(y, torch.full((1, 2), 12 * sigmoid(2.0)))


def test_the_operand_of_the_second_product_is_rounded_if_asked() -> None:
    x, w_gate_up, w_down = torch.full((1, 1), 1.0), torch.tensor([[[3.0], [1.0]]]), torch.ones(1, 1, 1)
    ids, weights = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1)
    exact = torch.tensor(3 * sigmoid(3.0))
    assert moe_experts(x, ids, weights, w_gate_up, w_down).item() == exact.item()
    rounded = moe_experts(x, ids, weights, w_gate_up, w_down, operand_dtype=torch.bfloat16)
    assert rounded.item() == exact.bfloat16().item() != exact.item()


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
@settings(max_examples=100, deadline=None)
def test_the_baseline_agrees(case: dict) -> None:
    """In float32, whose ties are those of the rounded logits: both are given the same numbers."""
    rounded = {name: value.float() if isinstance(value, Tensor) else value for name, value in case.items()}
    torch.testing.assert_close(moe_baseline.moe(**rounded), moe(**rounded), rtol=1e-4, atol=1e-5)


def test_the_baseline_takes_tokens_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    shapes = {"x": (7, 4), "router_logits": (7, 3), "w_gate_up": (3, 6, 4), "w_down": (3, 4, 3)}
    case = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    expected = moe(**case, top_k=2, method="default")
    monkeypatch.setattr(moe_baseline, "_MOST_ELEMENTS", 3 * 6 * 3)
    torch.testing.assert_close(moe_baseline.moe(**case, top_k=2, method="default"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("method", {"method": "softmax"}),
        ("top_k", {"top_k": 0}),
        ("top_k", {"top_k": 7}),
        ("top_k", {"method": "llama4"}),
        ("bias", {"bias": torch.zeros(5)}),
        ("scaling", {"scaling": 2.0}),
        ("n_group", {"n_group": 2}),
        ("topk_group", {"topk_group": 2}),
        ("n_group", {"method": "deepseek_v3", "n_group": 4}),
        ("n_group", {"method": "deepseek_v3", "n_group": 0}),
        ("topk_group", {"method": "deepseek_v3", "n_group": 2, "topk_group": 3}),
        ("topk_group", {"method": "deepseek_v3", "n_group": 2, "topk_group": 0}),
        ("top_k", {"method": "deepseek_v3", "n_group": 3, "topk_group": 1, "top_k": 3}),
        ("n_group", {"method": "minimax2", "scaling": 2.0, "n_group": 2}),
    ],
)
def test_what_cannot_be_is_refused(name: str, wrong: dict) -> None:
    good = {"top_k": 2, "method": "renormalize"}
    for route in (moe_routing, optimized.moe_routing):
        with pytest.raises(ValueError, match=f"^{name}: "):
            route(torch.zeros(2, 6), **good | wrong)


@pytest.mark.parametrize("offset", [-1, 2])
def test_experts_that_are_not_among_the_routed_are_refused(offset: int) -> None:
    shapes = {"x": (2, 4), "router_logits": (2, 3), "w_gate_up": (2, 6, 4), "w_down": (2, 4, 3)}
    case = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for compute in (moe, optimized_moe.moe):
        with pytest.raises(ValueError, match=r"^expert_offset: "):
            compute(**case, top_k=1, method="default", expert_offset=offset)


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


def test_transformers_agrees_about_groups() -> None:
    module = pytest.importorskip(
        "transformers.models.deepseek_v3.modeling_deepseek_v3",
        reason="transformers (a development dependency) is not installed",
    )
    config = module.DeepseekV3Config(
        hidden_size=12,
        n_routed_experts=24,
        num_experts_per_tok=5,
        n_group=6,
        topk_group=3,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    router = module.DeepseekV3TopkRouter(config)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=random))
        router.e_score_correction_bias.copy_(0.5 * torch.randn(24, generator=random))
        logits, weights, ids = router(torch.randn(200, 12, generator=random))
    # It leaves the chosen in any order.
    bias = router.e_score_correction_bias
    order = (torch.sigmoid(logits) + bias).gather(1, ids).argsort(dim=-1, descending=True)
    for route in ROUTES:
        got_ids, got_weights = route(
            logits, top_k=5, method="deepseek_v3", bias=bias, n_group=6, topk_group=3, scaling=2.5
        )
        assert torch.equal(got_ids.long(), ids.gather(1, order))
        torch.testing.assert_close(got_weights.float(), weights.gather(1, order), rtol=1e-5, atol=1e-7)


def test_transformers_agrees_about_minimax() -> None:
    module = pytest.importorskip(
        "transformers.models.minimax_m2.modeling_minimax_m2",
        reason="transformers (a development dependency) is not installed",
    )
    config = module.MiniMaxM2Config(hidden_size=12, num_local_experts=24, num_experts_per_tok=5)
    router = module.MiniMaxM2TopKRouter(config)
    random = torch.Generator().manual_seed(6)
    bias = 0.5 * torch.randn(24, generator=random)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=random))
        logits, weights, ids = router(torch.randn(200, 12, generator=random), bias)
    order = (torch.sigmoid(logits) + bias).gather(1, ids).argsort(dim=-1, descending=True)
    for route in ROUTES:
        got_ids, got_weights = route(logits, top_k=5, method="minimax2", bias=bias)
        assert torch.equal(got_ids.long(), ids.gather(1, order))
        torch.testing.assert_close(got_weights.float(), weights.gather(1, order), rtol=1e-5, atol=1e-7)
