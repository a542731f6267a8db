"""Against the oracle: the subject within its budget, at the dims of published models and at the extremes, and the way it was before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from harness.batch import Result
from harness.case import Case
from harness.context import Context, Property
from harness.operators.base import SequenceOperator
from harness.subjects import Capabilities
from harness.subjects import baseline as baseline_of


def equivalence_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    context.require_within_budget(context.run(batch), batch)


def published(strategy: Callable[..., Any]) -> Property:
    """Equivalence at the shapes of published models: among any shapes they are few, and kernels have paths for them.

    A GPU's alone, since the interpreter takes seconds for one such case, and in the dtypes that models are served in.
    """
    return Property(
        "equivalence_at_published_shapes",
        "equivalence",
        equivalence_body,
        weight=3,
        devices=("cuda",),
        strategy=strategy,
    )


def extreme_dims(strategy: Callable[..., Any], sizes: dict[str, list[int]]) -> Property:
    """Equivalence at the smallest and the largest dims that a contract allows, of which few are drawn elsewhere.

    A few tokens of one or two heads: under the interpreter, what costs is the number of operations and not their width.
    """

    def fit(case: Case, chosen: dict[str, int]) -> Case:
        heads = {name: min(size, 2) for name, size in case.dims.items() if name in ("H", "HV")}
        sequences = tuple(replace(s, length=min(s.length, 5)) for s in case.sequences[:2])
        return case.with_(dims={**case.dims, **heads, **chosen}, sequences=sequences)

    def cases(scale: Any, dtype: str) -> Any:
        drawn = {name: st.sampled_from(values) for name, values in sizes.items()}
        return st.builds(fit, strategy(scale, dtype), st.fixed_dictionaries(drawn))

    return Property("equivalence_at_extreme_dims", "equivalence", equivalence_body, weight=0.5, strategy=cases)


def baseline_body(context: Context, case: Case) -> None:
    """The optimized way and the way it was done before: the same bits of a state that is a copy, and of the same kernel."""
    baseline = context.baseline()
    batch = context.batch(case)
    operator = context.tokens
    old = operator.run(baseline, batch, device=context.device, check_memory=False)
    new = context.run(batch)
    if getattr(baseline, "wraps", None) == context.target:
        context.require_same(new, old, "the pre-optimization path around the same kernel gives these bits", batch=batch)
    if isinstance(operator, SequenceOperator) and operator.state_is_copy:
        kept, left = (Result(tuple(o[:0] for o in r.outputs), r.states) for r in (new, old))
        context.require_same(kept, left, "the pre-optimization path leaves these bits in the slot", batch=batch)
    if declared := Capabilities.of(baseline).roundings:
        batch = replace(batch, case=batch.case.with_(options={**batch.case.options, **declared}))
    context.require_within_budget(old, batch, by="baseline")


def no_baseline(operator: str, _: Callable[..., Any]) -> str:
    return "" if baseline_of(operator) else f"no package offers a baseline of {operator}"


equivalence = Property("equivalence", "equivalence", equivalence_body, weight=6)
baseline_agrees = Property("agrees_with_baseline", "relations", baseline_body, weight=0.5, nothing_to_check=no_baseline)
