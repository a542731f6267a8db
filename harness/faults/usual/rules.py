"""The usual rules by which a kernel's result is called right, each as its source states it, and ours.

A rule is a pure function of what came and what was expected: two tensors of one shape and dtype, with at least one element;
it says whether the result passes. What was expected is the float64 oracle, cast to the dtype of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness import budget
from harness.failure import Failure
from harness.memory import same_bits

TOLERANCE = 1e-2
COSINE = 0.99
MATCHED = 0.95
RATIO = 0.005
CI_RATIO = 0.01
CI_MAX_ERROR = 0.3
#: The name of our own rule, which needs more than what was expected.
BUDGET = "budget"


def allclose(got: Tensor, expected: Tensor) -> bool:
    """Every element within 1e-2 + 1e-2 |expected|, as KernelBench asked at first of float32 and asks now of half precision.

    https://github.com/ScalingIntelligence/KernelBench/blob/01f92ad6103dc3feb1fe5b3c7e58536e9197430f/src/eval.py
    """
    return torch.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


def cosine(got: Tensor, expected: Tensor) -> bool:
    """Cosine similarity of the flattened tensors above 0.99, as FlashInfer's test of an FP8 product asks.

    https://github.com/flashinfer-ai/flashinfer/blob/20cd88e5d2de15144e4fbba526a4e6dfd62397a7/tests/gemm/test_bmm_fp8.py
    """
    similarity = torch.nn.functional.cosine_similarity(expected.reshape(-1).float(), got.reshape(-1).float(), dim=0)
    return bool(similarity > COSINE)


def matched(got: Tensor, expected: Tensor) -> bool:
    """All finite, and 95 % of the elements within 1e-2, absolute or relative: FlashInfer-Bench's rule for low precision.

    Elsewhere it asks for all elements unless told otherwise.
    https://github.com/flashinfer-ai/flashinfer-bench/blob/00a1ec889fdae3b2cf7b08d551a180bb2e480db2/flashinfer_bench/bench/utils.py
    """
    return bool(torch.isfinite(got).all()) and matched_share(got, expected) >= MATCHED


def matched_share(got: Tensor, expected: Tensor) -> float:
    """The share of the elements within 1e-2, absolute or relative."""
    wanted = expected.float()
    error = (got.float() - wanted).abs()
    beyond = (error > TOLERANCE) & (error / (wanted.abs() + 1e-8) > TOLERANCE)
    return 1.0 - float(beyond.sum()) / beyond.numel()


def rms_ratio(got: Tensor, expected: Tensor) -> bool:
    """RMS error of the whole tensor under 0.005 of its RMS, or no error above 1e-6: flash-linear-attention's `assert_close`.

    https://github.com/fla-org/flash-linear-attention/blob/03f7925d4a0a3d79f5e25e37bc31bd432ce99f85/fla/utils.py
    0.005 is what its tests of the chunked gated delta rule give for outputs and final states:
    https://github.com/fla-org/flash-linear-attention/blob/0a8cd55da2788b306f30f64b44ba4173f8bde869/tests/ops/test_gated_delta.py
    """
    if largest_error(got, expected) <= 1e-6:
        return True
    return not bool(got.isnan().any()) and error_ratio(got, expected) < RATIO


def rms_ratio_in_ci(got: Tensor, expected: Tensor) -> bool:
    """The same where ``FLA_CI_ENV=1``: an RMS error under 1 %, or no error above 0.3, is a warning and passes."""
    if rms_ratio(got, expected):
        return True
    if bool(got.isnan().any()):
        return False
    return error_ratio(got, expected) < CI_RATIO or largest_error(got, expected) <= CI_MAX_ERROR


def error_ratio(got: Tensor, expected: Tensor) -> float:
    """RMS of the error over RMS of what was expected."""
    error = (expected.float() - got.float()).square().mean().sqrt().item()
    return error / (expected.float().square().mean().sqrt().item() + 1e-8)


def largest_error(got: Tensor, expected: Tensor) -> float:
    return (expected.float() - got.float()).abs().max().item()


@dataclass(frozen=True)
class Part:
    """One tensor of a right result.

    expected: in the dtype of the result; None: nothing may be there. exact: bit for bit, as copies and integers must be.
    oracle, model, magnitude, noise: what `harness.budget` needs where the part is not exact, in the same shape.
    before: of a state, what its slots held before the call.
    """

    name: str
    expected: Tensor | None
    exact: bool = True
    oracle: Tensor | None = None
    model: Tensor | None = None
    magnitude: Tensor | None = None
    noise: Tensor | None = None
    before: Tensor | None = None


def within_budget(got: Tensor, part: Part) -> bool:
    """Ours: every row no further from the oracle than rounding explains (`harness.budget`); exact where nothing is rounded."""
    assert part.expected is not None
    if part.exact:
        return same_bits(got, part.expected)
    assert part.oracle is not None
    assert part.model is not None
    assert part.magnitude is not None
    try:
        budget.require_within(got, part.oracle, part.model, part.magnitude, part.name, operand_noise=part.noise)
    except Failure:
        return False
    return True


@dataclass(frozen=True)
class Rule:
    """name: in files. title: in tables, with who uses it. passes: whether this part of a result is called right."""

    name: str
    title: str
    user: str
    passes: Callable[[Tensor, Part], bool]


def _plain(rule: Callable[[Tensor, Tensor], bool]) -> Callable[[Tensor, Part], bool]:
    """A rule of two tensors as one of a part. Integers are numbers to it, as to a careless test."""

    def passes(got: Tensor, part: Part) -> bool:
        assert part.expected is not None
        wanted = part.expected
        if wanted.is_floating_point():
            return rule(got, wanted)
        return rule(got.double(), wanted.double())

    return passes


RULES = (
    Rule("rms_ratio_in_ci", "RMS ratio, or max ≤ 0.3", "flash-linear-attention's CI", _plain(rms_ratio_in_ci)),
    Rule("cosine", "cosine > 0.99", "FlashInfer, FP8 product", _plain(cosine)),
    Rule("matched", "95 % within 1e-2", "FlashInfer-Bench, low precision", _plain(matched)),
    Rule("allclose", "allclose 1e-2", "KernelBench, unit tests", _plain(allclose)),
    Rule("rms_ratio", "RMS ratio < 0.005", "flash-linear-attention", _plain(rms_ratio)),
    Rule(BUDGET, "row by row", "Sluicegate's budget", within_budget),
)
NAMES = tuple(rule.name for rule in RULES)


def passing(got: list[Tensor | None], parts: tuple[Part, ...]) -> dict[str, bool]:
    """Which rules call this result right. A part that is missing, or of another shape or dtype, passes none."""
    if len(got) != len(parts) or not all(_comparable(g, p.expected) for g, p in zip(got, parts, strict=True)):
        return dict.fromkeys(NAMES, False)
    pairs = [(g, p) for g, p in zip(got, parts, strict=True) if g is not None and g.numel()]
    return {rule.name: all(rule.passes(g, p) for g, p in pairs) for rule in RULES}


def _comparable(got: Tensor | None, expected: Tensor | None) -> bool:
    if got is None or expected is None:
        return got is None and expected is None
    return got.shape == expected.shape and got.dtype == expected.dtype


def figures(got: list[Tensor | None], parts: tuple[Part, ...]) -> dict[str, dict[str, float]]:
    """For the report: of each part, the numbers that the rules look at."""
    found = {}
    for have, part in zip(got, parts, strict=False):
        if have is None or part.expected is None or not have.numel() or not _comparable(have, part.expected):
            continue
        a, b = have.double(), part.expected.double()
        found[part.name] = {
            "largest_error": largest_error(a, b),
            "largest_expected": b.abs().max().item(),
            "rms_ratio": error_ratio(a, b),
            "cosine": torch.nn.functional.cosine_similarity(b.reshape(-1), a.reshape(-1), dim=0).item(),
            "matched": matched_share(a, b),
        }
    return found
