"""Each relation fails the subject whose fault it is meant to catch, for the right reason, on the smallest case that shows it."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.case import Case
from harness.relations import another_order
from tests.harness.support import SUBJECTS, failing_case, run_cell, target


@dataclass(frozen=True)
class Planted:
    """A fault, the property that must see it, the symptom, and the size to which it must shrink."""

    fault: str
    operator: str
    prop: str
    symptom: str
    sequences: int = 1
    tokens: int = 1
    examples: int = 60
    check_memory: bool = True
    dtype: str = "float32"


PLANTED = (
    Planted("state_ignored", "conv_prefill", "equivalence", "over budget"),
    Planted("depends_on_batch_size", "conv_prefill", "packed_equals_alone", "not bitwise equal", 3),
    Planted("first_sequence_differs", "conv_prefill", "sequences_permuted", "not bitwise equal", 2),
    Planted("slot_number_matters", "conv_update", "slots_renamed", "not bitwise equal"),
    Planted("rows_compacted", "conv_update", "inactive_rows_added", "inactive row not zero", 1, 1),
    Planted("minus_one_is_the_last_slot", "conv_update", "equivalence", "untouched slot changed"),
    Planted(
        "minus_one_is_the_last_slot", "conv_update", "inactive_rows_added", "inactive row not zero", check_memory=False
    ),
    Planted("short_history_lost", "conv_prefill", "split_and_resume", "not bitwise equal", 1, 2),
    Planted("short_history_lost", "conv_prefill", "token_by_token", "not bitwise equal", 1, 2),
    Planted("strides_ignored", "conv_update", "strided_equals_contiguous", "not bitwise equal", 2, 2),
    Planted("index_stride_ignored", "conv_update", "strided_equals_contiguous", "not bitwise equal", 2, 2),
    Planted("neighbour_leaks", "conv_prefill", "neighbour_perturbed", "not bitwise equal", 2, 2),
    Planted("future_leaks", "conv_prefill", "future_perturbed", "not bitwise equal", 1, 2),
    Planted("values_clipped", "gdn_decode", "scaled_by_two", "not bitwise equal"),
    Planted("values_clipped", "gdn_decode", "linear_in_v_and_state", "over budget"),
    Planted("head_map_interleaved", "gdn_decode", "heads_permuted", "not bitwise equal"),
    Planted("rounded_twice", "gated_rmsnorm", "rounded_once", "over budget", dtype="bfloat16"),
    Planted("epsilon_missing", "gated_rmsnorm", "zeros_stay_zero", "over budget"),
    Planted("epsilon_outside_the_root", "gated_rmsnorm", "epsilon_scales_with_x", "not bitwise equal"),
    Planted("not_normalised", "gated_rmsnorm", "scale_of_x_is_lost", "over budget"),
    Planted("weight_is_one_plus_w", "gated_rmsnorm", "weight_doubled", "not bitwise equal"),
    Planted("gate_is_a_sigmoid", "gated_rmsnorm", "open_gate_doubled", "not bitwise equal"),
    Planted("heads_differ", "gated_rmsnorm", "heads_permuted", "not bitwise equal"),
    Planted("heads_differ", "gated_rmsnorm", "heads_share_the_weight", "not bitwise equal"),
    Planted("norm_over_all_heads", "gated_rmsnorm", "rows_kept_apart", "not bitwise equal"),
    Planted(
        "token_offset_in_32_bits",
        "gated_rmsnorm",
        "tokens_far_apart",
        "not bitwise equal",
        tokens=5,
        examples=2,
        dtype="bfloat16",
    ),
    Planted("resumed_after_a_token", "gdn_prefill", "split_and_resume_within_budget", "over budget"),
    Planted("resumed_after_a_token", "gdn_prefill", "token_by_token_within_budget", "over budget", tokens=2),
    Planted("pool_truncated", "gdn_prefill", "indexed_equals_gathered", "not bitwise equal"),
    Planted("last_sequence_takes_the_rest", "gdn_prefill", "trailing_tokens", "inactive row not zero"),
    Planted("beyond_the_first_chunk_zero", "gdn_prefill", "equivalence_over_chunks", "over budget", tokens=140),
    Planted("norms_overflow", "gdn_prefill", "zero_keys_write_nothing", "non-finite", 2, 5, dtype="float16"),
    Planted("search_ends_early", "gdn_prefill", "empty_sequences_added", "not bitwise equal", 2, 5),
    Planted(
        "key_offset_in_32_bits",
        "gdn_prefill",
        "tokens_far_apart",
        "not bitwise equal",
        sequences=2,
        tokens=70,
        examples=2,
        dtype="bfloat16",
    ),
    Planted("beta_clipped", "gdn_prefill", "zero_gates_keep_state", "not bitwise equal"),
    Planted("beta_clipped", "gdn_prefill", "only_decays_without_writes", "over budget"),
    Planted("beta_clipped", "gdn_prefill", "recalls_what_was_written", "over budget"),
    Planted("decay_clipped", "gdn_prefill", "forgets_everything", "over budget"),
    # The gates are drawn for the batch as it is: with a token less they are others, and may all be too weak to be clipped.
    Planted("decay_clipped", "gdn_prefill", "agrees_with_decode", "over budget", tokens=4),
    Planted("prefill_values_clipped", "gdn_prefill", "scaled_by_two", "not bitwise equal"),
    Planted("prefill_values_clipped", "gdn_prefill", "linear_in_v_and_state", "over budget"),
    Planted("state_rounded", "conv_update", "agrees_with_baseline", "not bitwise equal"),
    Planted("offset_in_32_bits", "conv_update", "high_slot", "not bitwise equal", examples=2),
    Planted("pool_read_whole", "conv_update", "poison_independent", "not bitwise equal"),
    Planted("other_slots_where_they_are_numbers", "conv_update", "poison_independent", "not bitwise equal"),
    Planted("maximum_begins_anywhere", "gated_rmsnorm", "poison_independent", "not bitwise equal"),
    Planted("next_slot_written", "conv_update", "hostile_memory", "untouched slot changed"),
    Planted("input_overwritten", "conv_update", "hostile_memory", "input changed"),
    Planted("output_left_unwritten", "conv_update", "equivalence", "not written"),
    Planted("always_wrong_shape", "conv_update", "equivalence", "wrong shape"),
    Planted("taps_taken_for_neighbours", "conv_update", "spread_vectors", "not bitwise equal"),
    Planted(
        "channel_offset_in_32_bits",
        "conv_update",
        "stretched_axes",
        "not bitwise equal",
        sequences=3,
        tokens=3,
        examples=2,
        dtype="bfloat16",
    ),
    Planted("refused_in_strict_mode", "conv_update", "strict_mode_accepts", "raised"),
    Planted("rows_counted_by_starts", "conv_prefill", "false_starts_stay_inside", "guard band written", tokens=140),
    Planted("slots_beyond_256_not_found", "conv_prefill", "empty_sequences_added", "not bitwise equal", 2, 5),
    Planted("softplus_loses_digits", "gdn_decode", "steps_add_up", "over budget"),
    Planted("widest_values_zero", "gdn_decode", "equivalence_at_extreme_dims", "over budget"),
    Planted(
        "scratch_for_pairs_of_tokens", "gdn_prefill", "bounded_working_memory", "copies state", tokens=300, examples=1
    ),
    Planted("hints_trusted", "chunk_metadata", "false_values_stay_inside", "raised", 8, 700, dtype="int32"),
    Planted("starts_in_32_bits", "chunk_metadata", "starts_far_apart", "wrong metadata", 8, 700, 2, dtype="int32"),
    Planted("wrong_dtype", "conv_update", "equivalence", "wrong dtype"),
)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: f"{p.fault}-{p.prop}")
def test_planted_fault_is_caught_and_shrunk(planted: Planted) -> None:
    result = run_cell(
        planted.operator,
        planted.prop,
        target(planted.fault, "faulty"),
        dtype=planted.dtype,
        examples=planted.examples,
        check_memory=planted.check_memory,
    )
    case = failing_case(result, planted.symptom)
    assert len(case.sequences) <= planted.sequences, result.failure.sentence
    assert case.tokens <= planted.tokens, result.failure.sentence
    fixed = planted.prop in ("equivalence_at_extreme_dims", "bounded_working_memory")
    require_plain(case, layout=planted.prop == "strided_equals_contiguous", dims=fixed)


def require_plain(case: Case, *, layout: bool, dims: bool = False) -> None:
    """Nothing in the case but what the fault needs: a person reads it and knows where to look."""
    assert layout or case.layout.dense
    assert case.pad_slot == -1
    # Contents follow from regime and seed together, so one of the two may have had to stay.
    assert len(set(case.regime.values()) - {"unit", "mixed", "random"}) <= 1
    # Three are the fewest along which an offset can need more than 31 bits while its stride does not.
    assert case.dims.get("D", 1) <= 3
    assert dims or max(case.dims.get("K", 4), case.dims.get("V", 4)) <= 8


def test_another_order_is_another_wherever_there_is_one() -> None:
    assert (another_order(0, 3), another_order(1, 3)) == ([], [0])
    for count in (2, 3, 4):
        found = {tuple(another_order(count, choice)) for choice in range(400)}
        assert found == set(itertools.permutations(range(count))) - {tuple(range(count))}


@pytest.mark.parametrize("operator", ["conv_prefill", "conv_update", "gdn_decode"])
@pytest.mark.parametrize(
    "prop",
    [
        "equivalence",
        "packed_equals_alone",
        "sequences_permuted",
        "slots_renamed",
        "inactive_rows_added",
        "strided_equals_contiguous",
        "repeated",
        "neighbour_perturbed",
        "agrees_with_baseline",
        "hostile_memory",
        "poison_independent",
    ],
)
def test_right_subject_passes(operator: str, prop: str) -> None:
    """The same cells on a right implementation: a relation that fails everything would pass the tests above."""
    result = run_cell(operator, prop, target(operator, "right"), examples=15)
    assert result.failure is None, f"{result.failure.message}\n{result.failure.sentence}"
    assert result.cases >= 15


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "prop",
    [
        "equivalence",
        "split_and_resume_within_budget",
        "token_by_token_within_budget",
        "agrees_with_decode",
        "indexed_equals_gathered",
        "trailing_tokens",
        "empty_sequences_added",
        "equivalence_over_chunks",
        "neighbour_perturbed",
        "future_perturbed",
        "zero_gates_keep_state",
        "only_decays_without_writes",
        "forgets_everything",
        "recalls_what_was_written",
        "heads_permuted",
        "agrees_with_baseline",
        "hostile_memory",
    ],
)
def test_right_delta_prefill_passes(prop: str, dtype: str) -> None:
    result = run_cell("gdn_prefill", prop, target("gdn_prefill", "right"), dtype=dtype, examples=8)
    assert result.failure is None, f"{result.failure.message}\n{result.failure.sentence}"


@pytest.mark.parametrize("prop", ["split_and_resume", "token_by_token", "future_perturbed"])
def test_right_prefill_passes(prop: str) -> None:
    assert run_cell("conv_prefill", prop, target("conv_prefill", "right"), examples=15).status == "passed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "prop", ["scaled_by_two", "zero_gates_keep_state", "recalls_what_was_written", "heads_permuted"]
)
def test_right_decode_passes(prop: str, dtype: str) -> None:
    assert run_cell("gdn_decode", prop, target("gdn_decode", "right"), dtype=dtype, examples=15).status == "passed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "prop",
    [
        "equivalence",
        "packed_equals_alone",
        "strided_equals_contiguous",
        "neighbour_perturbed",
        "hostile_memory",
        "zeros_stay_zero",
        "epsilon_scales_with_x",
        "scale_of_x_is_lost",
        "weight_doubled",
        "open_gate_doubled",
        "heads_permuted",
        "heads_share_the_weight",
        "rows_kept_apart",
    ],
)
def test_right_norm_passes(prop: str, dtype: str) -> None:
    assert (
        run_cell("gated_rmsnorm", prop, target("gated_rmsnorm", "right"), dtype=dtype, examples=15).status == "passed"
    )


def test_a_subject_that_is_not_deterministic() -> None:
    result = run_cell("conv_update", "repeated", target("not_deterministic", "faulty"))
    assert len(failing_case(result, "not bitwise equal").sequences) == 1


def test_a_failure_that_does_not_come_again_is_still_a_failure(tmp_path: Path) -> None:
    for name in ("faulty.py", "right.py"):  # a copy counts its calls from nothing
        shutil.copy(SUBJECTS / name, tmp_path)
    result = run_cell("conv_update", "equivalence", f"{tmp_path / 'faulty.py'}:fails_once")
    assert result.failure is not None
    assert result.failure.symptom == "over budget"
    assert "the subject is not deterministic" in result.failure.message


@pytest.mark.slow
def test_first_call_of_a_process() -> None:
    """A tuner that tries variants in place corrupts the state on the first call only."""
    failing_case(
        run_cell("conv_update", "cold_equals_warm", target("first_call_differs", "faulty"), examples=1),
        "not bitwise equal",
    )
    assert run_cell("conv_update", "cold_equals_warm", target("conv_update", "right"), examples=1).status == "passed"


def test_the_message_says_what_was_promised() -> None:
    result = run_cell("conv_prefill", "future_perturbed", target("future_leaks", "faulty"))
    assert result.failure is not None
    assert "must not reach the outputs before them" in result.failure.message
    assert result.failure.rows
    assert "2 fresh tokens in slot 0" in result.failure.sentence
    assert 1 <= result.failure.examples <= 60


@pytest.mark.parametrize("prop", ["neighbour_perturbed", "future_perturbed", "sequences_permuted"])
@pytest.mark.parametrize("operator", ["conv_prefill", "gdn_prefill"])
def test_right_without_a_promise_about_bits(operator: str, prop: str) -> None:
    """What a relation compares is judged by the budget of the batch that it was computed from."""
    result = run_cell(operator, prop, target(operator, "unpromised"), examples=30)
    assert result.status == "passed", result.failure


@pytest.mark.parametrize("prop", ["neighbour_perturbed", "future_perturbed"])
def test_wrong_without_a_promise_about_bits(prop: str) -> None:
    """The state of a convolution is a copy, whoever makes it."""
    failing_case(
        run_cell("conv_prefill", prop, target("first_row_reaches_the_last", "unpromised")), "not bitwise equal"
    )


@pytest.mark.parametrize("prop", ["repeated", "cold_equals_warm"])
def test_the_same_call_gives_the_same_bits_unless_its_subject_says_otherwise(prop: str) -> None:
    examples = 1 if prop == "cold_equals_warm" else 20
    if prop == "repeated":
        failing_case(run_cell("conv_update", prop, target("wobbles", "unpromised")), "not bitwise equal")
    for name in ("conv_update", "wobbles_openly"):
        result = run_cell("conv_update", prop, target(name, "unpromised"), examples=examples)
        assert result.status == "passed", result.failure
