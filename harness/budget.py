"""How far a row may be from the float64 oracle.

A row is one token x head (or token x channel vector), or one slot x head of a state. Its error is compared, as RMS and
as maximum, with

    FACTOR x (error of the model kernel on this row)  +  OUTPUT_ULPS x u_out x |row|  +  COMPUTE_ULPS x u_compute x |terms|

The model kernel is the reference run in the operator's storage dtypes with float32 arithmetic: it shows the error that
nobody can avoid. u is the unit roundoff of the output's dtype and of float32. |terms| is the row's largest sum of
absolute values of the terms that were added up (the operator's `magnitude`), so that cancellation widens the allowance
exactly where it amplifies rounding and nowhere else. Nothing is averaged over rows: one bad row fails.

An operator that rounds the operands of its matrix products to half precision declares what that does to each element, as
the root of the sum of squares over all roundings (`operand_noise`). Such errors are random, and the model kernel shows
one draw of them: on a row of a few elements it may be almost right by chance. Its error there therefore counts as no
smaller than OPERAND_ULPS x operand noise: a rounding is uniform, its standard deviation 1 / sqrt(3) of what the noise counts,
so FACTOR x OPERAND_ULPS lets an element be off by six standard deviations and a row by three and a half.

The constants are calibrated on implementations known to be right (`tests/harness/test_budget.py` repeats the measurement and
`docs/budget.md` records it) and are never widened to make a test pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.failure import Row, fail

FACTOR = 2.0
OUTPUT_ULPS_RMS = 0.5
OUTPUT_ULPS_MAX = 1.0
COMPUTE_ULPS = 16.0
OPERAND_ULPS_RMS = 1.0
OPERAND_ULPS_MAX = 1.75
#: For the report only, nothing is judged by it: a row's error is compared with the model kernel's where that is more than
#: so many unit roundoffs of the row. Below, the model kernel is right by chance.
RATIO_FLOOR_ULPS = 0.1

#: Unit roundoff: the largest relative error of one rounding to nearest.
UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
#: Below the smallest normal number a GPU may flush to zero, and half precision loses digits.
TINY = {torch.float64: 1e-300, torch.float32: 1.2e-38, torch.float16: 6.2e-5, torch.bfloat16: 1.2e-38}


@dataclass(frozen=True)
class Measured:
    """Row errors of one tensor: got and allowed, RMS and maximum, each [rows]."""

    rms: Tensor
    rms_allowed: Tensor
    peak: Tensor
    peak_allowed: Tensor
    #: The model kernel's RMS error, and above what it counts in `to_model`.
    model: Tensor
    model_floor: Tensor

    @property
    def ratio(self) -> Tensor:
        """How much of its allowance each row uses; above 1 it fails."""
        return torch.maximum(self.rms / self.rms_allowed, self.peak / self.peak_allowed)

    @property
    def to_model(self) -> Tensor:
        """Each row's RMS error over the model kernel's; NaN where that is under its floor."""
        return torch.where(self.model > self.model_floor, self.rms / self.model, torch.nan)


def measure(
    got: Tensor,
    oracle: Tensor,
    model: Tensor,
    magnitude: Tensor,
    operand_noise: Tensor | None = None,
    model_oracle: Tensor | None = None,
) -> Measured:
    """Row errors of ``got`` [..., n]; ``oracle`` float64, ``model`` in the storage dtype, ``magnitude`` >= |terms|, all alike.

    ``operand_noise``: of an operator whose operands are rounded, in the same shape. ``model_oracle``: what the model kernel's
    error is measured from, where ``oracle`` is another's word; if that is wrong, it must not be forgiven as a rounding.
    """
    dtype = got.dtype
    columns = got.shape[-1] if got.dim() else 1
    truth = oracle.double().reshape(-1, columns)
    error = (got.double().reshape(-1, columns) - truth).abs()
    modelled = truth if model_oracle is None else model_oracle.double().reshape(-1, columns)
    unavoidable = (model.double().reshape(-1, columns) - modelled).abs()
    model_rms = unavoidable.square().mean(1).sqrt()
    unavoidable_rms, unavoidable_max = model_rms, unavoidable.amax(1)
    if operand_noise is not None:
        noise = operand_noise.double().reshape(-1, columns)
        unavoidable_rms = torch.maximum(unavoidable_rms, OPERAND_ULPS_RMS * noise.square().mean(1).sqrt())
        unavoidable_max = torch.maximum(unavoidable_max, OPERAND_ULPS_MAX * noise.amax(1))
    terms = magnitude.double().reshape(-1, columns).amax(1)
    size_rms, size_max = truth.square().mean(1).sqrt(), truth.abs().amax(1)
    compute = COMPUTE_ULPS * UNIT_ROUNDOFF[torch.float32] * terms
    if dtype == torch.float64:
        compute = COMPUTE_ULPS * UNIT_ROUNDOFF[torch.float64] * terms
    # In float16 the spacing stops shrinking at the smallest normal number: half of the subnormal spacing is unavoidable.
    least = 2.0**-25 if dtype == torch.float16 else TINY[dtype]
    floor = compute + least
    unit = UNIT_ROUNDOFF[dtype]
    return Measured(
        rms=error.square().mean(1).sqrt(),
        rms_allowed=FACTOR * unavoidable_rms + OUTPUT_ULPS_RMS * unit * size_rms + floor,
        peak=error.amax(1),
        peak_allowed=FACTOR * unavoidable_max + OUTPUT_ULPS_MAX * unit * size_max + floor,
        model=model_rms,
        model_floor=RATIO_FLOOR_ULPS * unit * size_rms + least,
    )


Locate = Callable[[list[int]], str]
#: Takes the rows' shares of their allowances, and their errors over the model kernel's (see `Measured`).
Count = Callable[[Tensor, Tensor], None]


def _indices(index: list[int]) -> str:
    return str(index)


def require_within(
    got: Tensor,
    oracle: Tensor,
    model: Tensor,
    magnitude: Tensor,
    what: str,
    locate: Locate = _indices,
    operand_noise: Tensor | None = None,
    count: Count | None = None,
    model_oracle: Tensor | None = None,
) -> float:
    """Raise the failure of the worst row, or return the largest share of its allowance that a row used.

    The tensors are those of `measure`. ``what`` names the tensor for the message, e.g. ``"output"``; ``locate`` puts a row's
    leading indices into words.
    ``count`` is given every row, failing ones too, an element that is no number as an infinite share.
    """
    if got.numel() == 0:
        return 0.0
    measured = measure(got, oracle, model, magnitude, operand_noise, model_oracle)
    judged = torch.isfinite(oracle).reshape(-1, got.shape[-1]).all(1)
    if not bool(torch.isfinite(measured.rms_allowed + measured.peak_allowed)[judged].all()):
        raise RuntimeError(
            f"{what}: a row's allowance is no number, so that anything would be within it; the model kernel, the magnitude"
            " or the operand noise of its operator is at fault"
        )
    bad = ~torch.isfinite(got) & torch.isfinite(oracle)
    ratio = torch.nan_to_num(measured.ratio, nan=0.0, posinf=float("inf"))
    if bool(bad.any()):
        bad_rows = bad.reshape(-1, got.shape[-1]).any(1)
        if count is not None:
            count(ratio.masked_fill(bad_rows, float("inf")), measured.to_model)
        index = torch.nonzero(bad.cpu())[0].tolist()
        symptom = "not written" if bool(got[tuple(index)].isnan()) else "non-finite"
        hint = (
            " (the buffer was poisoned with NaN: nobody wrote it, or the call read poisoned memory)"
            if symptom == "not written"
            else ""
        )
        fail(
            symptom,
            f"{what} of {locate(index[:-1])}, element {index[-1]}: got {got[tuple(index)].item()} where the oracle has"
            f" {oracle[tuple(index)].item():.6g}{hint}",
            worst_rows(got, oracle, bad_rows.double(), locate=locate),
            mark=what.split(" ")[0],
        )
    if count is not None:
        count(ratio, measured.to_model)
    worst = float(ratio.max())
    if worst > 1.0:
        i = int(ratio.argmax())
        rms_decides = float(measured.rms[i] / measured.rms_allowed[i]) >= float(
            measured.peak[i] / measured.peak_allowed[i]
        )
        kind = "RMS" if rms_decides else "maximum"
        error = measured.rms[i] if rms_decides else measured.peak[i]
        allowed = measured.rms_allowed[i] if rms_decides else measured.peak_allowed[i]
        rows = int((ratio > 1.0).sum())
        fail(
            "over budget",
            f"{what}: {rows} of {ratio.numel()} rows further from the oracle than rounding explains; the worst one's {kind} error"
            f" is {float(error):.3g}, allowed {float(allowed):.3g} ({worst:.3g} times over)",
            worst_rows(got, oracle, ratio, measured, locate=locate),
            mark=what.split(" ")[0],
        )
    return worst


def worst_rows(
    got: Tensor,
    oracle: Tensor,
    ratio: Tensor,
    measured: Measured | None = None,
    count: int = 3,
    locate: Locate = _indices,
) -> list[Row]:
    """The rows with the largest ``ratio`` [rows], as the report shows them: their first values, expected and got."""
    shape, columns = got.shape[:-1], got.shape[-1]
    flat_got, flat_oracle = got.reshape(-1, columns), oracle.reshape(-1, columns)
    rows = []
    # On the host: CUDA would load its sorting kernels for the first failure of a process.
    for i in ratio.cpu().argsort(descending=True)[:count].tolist():
        if not float(ratio[i]) > (0.0 if measured is None else 1.0):
            break
        # numpy's: torch's imports a computer algebra system first, a second or more for the first failure of a process.
        where = locate([int(v) for v in np.unravel_index(i, shape)])
        # Show the stretch of the row in which the largest difference lies.
        difference = torch.nan_to_num((flat_got[i].double() - flat_oracle[i].double()).abs(), nan=float("inf"))
        start = max(0, min(int(difference.argmax()) - 2, columns - 6))
        rows.append(
            Row(
                where + (f", elements {start}-{min(start + 6, columns) - 1}" if columns > 6 else ""),
                flat_oracle[i, start : start + 6].double().tolist(),
                flat_got[i, start : start + 6].double().tolist(),
                float(measured.peak[i]) if measured else float("nan"),
                float(measured.peak_allowed[i]) if measured else float("nan"),
            )
        )
    return rows


def require_same_bits(got: Tensor, expected: Tensor, what: str, why: str) -> None:
    """Bitwise equality of two results that must not differ at all; ``why`` says which promise that is."""
    from harness.memory import as_bits

    if got.shape != expected.shape or got.dtype != expected.dtype:
        fail(
            "wrong shape",
            f"{what}: got {tuple(got.shape)} {got.dtype}, expected {tuple(expected.shape)} {expected.dtype}; {why}",
        )
    different = as_bits(got) != as_bits(expected)
    if not bool(different.any()):
        return
    columns = got.shape[-1] if got.dim() else 1
    per_row = different.reshape(-1, columns).sum(1).double()
    fail(
        "not bitwise equal",
        f"{what}: {int(different.sum())} of {got.numel()} elements differ; {why}",
        worst_rows(got, expected, per_row),
        mark=what.split(" ")[0],
    )
