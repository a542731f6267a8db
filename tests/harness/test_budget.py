"""The budget lets right implementations pass and wrong ones fail, row by row; `-k calibration -s` prints how close right ones come.

docs/budget.md records the measured shares and says how the constants follow from them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import references
from harness import budget, equivalence, operators, strategies
from harness.budget import measure, require_same_bits, require_within
from harness.cell import adapted
from harness.context import Context
from harness.failure import Failure
from harness.subjects import Capabilities, baseline
from tests.harness.support import draws

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROWS, HEADS, TERMS, WIDTH = 1000, 2, 48, 16


class Products:
    """Rows of sums of products, [ROWS, HEADS, WIDTH], as a kernel of this storage dtype would compute them."""

    def __init__(self, dtype: torch.dtype) -> None:
        draw = torch.Generator().manual_seed(1)
        self.dtype = dtype
        self.left = torch.randn(ROWS, HEADS, TERMS, generator=draw).to(dtype)
        self.right = torch.randn(HEADS, TERMS, WIDTH, generator=draw).to(dtype)
        self.oracle = torch.einsum("rht,htw->rhw", self.left.double(), self.right.double())
        self.magnitude = torch.einsum("rht,htw->rhw", self.left.double().abs(), self.right.double().abs())
        self.model = self.ordered(range(TERMS)).to(dtype)

    def ordered(self, order: Any) -> Tensor:
        """float32 sums in this order, each product and each sum rounded."""
        left, right = self.left.float(), self.right.float()
        total = torch.zeros(ROWS, HEADS, WIDTH)
        for t in order:
            total = total + left[:, :, t, None] * right[None, :, t]
        return total

    def fused(self) -> Tensor:
        """Multiply-adds that round once, as hardware does."""
        total = torch.zeros(ROWS, HEADS, WIDTH)
        for t in range(TERMS):
            exact = total.double() + self.left[:, :, t, None].double() * self.right[None, :, t].double()
            total = exact.float()
        return total

    def blocked(self) -> Tensor:
        """Partial sums of eight terms, added up at the end, as a tiled kernel does."""
        left, right = self.left.float(), self.right.float()
        parts = [torch.einsum("rht,htw->rhw", left[..., t : t + 8], right[:, t : t + 8]) for t in range(0, TERMS, 8)]
        return torch.stack(parts).sum(0)

    def judge(self, got: Tensor) -> float:
        return require_within(got.to(self.dtype), self.oracle, self.model, self.magnitude, "o of sequence 0, row ")


@pytest.fixture(params=DTYPES, ids=str, scope="module")
def products(request: pytest.FixtureRequest) -> Products:
    return Products(request.param)


# -- right ones pass --------------------------------------------------------------------------------------------------

RIGHT: dict[str, Callable[[Products], Tensor]] = {
    "the model kernel": lambda p: p.model,
    "the oracle, rounded": lambda p: p.oracle.to(p.dtype),
    "reversed order": lambda p: p.ordered(reversed(range(TERMS))),
    "shuffled order": lambda p: p.ordered(torch.randperm(TERMS, generator=torch.Generator().manual_seed(2)).tolist()),
    "fused multiply-adds": lambda p: p.fused(),
    "blocks": lambda p: p.blocked(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_implementation_passes(products: Products, name: str) -> None:
    share = products.judge(RIGHT[name](products))
    assert 0 < share < 1


# -- wrong ones fail --------------------------------------------------------------------------------------------------


def _one_row(p: Products, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Perfect but for one row of one head in a thousand."""
    out = p.oracle.clone()
    out[617, 1] = change(out[617, 1])
    return out


def _noisy(p: Products) -> Tensor:
    """So close in direction that a cosine similarity prints as 1.000."""
    noise = torch.randn(p.oracle.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return p.oracle + 0.02 * p.oracle.square().mean(-1, keepdim=True).sqrt() * noise


def _head_scaled(p: Products) -> Tensor:
    out = p.oracle.clone()
    out[:, 1] *= 1.05
    return out


WRONG: dict[str, Callable[[Products], Tensor]] = {
    "all zero": lambda p: torch.zeros_like(p.oracle),
    "scaled by 1.01": lambda p: p.oracle * 1.01,
    "one row scaled by 1.02": lambda p: _one_row(p, lambda row: row * 1.02),
    "one row zero": lambda p: _one_row(p, torch.zeros_like),
    "one row of another": lambda p: _one_row(p, lambda row: p.oracle[616, 1]),
    "one element of one row": lambda p: _one_row(p, lambda row: row + 0.05 * row.abs().amax() * torch.eye(WIDTH)[3]),
    "one head scaled by 1.05": _head_scaled,
    "heads exchanged": lambda p: p.oracle.flip(1),
    "the last term dropped": lambda p: p.ordered(range(TERMS - 1)),
    "close in direction": _noisy,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_implementation_fails(products: Products, name: str) -> None:
    with pytest.raises(Failure, match="further from the oracle than rounding explains") as caught:
        products.judge(WRONG[name](products))
    assert caught.value.symptom == "over budget"
    assert caught.value.rows
    if "one row" in name:
        assert "1 of 2000 rows" in caught.value.message
        assert caught.value.rows[0].where.startswith("[617, 1]")


def test_an_average_would_have_let_them_pass(products: Products) -> None:
    """The wrong ones above are such that the usual global measures see nothing."""
    got, truth = WRONG["one row scaled by 1.02"](products).flatten(), products.oracle.flatten()
    assert float((got - truth).norm() / truth.norm()) < 1e-3
    noisy = WRONG["close in direction"](products).flatten()
    assert float(torch.nn.functional.cosine_similarity(noisy, truth, dim=0)) > 0.999


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transposed_square_fails(dtype: torch.dtype) -> None:
    state = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    model = state.to(dtype)
    assert require_within(model, state, model, state.abs(), "state") <= 1
    with pytest.raises(Failure, match="further from the oracle"):
        require_within(model.mT.contiguous(), state, model, state.abs(), "state")


@pytest.mark.parametrize(("value", "symptom"), [("nan", "not written"), ("inf", "non-finite"), ("-inf", "non-finite")])
def test_one_element_that_is_no_number(products: Products, value: str, symptom: str) -> None:
    out = products.oracle.to(products.dtype)
    out[999, 0, 15] = float(value)
    with pytest.raises(Failure, match=r"\[999, 0.*15.*: got") as caught:
        products.judge(out)
    assert caught.value.symptom == symptom


def test_a_wrong_row_fails_in_ci_too(products: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a variable says that this is CI, a comparison may not turn into a warning."""
    for name in ("CI", "GITHUB_ACTIONS"):
        monkeypatch.setenv(name, "true")
    for name in ("one head scaled by 1.05", "one row scaled by 1.02"):
        with pytest.raises(Failure, match="further from the oracle"):
            products.judge(WRONG[name](products))


UNIT = budget.UNIT_ROUNDOFF[torch.bfloat16]


def one_row(*excess: float) -> tuple[Tensor, Tensor]:
    """(got, oracle): sixteen ones, and what they should be: so many units of bfloat16 more, the last number for all others."""
    units = torch.tensor([*excess, *[excess[-1]] * (16 - len(excess))], dtype=torch.float64)
    return torch.ones(1, 16, dtype=torch.bfloat16), (1 + units * UNIT)[None]


@pytest.mark.parametrize(("excess", "kind"), [((0.75,), "RMS"), ((1.5, 0.0), "maximum")])
def test_a_row_fails_by_either_measure_alone(excess: tuple[float, ...], kind: str) -> None:
    """All elements off by less than one may be, or one of them by more: the other measure would let it pass."""
    got, oracle = one_row(*excess)
    measured = measure(got, oracle, oracle, torch.zeros_like(oracle))
    shares = {"RMS": measured.rms / measured.rms_allowed, "maximum": measured.peak / measured.peak_allowed}
    assert {name for name, share in shares.items() if float(share) > 1} == {kind}
    with pytest.raises(Failure, match=f"the worst one's {kind} error"):
        require_within(got, oracle, oracle, torch.zeros_like(oracle), "o")


def test_a_small_row_is_judged_by_its_own_size() -> None:
    """Beside a row a million times larger, and one on which the model kernel is far off, it may err no more than alone."""
    oracle = torch.tensor([[1000.0] * 4, [1e-3] * 4, [1.0] * 4], dtype=torch.float64)
    model = oracle.clone()
    model[2] += 0.5
    got = oracle.to(torch.bfloat16)
    got[1] *= 1.05
    measured = measure(got, oracle, model, torch.zeros_like(oracle))
    assert (measured.ratio > 1).tolist() == [False, True, False]


def test_cancellation_widens_the_allowance_only_where_it_is() -> None:
    """A sum of large terms that cancel may err by their size times u; its neighbour may not."""
    oracle = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    magnitude = torch.tensor([[1e6], [1.0]], dtype=torch.float64)
    got = oracle.float() + 0.1
    allowed = measure(got, oracle, oracle.float(), magnitude)
    assert (allowed.ratio < 1).tolist() == [True, False]


def test_zero_rows_must_be_zero() -> None:
    zero = torch.zeros(2, 4, dtype=torch.float64)
    for dtype in DTYPES:
        got = zero.to(dtype)
        assert require_within(got, zero, got, zero, "o") == 0
        with pytest.raises(Failure, match="1 of 2 rows"):
            require_within(got + torch.tensor([[0.0], [1e-4]]).to(dtype), zero, got, zero, "o")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("what", ["model", "magnitude", "operand noise"])
def test_an_allowance_that_is_no_number_is_an_error(what: str, value: float) -> None:
    """Nothing is larger than no number: every row would be right. Where the oracle is none either, there is nothing to judge."""
    row = torch.ones(2, 3, dtype=torch.float64)
    wild = torch.where(torch.arange(2)[:, None] == 1, value, row)
    given = {"model": row, "magnitude": row, "operand noise": row, what: wild}
    arguments = (given["model"], given["magnitude"], "output", str, given["operand noise"])
    with pytest.raises(RuntimeError, match="allowance"):
        budget.require_within(row.float(), row, *arguments)
    assert budget.require_within(wild.float(), wild, *arguments) < 1


def test_constants_are_those_of_the_record() -> None:
    """They change together with docs/budget.md and a new measurement, or not at all."""
    assert (budget.FACTOR, budget.OUTPUT_ULPS_RMS, budget.OUTPUT_ULPS_MAX, budget.COMPUTE_ULPS) == (2.0, 0.5, 1.0, 16.0)
    assert (budget.OPERAND_ULPS_RMS, budget.OPERAND_ULPS_MAX) == (1.0, 1.75)


def test_same_bits_tells_zero_from_minus_zero() -> None:
    zeros = torch.zeros(2, 3)
    require_same_bits(zeros, zeros.clone(), "o", "promised")
    with pytest.raises(Failure, match=r"6 of 6 elements differ.*; promised") as caught:
        require_same_bits(-zeros, zeros, "o", "promised")
    assert caught.value.symptom == "not bitwise equal"
    for other in (zeros.half(), torch.zeros(3, 3), torch.zeros(6)):
        with pytest.raises(Failure, match="expected") as caught:
            require_same_bits(other, zeros, "o", "promised")
        assert caught.value.symptom == "wrong shape"


# -- calibration ------------------------------------------------------------------------------------------------------

#: More of them: SLUICEGATE_CALIBRATION_CASES=2000.
CASES = int(os.environ.get("SLUICEGATE_CALIBRATION_CASES", "200"))
JUDGED = ("conv_prefill", "conv_update", "gdn_decode", "gated_rmsnorm", "moe_routing", "moe")


def test_a_first_failure_imports_nothing_more() -> None:
    """What fails first in a process is timed; `torch.unravel_index` once brought a computer algebra system, a second or more."""
    program = """
import sys, torch
from harness import budget
from harness.failure import Failure
right = torch.ones(3, 4, 8)
wrong = right.clone()
wrong[1, 2, 3] = 2
before = set(sys.modules)
try:
    budget.require_within(wrong, right.double(), right, right, "output")
except Failure:
    print(len(set(sys.modules) - before))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "0"


def known_to_be_right(operator: str) -> dict[str, Callable[..., Any]]:
    """The pre-optimization way, and the reference itself with its arithmetic in float32 and in float64."""
    found = baseline(operator)
    assert found is not None
    reference = getattr(references, operator)

    def rounded(*args: Any, **kwargs: Any) -> Any:
        """In float64, but for weights of a router, which are float32 whoever computes them."""
        out = reference(*args, **kwargs, compute_dtype=torch.float64)
        return (out[0], out[1].float()) if operator == "moe_routing" else out

    return {
        "baseline": found.load(),
        "reference in float32": partial(reference, compute_dtype=torch.float32),
        "reference in float64": rounded,
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", JUDGED)
def test_calibration(name: str, dtype: str) -> None:
    """What is known to be right stays within the budget in every case; the largest share of it that any row used."""
    operator = operators.get(name)
    cases = draws(operator.cases(strategies.CPU, dtype), CASES)
    shares = {}
    for who, function in known_to_be_right(name).items():
        claims = Capabilities.of(function)
        context = Context(operator, function, torch.device("cpu"), claims, check_memory=False)
        few = cases if who == "baseline" else cases[: CASES // 4]
        for case in few:
            equivalence.equivalence_body(context, adapted(case, claims))
        shares[who] = context.worst_share
    print(f"\n| {name} | {dtype} | {len(cases)} | " + " | ".join(f"{s:.2f}" for s in shares.values()) + " |")
    assert max(shares.values()) < 1
    assert min(shares.values()) >= 0
    assert shares["baseline"] > 0, "a share of exactly nothing means that nothing was compared"
