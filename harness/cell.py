"""A cell of the report: one property of one operator on one subject, dtype and device, run by Hypothesis."""

from __future__ import annotations

import builtins
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import FlakyFailure, Unsatisfiable

from harness import inflight, operators, shrink, strategies
from harness.case import AnyCase, Case, Layout
from harness.context import Context, Property
from harness.distribution import Distribution
from harness.execution import DeviceLost, give_back, out_of_memory
from harness.failure import Failure, FailureRecord
from harness.subjects import Capabilities, load_target

#: Once a failure is found, this long is spent on making it smaller: first by Hypothesis, then by `harness.shrink`.
SHRINK_SECONDS = 8.0
POLISH_SECONDS = 6.0


@dataclass(frozen=True)
class CellSpec:
    """What identifies a cell, and how many cases it gets."""

    operator: str
    subject: str
    target: str
    property: str
    device: str
    dtype: str
    examples: int
    seed: int
    check_memory: bool = True

    @builtins.property  # the field above hides the plain name
    def key(self) -> str:
        return f"{self.operator}/{self.subject}/{self.property}/{self.dtype}/{self.device}"


@dataclass
class CellResult:
    """What became of a cell. status: ``passed``, ``failed`` or ``not_run`` (with the reason)."""

    spec: CellSpec
    status: str
    cases: int = 0
    seconds: float = 0.0
    #: Seconds inside the property, without drawing and reporting.
    judged_seconds: float = 0.0
    reason: str = ""
    worst_share: float = 0.0
    measured: dict[str, int] = field(default_factory=dict)
    failure: FailureRecord | None = None
    coverage: dict[str, dict[str, int]] = field(default_factory=dict)
    #: ``output`` and ``state``, or ``baseline output`` -> the errors of the rows that the budget judged.
    row_errors: dict[str, Distribution] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["failure"] = self.failure.to_json() if self.failure else None
        data["row_errors"] = {name: of.to_json() for name, of in self.row_errors.items()}
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CellResult:
        fields = dict(data)
        fields["spec"] = CellSpec(**data["spec"])
        fields["failure"] = FailureRecord.from_json(data["failure"]) if data["failure"] else None
        fields["row_errors"] = {n: Distribution.from_json(of) for n, of in data.get("row_errors", {}).items()}
        return cls(**fields)


def adapted(case: AnyCase, capabilities: Capabilities) -> AnyCase:
    """The case with what the subject does not claim taken out of it."""
    if not isinstance(case, Case):
        return case
    if not capabilities.strided:
        case = case.with_(layout=Layout(wide_indices=case.layout.wide_indices, slot_pad=case.layout.slot_pad))
    if not capabilities.padded_pool:
        case = case.with_(layout=replace(case.layout, slot_pad=0))
    if case.state_dtype not in capabilities.state_dtypes:
        case = case.with_(state_dtype=capabilities.state_dtypes[0])
    if "method" in case.options:
        case = _routed(case, capabilities)
    return case


def _routed(case: Case, capabilities: Capabilities) -> Case:
    """A case of a mixture of experts, routed as the subject can, and marked with what it rounds."""
    options, methods = dict(case.options), capabilities.routing_methods
    if methods and options["method"] not in methods:
        plain = {"method": methods[case.choice % len(methods)], "n_group": 1, "topk_group": 1, "scaling": 1.0}
        options |= plain
    options |= capabilities.roundings
    chosen = 1 if options["method"] == "llama4" else case.dims["k"]
    return case.with_(options=options, dims={**case.dims, "k": chosen})


def claimed(case: AnyCase, capabilities: Capabilities) -> bool:
    if not isinstance(case, Case):
        return True
    key, value = case.dims.get("K", 0), case.dims.get("V", 0)
    return max(key, value) <= capabilities.max_head_dim and (key == value or not capabilities.equal_head_dims)


class Cell:
    """Runs one property on one subject until it fails or its cases are used up."""

    #: A caller in a hurry lowers these before `run`.
    shrink_seconds = SHRINK_SECONDS
    polish_seconds = POLISH_SECONDS
    #: When the first case failed, by `time.perf_counter`; infinite until then.
    first_failure_at = float("inf")

    def __init__(self, spec: CellSpec, prop: Property) -> None:
        self.spec = spec
        self.property = prop
        self.operator = operators.get(spec.operator)
        function = load_target(spec.target)
        self.context = Context(
            operator=self.operator,
            function=function,
            device=torch.device(spec.device),
            capabilities=Capabilities.of(function),
            check_memory=spec.check_memory,
            target=spec.target,
        )
        self._prepare()

    def _prepare(self) -> None:
        self.coverage: dict[str, Counter[str]] = {}
        self.judged_seconds = 0.0
        self._spec_json = json.dumps(asdict(self.spec))
        self._failed: dict[Any, Failure] = {}
        self._first_failure: tuple[AnyCase, Failure] | None = None
        self._deadline = float("inf")
        self._cases_to_failure = 0
        self._starved = ""

    def strategy(self) -> Any:
        scale = strategies.GPU if self.spec.device == "cuda" else strategies.CPU
        build = self.property.strategy or self.operator.cases
        capabilities = self.context.capabilities
        drawn = build(scale, self.spec.dtype)
        if capabilities != Capabilities():
            drawn = drawn.map(lambda c: adapted(c, capabilities)).filter(lambda c: claimed(c, capabilities))
        return drawn

    def judge(self, case: AnyCase) -> None:
        """One case: noted on disk, judged, counted. Raises what the property raises."""
        if time.monotonic() > self._deadline and repr(case) not in self._failed:
            return  # out of time for shrinking: keep what we have
        if self._starved:
            self._repeat(case)
            return
        inflight.record(self._spec_json, case)
        before, start = self.context.cases, time.perf_counter()
        try:
            self.property.body(self.context, case)
        except Failure as failure:
            self._failed[repr(case)] = failure
            if self._first_failure is None:
                self._first_failure = (case, failure)
                self.context.tally.open = False
                self._cases_to_failure = self.context.cases + 1
                self._deadline = time.monotonic() + self.shrink_seconds
                self.first_failure_at = time.perf_counter()
            failure.case = case  # type: ignore[attr-defined]
            raise
        except Exception as error:  # every other one is raised again
            if not out_of_memory(error):
                raise
            # Not raised on: Hypothesis would take it for a failure of this case and try to make that smaller. What has failed
            # before memory ran out has failed.
            self._starved = str(error).strip().splitlines()[0]
            self._repeat(case)
        finally:
            self.judged_seconds += time.perf_counter() - start
            if self._first_failure is None and not self._starved:
                # A property that makes several comparisons of one case counts them itself.
                self.context.cases = max(self.context.cases, before + 1)
                self._observe(case)

    def _repeat(self, case: AnyCase) -> None:
        """Raise what the case failed with before, if it did: nothing can be judged any more."""
        if failure := self._failed.get(repr(case)):
            raise failure from None

    def _observe(self, case: AnyCase) -> None:
        for axis, values in self.operator.coverage(case).items():
            self.coverage.setdefault(axis, Counter()).update(str(v) for v in values)

    def run(self) -> CellResult:
        start = time.perf_counter()
        failure = self._search()
        starved = f"the GPU's memory ran out beside the other workers, give --workers a smaller number: {self._starved}"
        result = CellResult(
            spec=self.spec,
            status="failed" if failure else "not_run" if self._starved else "passed",
            reason=starved if self._starved and not failure else "",
            cases=self.context.cases,
            seconds=time.perf_counter() - start,
            judged_seconds=self.judged_seconds,
            worst_share=self.context.worst_share,
            measured=self.context.measured,
            coverage={axis: dict(counts) for axis, counts in self.coverage.items()},
            row_errors=self.context.tally.read(),
        )
        if failure:
            case, error, note = failure
            if not note:
                case, error = shrink.polish(case, error, self._failure_of, self.polish_seconds)
            result.seconds = time.perf_counter() - start
            result.failure = self.record(case, error, note, result.seconds)
        give_back(self.context.device)
        return result

    def _failure_of(self, case: AnyCase) -> Failure | None:
        self._deadline = float("inf")
        try:
            self.judge(case)
        except Failure as failure:
            return failure
        except (ValueError, IndexError, ZeroDivisionError):
            return None  # a smaller case that cannot be built is no case
        return None

    def _search(self) -> tuple[AnyCase, Failure, str] | None:
        @seed(self.spec.seed)
        @settings(
            max_examples=self.spec.examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            print_blob=False,
        )
        @given(case=self.strategy())
        def holds(case: AnyCase) -> None:
            self.judge(case)

        try:
            holds()
        except Failure as failure:
            return failure.case, failure, ""  # type: ignore[attr-defined]
        except FlakyFailure as flaky:
            if self._first_failure is None:
                # An error of the harness, which came once and not again.
                raise flaky.exceptions[0] from None
            return *self._first_failure, "The same case did not fail every time: the subject is not deterministic."
        except DeviceLost:
            raise
        except Unsatisfiable as error:
            raise RuntimeError(f"{self.spec.key}: no case fits what the subject claims to take") from error
        return None

    def record(self, case: AnyCase, error: Failure, note: str = "", seconds: float = 0.0) -> FailureRecord:
        message = f"{error.message} ({note})" if note else error.message
        return FailureRecord(
            operator=self.spec.operator,
            subject=self.spec.subject,
            property=self.spec.property,
            symptom=error.symptom,
            message=message,
            case={"target": self.spec.target, **case.to_json()},
            sentence=self.operator.describe(case),
            device=self.spec.device,
            dtype=self.spec.dtype,
            rows=[row.to_json() for row in error.rows],
            details=error.details,
            seconds=seconds,
            examples=self._cases_to_failure,
        )
