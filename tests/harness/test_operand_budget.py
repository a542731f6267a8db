"""The budget of an operator that rounds the operands of its products: right implementations pass, one wrong row fails.

`-k calibration -s` prints how close right ones come, for docs/budget.md.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import budget, equivalence, operators, strategies
from harness.batch import Batch, Result
from harness.case import Case, Segment
from harness.context import Context
from harness.failure import Failure
from harness.operators import delta_terms
from references.gdn import gdn_recurrence
from tests.harness.right_prefill import published_prefills, right_prefills
from tests.harness.support import draws, find_any
from tests.harness.test_budget import CASES

DTYPES = ("float32", "float16", "bfloat16")
HALF = ("float16", "bfloat16")
PREFILL = operators.get("gdn_prefill")
CPU = torch.device("cpu")


# -- calibration ------------------------------------------------------------------------------------------------------


def shares(functions: dict[str, Any], dtype: str, count: int) -> dict[str, float]:
    """The largest share of its allowance that any row of any case used, by implementation."""
    cases = draws(PREFILL.cases(strategies.CPU, dtype), count)
    out = {}
    for name, function in functions.items():
        context = Context(PREFILL, function, CPU, check_memory=False)
        for case in cases:
            equivalence.equivalence_body(context, case)
        out[name] = context.worst_share
    return out


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_calibration(dtype: str) -> None:
    """Chunks of several sizes and operands rounded in other places: all stay within the budget in every case."""
    used = shares(right_prefills(getattr(torch, dtype)), dtype, CASES // 2)
    print(f"\n| {dtype} | {CASES // 2} | " + " | ".join(f"{share:.2f}" for share in used.values()) + " |")
    assert max(used.values()) < 1
    assert min(used.values()) > 0, "a share of exactly nothing means that nothing was compared"


@pytest.mark.parametrize("dtype", DTYPES)
def test_calibration_on_published_functions(dtype: str) -> None:
    """flash-linear-attention's naive functions compute in float32 whatever they get."""
    used = shares(published_prefills(), dtype, CASES // 10)
    print(f"\n| {dtype} | {CASES // 10} | " + " | ".join(f"{share:.2f}" for share in used.values()) + " |")
    assert 0 < max(used.values()) < 1


# -- planted errors ---------------------------------------------------------------------------------------------------


def batch(dtype: str, **regime: str) -> Batch:
    """Two sequences of a real model's head dims."""
    case = Case(
        operator="gdn_prefill",
        sequences=(Segment(100, "resumed", 0), Segment(30, "fresh", 1)),
        dims={"H": 1, "HV": 2, "K": 128, "V": 128},
        dtype=dtype,
        regime={"amplitude": "unit", "decay": "mixed", "keys": "random", "beta": "random", **regime},
        options={"scale": None},
        pool_slots=2,
    )
    return PREFILL.batch(case, CPU)


def caught(dtype: str, change: Any, what: str = "outputs") -> float:
    """The part of all rows that fail when each is what ``change`` makes of the true rows [rows, n]."""
    content = batch(dtype)
    oracle = PREFILL.oracle(content)
    judged = (oracle, PREFILL.model(content), PREFILL.magnitude(content), PREFILL.operand_noise(content))
    rows = [None if r is None else rows_of(r, what) for r in judged]
    assert rows[0] is not None
    got = change(rows[0]).to(getattr(torch, dtype) if what == "outputs" else torch.float32)
    return float((budget.measure(got, *rows).ratio > 1).double().mean())


def rows_of(result: Result, what: str) -> Tensor:
    parts: list[Tensor] = [part for part in getattr(result, what) if part is not None]
    return torch.cat([part.reshape(-1, part.shape[-1] if what == "outputs" else part[0].numel()) for part in parts])


@pytest.mark.parametrize("what", ["outputs", "states"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_is_another_is_caught(dtype: str, what: str) -> None:
    for change in (torch.zeros_like, lambda rows: rows.roll(1, 0), lambda rows: -rows, lambda rows: rows.flip(1)):
        assert caught(dtype, change, what) == 1


@pytest.mark.parametrize("what", ["outputs", "states"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e-4), ("float16", 0.005), ("bfloat16", 0.02)])
def test_a_row_that_is_a_little_off_is_caught(dtype: str, size: float, what: str) -> None:
    """One row of two hundred, scaled; nearly all rows: where terms cancel, rounding is as large."""
    assert caught(dtype, lambda rows: rows * (1 + size), what) > 0.9
    assert caught(dtype, lambda rows: rows * (1 + 3 * size), what) > 0.99


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_a_wrong_decay_of_one_token_is_caught(dtype: str, factor: float) -> None:
    """Token 70 of the longer sequence, in one head, decays otherwise."""
    content = batch(dtype, decay="slow")

    def one_decay_wrong(*args: Tensor, g: Tensor, **rest: Any) -> Tensor:
        wrong = g.clone()
        wrong[70, 1] = -0.2 * factor
        return gdn_recurrence(*args, g=wrong, **rest)

    content.tokens[0]["g"][70, 1] = -0.2
    context = Context(PREFILL, one_decay_wrong, CPU, check_memory=False)
    got = context.run(content)
    with pytest.raises(Failure, match="further from the oracle than rounding explains") as caught:
        context.require_within_budget(got, content)
    assert "head 1" in caught.value.rows[0].where


def test_float32_has_no_operand_noise() -> None:
    assert PREFILL.operand_noise(batch("float32")) is None
    content = batch("float32")
    allowed = budget.measure(
        *(rows_of(r, "outputs") for r in (PREFILL.oracle(content), PREFILL.oracle(content), PREFILL.model(content))),
        rows_of(PREFILL.magnitude(content), "outputs"),
    )
    relative = allowed.rms_allowed / rows_of(PREFILL.oracle(content), "outputs").square().mean(1).sqrt()
    assert 1e-7 < float(relative.median()) < 2e-5


@pytest.mark.parametrize("dtype", HALF)
def test_operand_noise_floors_the_model_error(dtype: str) -> None:
    """A row that the model kernel has right by chance is still allowed the noise; one that it has wrong, no more than before."""
    kind = getattr(torch, dtype)
    oracle, noise = torch.ones(2, 4, dtype=torch.float64), torch.full((2, 4), 0.01, dtype=torch.float64)
    model = oracle + torch.tensor([[0.0], [0.1]], dtype=torch.float64)
    allowed = budget.measure(oracle.to(kind), oracle, model, torch.zeros_like(oracle), noise)
    plain = budget.measure(oracle.to(kind), oracle, model, torch.zeros_like(oracle))
    extra = (allowed.rms_allowed - plain.rms_allowed).tolist()
    assert extra[0] == pytest.approx(budget.FACTOR * budget.OPERAND_ULPS_RMS * 0.01)
    assert extra[1] == 0


@pytest.mark.parametrize("scale", [0.0, -0.5, 2.0])
def test_the_noise_of_a_scaled_output_is_scaled(scale: float) -> None:
    """Every rounding of an output is a factor of it, the scale too. Zero times anything has none: not even of no number."""
    case = find_any(
        PREFILL.cases(strategies.CPU, "bfloat16"), lambda c: c.tokens > 70 and c.regime["amplitude"] == "unit"
    )
    batch = PREFILL.batch(case, CPU)
    plain, scaled = (delta_terms.operand_noise(batch, s, torch.bfloat16) for s in (1.0, scale))
    for one, other in zip(plain.outputs, scaled.outputs, strict=True):
        torch.testing.assert_close(other, abs(scale) * one)
