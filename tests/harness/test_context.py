"""What a context compares, sequence by sequence: outputs and states, of every sequence, with the truth and in every bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import references
from harness import equivalence, operators, placement, relations, splitting
from harness.batch import Result
from harness.case import Case, Segment
from harness.context import Context
from harness.failure import Failure
from harness.isolation import find_property
from harness.subjects import Capabilities, load_target
from tests.harness.support import target

ROWS = (Segment(1, "resumed", 2), Segment(1, "resumed", 0))
DELTA = {"amplitude": "unit", "decay": "none", "keys": "random"}
CASES = {
    "conv_update": Case(
        operator="conv_update",
        sequences=ROWS,
        dims={"D": 4, "W": 4},
        regime={"amplitude": "unit"},
        options={"activation": "silu", "bias": False},
        pool_slots=4,
    ),
    "gdn_decode": Case(
        operator="gdn_decode",
        sequences=ROWS,
        dims={"H": 1, "HV": 2, "K": 8, "V": 4},
        regime=DELTA,
        options={"scale": None, "float32_gates": False},
        pool_slots=4,
    ),
    "gdn_prefill": Case(
        operator="gdn_prefill",
        sequences=(Segment(20, "resumed", 2), Segment(3, "fresh", 0)),
        dims={"H": 1, "HV": 2, "K": 8, "V": 4},
        regime={**DELTA, "beta": "random"},
        options={"scale": None},
        pool_slots=4,
    ),
}
CASES["conv_prefill"] = CASES["conv_update"].with_(operator="conv_prefill", sequences=CASES["gdn_prefill"].sequences)
POOLS = {"conv_update": "conv_state", "conv_prefill": "conv_state", "gdn_decode": "state", "gdn_prefill": "state"}


def context(name: str, function: Callable[..., Any], **claims: Any) -> Context:
    return Context(
        operators.get(name), function, torch.device("cpu"), capabilities=Capabilities(**claims), check_memory=False
    )


# -- within the budget ------------------------------------------------------------------------------------------------


def last_slot_scaled(name: str) -> Callable[..., Tensor]:
    """Right outputs, and a state that is a fifth too large in the sequence that stands last in the batch."""

    def subject(*args: Any, **keywords: Any) -> Tensor:
        out = getattr(references, name)(*args, **keywords)
        keywords[POOLS[name]][int(keywords["state_indices"][-1])] *= 1.2
        return out

    return subject


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_a_wrong_state_fails_where_the_outputs_are_right(name: str, dtype: str) -> None:
    case = CASES[name].with_(dtype=dtype)
    equivalence.equivalence_body(context(name, getattr(references, name)), case)
    with pytest.raises(Failure, match=r"state.* sequence[s]? 1|^state") as caught:
        equivalence.equivalence_body(context(name, last_slot_scaled(name)), case)
    copied = name.startswith("conv")
    assert caught.value.symptom == ("not bitwise equal" if copied else "over budget")


@pytest.mark.parametrize("name", ["gdn_decode", "gdn_prefill"])
def test_the_model_kernel_is_not_the_truth(name: str) -> None:
    """It uses a part of its own allowance: were it exact on every row, it would have been judged by itself."""
    operator = operators.get(name)
    assert isinstance(operator, operators.TokenOperator)
    judge = context(name, lambda: None)
    batch = judge.batch(CASES[name].with_(dtype="bfloat16"))
    judge.require_within_budget(operator.model(batch), batch)
    assert 0 < judge.tally.read()["output"].largest <= 1


@pytest.mark.parametrize("what", ["outputs", "states"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_property_has_wrong_is_no_rounding(dtype: str, what: str) -> None:
    """Its oracle is judged with the allowance of the operator's: a right subject fails it, and so it is found."""
    judge = context("gdn_prefill", references.gdn_prefill)
    batch = judge.batch(CASES["gdn_prefill"].with_(dtype=dtype))
    right = judge.sequences.oracle(batch)
    judge.require_within_budget(judge.run(batch), batch, oracle=right)
    wrong = [None if part is None else 1.1 * part for part in getattr(right, what)]
    with pytest.raises(Failure, match=f"{what[:-1]}.* further from the oracle") as caught:
        judge.require_within_budget(judge.run(batch), batch, oracle=replace(right, **{what: tuple(wrong)}))
    assert caught.value.symptom == "over budget"


@pytest.mark.parametrize(
    ("name", "fault", "one"),
    [("gdn_decode", "head_map_interleaved", {"H": 1, "HV": 2}), ("gated_rmsnorm", "heads_differ", {"HV": 1})],
)
def test_where_there_is_one_head_two_are_permuted(name: str, fault: str, one: dict[str, int]) -> None:
    norm = {"amplitude": "unit", "gate": "random", "rows": "random"}
    case = CASES["gdn_decode"]
    if name == "gated_rmsnorm":
        case = Case(name, (Segment(3),), {"V": 4}, regime=norm, options={"eps": None, "float32_weight": False})
    body = find_property(name, "heads_permuted").body
    subject = load_target(target(fault, "faulty"))
    with pytest.raises(Failure, match="in the order"):
        body(context(name, subject), case.with_(dims={**case.dims, **one}))


# -- bit by bit -------------------------------------------------------------------------------------------------------


def result() -> Result:
    """Two sequences of 2 and 3 tokens with states, and one without a state."""
    return Result(
        (torch.ones(2, 4), torch.ones(3, 4), torch.zeros(1, 4)), (torch.ones(2, 4, 3), torch.ones(2, 4, 3), None)
    )


def changed(what: str, index: int, new: Tensor) -> Result:
    mine = result()
    parts = list(getattr(mine, what))
    parts[index] = new
    return Result(tuple(parts), mine.states) if what == "outputs" else Result(mine.outputs, tuple(parts))


CHANGED = {
    "the first output": (changed("outputs", 0, torch.ones(2, 4) + 2**-20), "not bitwise equal"),
    "the second output": (changed("outputs", 1, torch.ones(3, 4) + 2**-20), "not bitwise equal"),
    "the second state": (changed("states", 1, torch.ones(2, 4, 3) - 2**-20), "not bitwise equal"),
    "a zero": (changed("outputs", 2, -torch.zeros(1, 4)), "not bitwise equal"),
    "fewer rows": (changed("outputs", 1, torch.ones(2, 4)), "wrong shape"),
    "another shape of as many elements": (changed("outputs", 1, torch.ones(4, 3)), "wrong shape"),
    "another dtype": (changed("states", 1, torch.ones(2, 4, 3, dtype=torch.float64)), "wrong shape"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_any_difference_is_one(what: str) -> None:
    judge = context("conv_update", lambda: None)
    batch = judge.batch(CASES["conv_update"])
    judge.require_same(result(), result(), "they are the same", batch=batch)
    other, symptom = CHANGED[what]
    for got, expected in ((other, result()), (result(), other)):
        with pytest.raises(Failure, match="they are the same") as caught:
            judge.require_same(got, expected, "they are the same", batch=batch)
        assert caught.value.symptom == symptom


def test_only_the_chosen_sequences_are_compared() -> None:
    judge = context("conv_update", lambda: None)
    batch, (other, _) = judge.batch(CASES["conv_update"]), CHANGED["the second output"]
    judge.require_same(other, result(), "but for the second", batch=batch, only=[0, 2])
    with pytest.raises(Failure, match="output of sequence 1"):
        judge.require_same(other, result(), "the second", batch=batch, only=[1])


def test_bits_are_asked_of_those_who_promise_them() -> None:
    """A last bit is within the budget, and still no promise kept."""
    case = CASES["conv_update"]
    for promised in (True, False):
        judge = context("conv_update", references.conv_update, bitwise=promised)
        batch = judge.batch(case)
        right = judge.run(batch)
        off = Result(tuple(o * (1 + 2**-22) for o in right.outputs), right.states)
        if promised:
            with pytest.raises(Failure, match="same bits"):
                judge.require_same(off, right, "same bits", batch=batch)
        else:
            judge.require_same(off, right, "same bits", batch=batch)


# -- what a relation chooses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [splitting.split_and_resume_body, splitting.split_near_body])
@pytest.mark.parametrize("at", [0, 1, 7, 20])
def test_a_sequence_is_cut_where_the_case_says(body: Callable[[Context, Case], None], at: int) -> None:
    """One call of the whole batch or of its beginning with the other sequence, one of the rest alone."""
    starts: list[list[int]] = []

    def records(*args: Any, **keywords: Any) -> Tensor:
        starts.append(keywords["cu_seqlens"].tolist())
        return references.gdn_prefill(*args, **keywords)

    case = CASES["gdn_prefill"]
    body(context("gdn_prefill", records, bitwise=False), case.with_(choice=at * len(case.sequences)))
    assert [0, at, at + 3] in starts
    assert starts[-1] == [0, 20 - at]


# -- rows of nobody ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e-30, float("nan"), 1.0])
def test_an_inactive_row_is_zero(value: float) -> None:
    def fills(x: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
        y = references.conv_update(x, weight, **keywords)
        return torch.where((keywords["state_indices"] < 0)[:, None], torch.full_like(y, value), y)

    case = CASES["conv_update"].with_(sequences=(*ROWS, Segment(1, "inactive", -1)))
    judge = context("conv_update", fills)
    with pytest.raises(Failure, match="sequence 2 has a negative slot") as caught:
        judge.run(judge.batch(case))
    assert caught.value.symptom == "inactive row not zero"


def test_the_inactive_row_may_stand_before_the_others() -> None:
    """There a kernel that packs its active rows to the front is wrong; behind them it would be right."""
    compacts = load_target(target("rows_compacted", "faulty"))
    equivalence.equivalence_body(context("conv_update", compacts), CASES["conv_update"])
    with pytest.raises(Failure, match=r"must be zero|must change no other row"):
        relations.inactive_rows_added_body(context("conv_update", compacts), CASES["conv_update"].with_(choice=0))


def test_a_slot_that_nobody_wrote_is_seen() -> None:
    def forgets(x: Tensor, weight: Tensor, *, conv_state: Tensor, **keywords: Any) -> Tensor:
        return references.conv_prefill(x, weight, conv_state=conv_state.clone(), **keywords)

    with pytest.raises(Failure, match="slot 0 of sequence 1 still holds poison") as caught:
        placement.memory_body(context("conv_prefill", forgets), CASES["conv_prefill"])
    assert caught.value.symptom == "not written"
