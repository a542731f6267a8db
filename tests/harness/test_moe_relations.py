"""Each relation of the mixture of experts and its router fails the subject whose fault it is meant to catch, and passes a right one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness import moe_batches, operators, strategies
from harness.context import Context
from harness.failure import Failure
from harness.isolation import find_property, suite
from harness.operators import expert_choice
from harness.operators.base import TokenOperator
from harness.subjects import Capabilities, load_target
from references.moe import METHODS, moe_routing
from tests.harness.support import draws, failing_case, run_cell, target


@dataclass(frozen=True)
class Planted:
    """A fault, the property that must see it, and the symptom."""

    fault: str
    operator: str
    prop: str
    symptom: str
    dtype: str = "float32"
    examples: int = 60


ROUTER, MIXTURE = "moe_routing", "moe"
PLANTED = (
    Planted("sigmoids_divided_as_they_are", ROUTER, "shut_sigmoids", "over budget"),
    Planted("higher_id_of_two_equal", ROUTER, "equal_logits_go_to_the_first", "wrong experts"),
    Planted("higher_id_of_two_equal", ROUTER, "equivalence", "wrong experts", "bfloat16"),
    Planted("nan_comes_first", ROUTER, "nan_logits", "wrong experts"),
    Planted("bias_in_the_weights", ROUTER, "constant_bias", "over budget"),
    Planted("logits_clipped", ROUTER, "logits_shifted", "wrong experts"),
    Planted("later_experts_preferred", ROUTER, "experts_relabelled", "over budget"),
    Planted("chosen_by_probability", ROUTER, "renormalize_equals_naive", "wrong experts", examples=200),
    Planted("weights_rounded", ROUTER, "weights_add_up", "over budget"),
    Planted("weights_rounded", ROUTER, "equivalence", "over budget"),
    Planted("weights_rounded", ROUTER, "top_k_returns_logits", "not bitwise equal"),
    Planted("first_expert_twice", ROUTER, "equivalence", "wrong experts"),
    Planted("places_in_order_of_ids", ROUTER, "equivalence", "wrong experts"),
    Planted("least_of_equal_scores", ROUTER, "unsure_choices", "wrong experts"),
    Planted("minus_one_is_the_last_expert", MIXTURE, "places_without_an_expert", "not written", "bfloat16"),
    Planted("depends_on_the_number_of_tokens", MIXTURE, "tokens_appended", "not bitwise equal"),
    Planted("depends_on_the_number_of_tokens", MIXTURE, "packed_equals_alone", "not bitwise equal"),
    Planted("one_sum_for_all_tokens", MIXTURE, "rows_kept_apart", "not bitwise equal"),
    Planted("up_for_gate", MIXTURE, "one_hot_is_the_dense_expert", "over budget"),
    Planted("up_for_gate", MIXTURE, "exact_sums", "over budget", "bfloat16"),
    Planted("always_softmax", MIXTURE, "identical_experts", "over budget"),
    Planted("offset_ignored", MIXTURE, "experts_over_gpus_add_up", "over budget"),
    Planted("inner_activations_normalised", MIXTURE, "columns_over_gpus_add_up", "over budget"),
    Planted("idle_experts_times_zero", MIXTURE, "unchosen_experts_may_hold_nan", "not bitwise equal"),
    Planted("sum_rounded_at_every_expert", MIXTURE, "opposite_experts_cancel", "over budget", "bfloat16", 2),
    Planted("expert_offset_in_32_bits", MIXTURE, "experts_far_apart", "not bitwise equal", "bfloat16", 2),
    Planted("room_for_all_pairs", MIXTURE, "bounded_working_memory", "copies state", "bfloat16", 2),
    Planted("weights_to_bfloat16", MIXTURE, "equivalence", "over budget"),
)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: f"{p.fault}-{p.prop}")
def test_planted_fault_is_caught(planted: Planted) -> None:
    subject = target(planted.fault, "moe_faulty")
    result = run_cell(planted.operator, planted.prop, subject, dtype=planted.dtype, examples=planted.examples)
    case = failing_case(result, planted.symptom)
    assert len(case.sequences) <= 2, result.failure


def test_what_a_place_without_an_expert_adds_is_caught_though_it_is_a_number() -> None:
    result = run_cell(MIXTURE, "places_without_an_expert", target("moe", "moe_finite"), dtype="bfloat16")
    failing_case(result, "over budget")


def test_a_token_without_experts_is_exactly_zero() -> None:
    """Where it has less than rounding explains, too: the budget knows what its experts add, had it any."""
    operator = operators.get(MIXTURE)
    cases = (c for c in draws(operator.cases(strategies.CPU, "bfloat16"), 200) if c.options["method"] == "renormalize")
    plain = {"amplitude": "unit", "contents": "random", "load": "random", "logits": "random"}
    case = moe_batches.whole(next(c for c in cases if c.tokens > 8 and c.dims["k"] > 1)).with_(regime=plain)
    faint = load_target(target("moe", "moe_faint"))
    body = find_property(MIXTURE, "places_without_an_expert").body
    with pytest.raises(Failure, match="are not exactly zero, though no expert was asked"):
        body(Context(operator, faint, torch.device("cpu"), capabilities=Capabilities.of(faint)), case)


#: These ask for what a router or a mixture in plain torch cannot promise: no sync, one launch, an error that names an argument.
OURS = ("arguments", "cost")


@pytest.mark.parametrize(
    ("operator", "prop"),
    [
        (operator, prop.name)
        for operator in (ROUTER, MIXTURE)
        for prop in suite(operator).PROPERTIES
        if prop.group not in OURS and "cpu" in prop.devices and prop.name != "cold_equals_warm"
    ],
)
def test_a_right_subject_passes(operator: str, prop: str) -> None:
    dtypes = find_property(operator, prop).dtypes or ("float32", "bfloat16")
    for dtype in dtypes:
        result = run_cell(operator, prop, target(operator, "moe_right"), dtype=dtype, examples=10)
        assert result.failure is None, f"{result.failure.message}\n{result.failure.sentence}"


def test_what_a_subject_declares_to_round_widens_its_own_budget_alone() -> None:
    declared = target("weights_to_bfloat16_as_declared", "moe_faulty")
    result = run_cell(MIXTURE, "equivalence", declared, dtype="bfloat16", examples=40)
    assert result.failure is None, result.failure
    # What it does besides is still seen.
    result = run_cell(MIXTURE, "equivalence", target("up_for_gate", "moe_faulty"), dtype="bfloat16")
    failing_case(result, "over budget")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_choice_is_one_thing_in_every_arithmetic(dtype: str) -> None:
    """float32 arithmetic with errors of some units in the last place chooses as float64 does, in every case that is drawn."""
    operator = operators.get(ROUTER)
    assert isinstance(operator, TokenOperator)
    noise = torch.Generator().manual_seed(0)
    unsettled = 0
    for case in draws(operator.cases(strategies.CPU, dtype), 300):
        if case.options["bias"] is None and case.options["method"] != "deepseek_v3":
            continue
        batch = operator.batch(case, torch.device("cpu"))
        logits, bias = batch.packed("logits"), batch.shared.get("bias")
        keywords = expert_choice.keywords(case)
        ids, _ = moe_routing(logits, **keywords, bias=bias)
        unsettled += int(expert_choice.ambiguous(logits, bias, case).sum())
        score = expert_choice.scores(logits, bias, case.options["method"])
        if (
            bias is not None
            and case.options["method"] in expert_choice.SIGMOID_SCORES
            and keywords.get("n_group", 1) == 1
        ):
            # Equal scores of equal experts stay equal: the error is one of the score's value.
            _, place = torch.unique(score, return_inverse=True)
            error = torch.randn(int(place.max()) + 1 if place.numel() else 1, generator=noise)
            off = score + 2.0**-24 * error[place]
            other = torch.sort(off, dim=1, descending=True, stable=True).indices[:, : case.dims["k"]]
            assert torch.equal(ids.long(), other), operator.describe(case)
        assert torch.equal(ids, moe_routing(logits, **keywords, bias=bias, compute_dtype=torch.float32)[0])
    assert unsettled == 0


def test_every_method_is_drawn_with_and_without_a_bias() -> None:
    cases = draws(operators.get(MIXTURE).cases(strategies.CPU, "bfloat16"), 600)
    seen = {(case.options["method"], case.options["bias"] is None) for case in cases}
    assert seen == {(method, plain) for method in METHODS for plain in (True, False)}


def test_one_expert_a_token_needs_no_copy_of_all_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy for each of 6,000 tokens was 86 GiB."""
    case = next(
        c for c in draws(operators.get("moe").cases(strategies.CPU, "float32"), 50) if c.tokens > 8 and c.dims["E"] > 2
    )
    batch = operators.get("moe").batch(moe_batches.whole(case), torch.device("cpu"))
    expert = torch.arange(case.tokens) % case.dims["E"]
    x, first, second = (t.double() for t in (batch.packed("x"), batch.shared["w_gate_up"], batch.shared["w_down"]))
    wanted = []
    for token, number in zip(x, expert.tolist(), strict=True):
        gate, up = (first[number] @ token).chunk(2)
        wanted.append(2.0 * (second[number] @ (torch.nn.functional.silu(gate) * up)))
    numbers = batch.shared["w_gate_up"][0].numel() + batch.shared["w_down"][0].numel()
    monkeypatch.setattr(moe_batches, "WEIGHTS_AT_ONCE", 3 * numbers)
    largest = Largest()
    with largest:
        got = torch.cat(moe_batches.dense(batch, expert, 2.0).outputs)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-12, atol=1e-12)
    assert largest.numbers <= max(3 * numbers, got.numel(), case.tokens * case.dims["E"])


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor of floats has that the body makes."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.numbers = max(self.numbers, out.numel())
        return out
