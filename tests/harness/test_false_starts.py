"""Starts that count tokens which are not there: a slot that the batch names may change, any other may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import operators
from harness.arguments import false_starts_body
from harness.case import Case, Segment
from harness.context import Context
from harness.failure import Failure
from tests.harness.subjects import right

#: The starts from 1 on are raised, and so the resumed sequence, which has no token, gets the inactive one's.
CASE = Case(
    operator="conv_prefill",
    sequences=(Segment(0, "resumed", 2), Segment(1, "inactive", -1)),
    dims={"D": 4, "W": 4},
    regime={"amplitude": "unit"},
    options={"activation": "silu", "bias": False},
    pool_slots=4,
    choice=1,
)


def clamped(x: Tensor, weight: Tensor, *, cu_seqlens: Tensor, **rest: Any) -> Tensor:
    """As many tokens as there are, whatever the starts count."""
    return right.conv_prefill(x, weight, cu_seqlens=cu_seqlens.clamp(max=len(x)), **rest)


def slot_that_no_row_names(x: Tensor, weight: Tensor, *, cu_seqlens: Tensor, conv_state: Tensor, **rest: Any) -> Tensor:
    if int(cu_seqlens[-1]) > len(x):
        conv_state[3] = 0
    return clamped(x, weight, cu_seqlens=cu_seqlens, conv_state=conv_state, **rest)


def judge(function: Any) -> None:
    false_starts_body(Context(operators.get("conv_prefill"), function, torch.device("cpu")), CASE)


def test_a_sequence_that_gets_tokens_by_false_starts_may_write_its_slot() -> None:
    judge(clamped)


def test_a_slot_that_no_row_names_may_not_change() -> None:
    with pytest.raises(Failure, match=r"slot 3 belongs to no active row .* active slots: \[2\]"):
        judge(slot_that_no_row_names)
