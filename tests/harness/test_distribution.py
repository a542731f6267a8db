"""What the report says of row errors is what the budget measured, row by row, failing ones too."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import distribution
from harness.budget import RATIO_FLOOR_ULPS, UNIT_ROUNDOFF, measure, require_within
from harness.case import AnyCase
from harness.cell import CellResult
from harness.context import Context
from harness.distribution import RATIO_EDGES, SHARE_EDGES, Distribution, Tally, quantile
from harness.failure import Failure
from harness.isolation import find_property
from tests.harness.support import run_cell, target


def rows(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """got, oracle, model, magnitude: 400 rows as right as the model, one that is wrong, one that the model has exactly."""
    draw = torch.Generator().manual_seed(1)
    oracle = torch.randn(402, 8, generator=draw, dtype=torch.float64)
    oracle[401] = 1.0
    model = oracle.to(dtype)
    got = (oracle + 0.3 * UNIT_ROUNDOFF[dtype] * torch.randn(402, 8, generator=draw, dtype=torch.float64)).to(dtype)
    got[400] *= 1.5
    return got, oracle, model, oracle.abs()


def judged(*of: Tensor) -> tuple[Distribution, Failure | None]:
    tally, failure = Tally(), None
    try:
        require_within(*of, "output", count=lambda shares, ratios: tally.add("output", shares, ratios))
    except Failure as caught:
        failure = caught
    return tally.read()["output"], failure


def test_counts_are_those_of_the_measured_rows() -> None:
    of = rows()
    counted, failure = judged(*of)
    measured = measure(*of)
    # Counted again by another rule: from above one edge, up to and including the next.
    shares, ratios = [0] * (len(SHARE_EDGES) + 1), [0] * (len(RATIO_EDGES) + 1)
    for share in measured.ratio.tolist():
        shares[bisect_left(SHARE_EDGES, share)] += 1
    floor = RATIO_FLOOR_ULPS * UNIT_ROUNDOFF[torch.bfloat16] * of[1].square().mean(1).sqrt()
    for rms, model, least in zip(measured.rms.tolist(), measured.model.tolist(), floor.tolist(), strict=True):
        if model > least:
            ratios[bisect_left(RATIO_EDGES, rms / model)] += 1
    assert (counted.shares, counted.ratios) == (shares, ratios)
    assert failure is not None
    assert failure.symptom == "over budget"
    assert counted.shares[-1] == int((measured.ratio > 1).sum()) >= 1
    assert counted.largest == float(measured.ratio.max())
    assert counted.rows == 402
    assert 390 < sum(counted.ratios) < 402, "the model kernel is exact on one row at least"


def test_a_row_that_is_no_number_is_above_the_limit() -> None:
    got, *others = rows()
    got[400] = others[0][400]
    got[7, 3] = float("nan")
    counted, failure = judged(got, *others)
    assert failure is not None
    assert failure.symptom == "not written"
    assert counted.rows == 402
    assert counted.shares[-1] >= 1
    assert counted.largest == math.inf


def test_a_share_of_exactly_one_holds() -> None:
    counted = Distribution()
    counted.count(torch.tensor([1.0, 1.0 + 2**-52, 0.0]).double(), torch.full((3,), torch.nan))
    assert (counted.shares[0], counted.shares[-2]) == (1, 2)  # the middle one is 1 in float32
    above = torch.tensor([1.0 + 2**-52], dtype=torch.float64)
    counted.count(above, above)
    assert counted.shares[-1] == 1
    assert sum(counted.ratios) == 1


def test_the_model_kernels_error_counts_from_its_floor() -> None:
    oracle = torch.ones(2, 4, dtype=torch.float64)
    unit = UNIT_ROUNDOFF[torch.float32]
    model = oracle + torch.tensor([[0.9], [1.1]]) * RATIO_FLOOR_ULPS * unit
    ratio = measure((oracle + unit * 2).float(), oracle, model, oracle).to_model
    assert math.isnan(float(ratio[0]))
    assert float(ratio[1]) == pytest.approx(2 / (1.1 * RATIO_FLOOR_ULPS))


def test_rows_counted_in_parts_are_the_rows_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(2)
    parts = [(torch.rand(n, generator=draw), torch.rand(n, generator=draw).exp()) for n in (1, 70, 3, 200, 9)]
    whole = Distribution()
    whole.count(*(torch.cat(column) for column in zip(*parts, strict=True)))
    merged = Distribution()
    monkeypatch.setattr(distribution, "PENDING_ROWS", 64)
    tally = Tally()
    for shares, ratios in parts:
        tally.add("state", shares, ratios)
        single = Distribution()
        single.count(shares, ratios)
        merged.add(single)
    assert tally.read() == {"state": whole}
    assert merged == whole
    tally.open = False
    tally.add("state", *parts[0])
    assert tally.read() == {"state": whole}


def test_quantiles_are_upper_edges() -> None:
    assert quantile([0, 0, 0], (1.0, 2.0), 0.5) == 0
    assert [quantile([50, 49, 1], (1.0, 2.0), part) for part in (0.5, 0.51, 0.99, 0.9999)] == [1, 2, 2, math.inf]
    counted = Distribution()
    counted.count(torch.tensor([0.31, 0.32]), torch.tensor([3.0, 100.0]))
    assert counted.share(0.5) == pytest.approx(0.32), "no edge says more than the largest share does"
    assert counted.ratio(0.5) == pytest.approx(2**1.75)
    assert counted.ratio(1.0) == math.inf


# -- in cells ---------------------------------------------------------------------------------------------------------


def restored(result: CellResult) -> CellResult:
    return CellResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))


def test_a_cell_carries_its_rows_through_json() -> None:
    result = run_cell("gdn_decode", "equivalence", "optimized.baselines:gdn_decode", examples=20)
    assert set(result.row_errors) == {"output", "state"}
    output = result.row_errors["output"]
    assert output.rows > 20
    assert output.shares[-1] == 0
    assert max(of.largest for of in result.row_errors.values()) == result.worst_share
    assert restored(result).row_errors == result.row_errors
    old: dict[str, Any] = {name: value for name, value in result.to_json().items() if name != "row_errors"}
    assert CellResult.from_json(old).row_errors == {}


def test_a_failing_cell_counts_up_to_its_failing_case() -> None:
    prop, counted = find_property("gdn_decode", "equivalence"), []

    def body(context: Context, case: AnyCase) -> None:
        try:
            prop.body(context, case)
        finally:
            counted.append(sum(of.rows for of in context.tally.read().values()))

    subject = target("values_clipped", "faulty")
    result = run_cell("gdn_decode", replace(prop, body=body), subject, examples=200)
    assert result.failure is not None
    assert sum(of.shares[-1] for of in restored(result).row_errors.values()) >= 1, "the failing row is above the limit"
    first = result.failure.examples
    assert len(counted) > first, "nothing was shrunk"
    assert counted[first - 1] > counted[first - 2] * (first > 1)
    assert set(counted[first - 1 :]) == {counted[first - 1]}, "rows were counted that only shrinking tried"


def test_what_the_baseline_computes_is_not_the_subjects() -> None:
    result = run_cell("gdn_decode", "agrees_with_baseline", "optimized.baselines:gdn_decode", examples=5)
    assert set(result.row_errors) == {"baseline output", "baseline state"}


def test_integers_have_no_row_errors() -> None:
    result = run_cell("step_metadata", "agrees_with_baseline", "optimized.step_metadata:step_metadata", examples=3)
    assert result.status == "passed"
    assert result.row_errors == {}
