"""A cell draws what its seed says, keeps to one fault while it shrinks, and answers for processes that die."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.case import AnyCase, Case, Layout, Segment
from harness.cell import Cell, CellSpec, adapted
from harness.context import Context, Property
from harness.failure import Failure, fail
from harness.isolation import Sandbox
from harness.shrink import polish
from harness.subjects import Capabilities
from tests.harness.support import SUBJECTS, run_cell, target

RIGHT = target("conv_update", "right")


def drawn(seed: int, subject: str = RIGHT, examples: int = 40) -> list[AnyCase]:
    """The cases that a cell of this seed judges."""
    seen: list[AnyCase] = []
    prop = Property("looks", "equivalence", lambda _, case: seen.append(case))
    run_cell("conv_update", prop, subject, examples=examples, seed=seed)
    return seen


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_cases_follow_from_the_seed() -> None:
    assert drawn(1) == drawn(1)
    # The plainest case of all comes first, whatever the seed.
    assert drawn(1)[1:] != drawn(2)[1:]


CLAIMS = {
    "no strided views": ("{'strided': False}", lambda case: case.layout.row_pad == case.layout.base_offset == 0),
    "no padded pool": ("{'padded_pool': False}", lambda case: case.layout.slot_pad == 0),
    "a float32 pool": ("{'state_dtypes': ('float32',)}", lambda case: case.state_dtype == "float32"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_subject_gets_what_it_claims_and_nothing_less(claim: str, tmp_path: Path) -> None:
    declared, kept = CLAIMS[claim]
    subject = tmp_path / "mine.py"
    subject.write_text((SUBJECTS / "right.py").read_text() + f"\nconv_update.sluicegate = {declared}\n")
    cases = drawn(3, f"{subject}:conv_update")
    assert all(kept(case) for case in cases)
    # It does not claim less of anything else.
    for other, (_, taken) in CLAIMS.items():
        assert other == claim or claim == "no strided views" or other == "a float32 pool" or not all(map(taken, cases))


def test_what_is_not_claimed_is_taken_out_of_the_case() -> None:
    case = Case("conv_update", (Segment(1, "resumed"),), {"D": 1}, layout=Layout(1, 8, 1, 64, True, True, True))
    assert adapted(case, Capabilities()) == case
    assert adapted(case, Capabilities(chunk_size=64)) == case
    assert adapted(case, Capabilities(strided=False)).layout == Layout(slot_pad=64, wide_indices=True)  # type: ignore[union-attr]


# -- what fails -------------------------------------------------------------------------------------------------------


def wide(_: Context, case: Case) -> None:
    """Two faults: one of three rows and more, another one of fewer."""
    if len(case.sequences) >= 3:
        fail("over budget", "three rows")
    if case.layout.slot_pad:
        fail("host sync", "padded slots")


@pytest.mark.parametrize("seed", range(3))
def test_shrinking_keeps_to_one_fault(seed: int) -> None:
    result = run_cell("conv_update", Property("wide", "equivalence", wide), RIGHT, seed=seed)
    assert result.status == "failed"
    failure = result.failure
    assert failure is not None
    count = len(failure.case["sequences"])
    assert (failure.symptom, count) in (("over budget", 3), ("host sync", 1)), failure.message


def test_polishing_keeps_to_one_fault_and_leaves_out_the_rest() -> None:
    case = Case(
        operator="conv_update",
        sequences=tuple(Segment(1, "resumed", slot) for slot in (7, 3, 5, 1, 9)),
        dims={"D": 20, "W": 4},
        regime={"amplitude": "large"},
        options={"activation": None, "bias": False},
        layout=Layout(row_pad=8, base_offset=1, strided_indices=True),
        pool_slots=12,
        choice=9,
    )

    def judge(tried: AnyCase) -> Failure | None:
        assert isinstance(tried, Case)
        try:
            fail("over budget", "many") if len(tried.sequences) >= 3 else fail("raised", "few")
        except Failure as failure:
            return failure

    first = judge(case)
    assert first is not None
    small, failure = polish(case, first, judge, seconds=20.0)
    assert isinstance(small, Case)
    assert (failure.symptom, len(small.sequences)) == ("over budget", 3)
    assert sorted(s.slot for s in small.sequences) == [0, 1, 2]
    assert small.layout == Layout()
    assert (small.dims["D"], small.regime["amplitude"], small.choice) == (1, "unit", 0)


def test_failures_of_two_symptoms_are_of_two_kinds() -> None:
    kinds = []
    for symptom, mark in (("raised", "KeyError"), ("raised", "OverflowError"), ("hung", ""), ("raised", "KeyError")):
        with pytest.raises(Failure, match="why") as caught:
            fail(symptom, "why", mark=mark)
        kinds.append(type(caught.value))
        assert caught.value.symptom == symptom
    assert len(set(kinds)) == 3
    assert kinds[0] is kinds[3]


# -- processes that die -----------------------------------------------------------------------------------------------


def test_a_sandbox_answers_for_what_happens_in_it(tmp_path: Path) -> None:
    subject = tmp_path / "subject.py"
    subject.write_text(
        (SUBJECTS / "right.py").read_text()
        + "\n\ndef by_rows(x, weight, **rest):\n"
        + "    import os, time\n"
        + "    rows = x.shape[0]\n"
        + "    if rows == 2: os._exit(3)\n"
        + "    if rows == 3: time.sleep(60)\n"
        + "    return conv_update(x, weight, **rest) * (2 if rows == 4 else 1)\n"
    )
    spec = CellSpec("conv_update", "mine", f"{subject}:by_rows", "equivalence", "cpu", "float32", 1, 0)
    sandbox = Sandbox(spec, timeout=3.0)

    def judge(rows: int) -> None:
        sandbox.judge(
            Case(
                operator="conv_update",
                sequences=tuple(Segment(1, "resumed", slot) for slot in range(rows)),
                dims={"D": 2, "W": 4},
                regime={"amplitude": "unit"},
                options={"activation": None, "bias": False},
                pool_slots=rows,
            )
        )

    try:
        judge(1)
        for rows, symptom, words in (
            (4, "over budget", "further from the oracle"),
            (2, "crashed", "exit code 3"),
            (3, "hung", "no answer within 3 s"),
        ):
            with pytest.raises(Failure, match=words) as caught:
                judge(rows)
            assert caught.value.symptom == symptom
    finally:
        sandbox.close()


def test_a_cell_whose_property_holds_passes() -> None:
    spec = CellSpec("conv_update", "planted", RIGHT, "wide", "cpu", "float32", 20, 0)
    result = Cell(spec, Property("wide", "equivalence", lambda _, __: None)).run()
    assert (result.status, result.failure, result.cases) == ("passed", None, 20)
