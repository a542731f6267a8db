"""A case survives the way to a file and back: what `sluicegate replay` reads is what the worker judged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import operators, strategies
from harness.case import Case, Layout, Segment, Step, StepCase
from harness.isolation import suite

SCALES = {"cpu": strategies.CPU, "cuda": strategies.GPU}


def builders(operator: str) -> list[Any]:
    """Every function that draws cases of this operator: its own, and those of properties with a strategy of their own."""
    own = [p.strategy for p in suite(operator).PROPERTIES if p.strategy is not None]
    return [operators.get(operator).cases, *dict.fromkeys(own)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", operators.OPERATORS)
def test_json_round_trip(name: str, scale: str) -> None:
    operator = operators.get(name)
    drawn = st.one_of([build(SCALES[scale], dtype) for build in builders(name) for dtype in operator.dtypes])

    @settings(max_examples=40, deadline=None, database=None)
    @given(drawn)
    def check(case: Any) -> None:
        text = json.dumps(case.to_json())
        again = operator.case_from_json(json.loads(text))
        assert again == case
        assert repr(again) == repr(case), "the shrinker tells cases apart by their repr"
        assert operator.describe(again) == operator.describe(case)
        assert operator.coverage(again) == operator.coverage(case)

    check()


def test_every_field_travels() -> None:
    case = Case(
        operator="gdn_decode",
        sequences=(Segment(3, "resumed", 5), Segment(1, "inactive", -1)),
        dims={"K": 8, "H": 1},
        dtype="bfloat16",
        state_dtype="float16",
        regime={"decay": "mixed"},
        options={"scale": None, "bias": True},
        layout=Layout(1, 2, 3, 4, True, True, True),
        pool_slots=9,
        pad_slot=-(2**31),
        choice=11,
        seed=13,
    )
    plain = Case(operator="gdn_decode", sequences=(), dims={})
    assert all(getattr(case, name) != getattr(plain, name) for name in vars(case) if name != "operator")
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_every_field_of_a_life_travels() -> None:
    step = Step((3, 1), 1, (0, 7), (4, -1))
    case = StepCase("step_metadata", (step, step), 16, 8, seed=5)
    assert StepCase.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_a_case_cannot_be_changed() -> None:
    case = Case(operator="conv_update", sequences=(), dims={"D": 1})
    with pytest.raises(TypeError, match="does not support item assignment"):
        case.dims["D"] = 2  # type: ignore[index]
