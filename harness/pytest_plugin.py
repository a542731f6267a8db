"""How pytest runs a property suite: ``-p harness.pytest_plugin --sluicegate-plan FILE``.

A suite is a module with an OPERATOR, its PROPERTIES and one ``test_property(cell)``. The plugin turns the plan into
cells, one test each, and every test's report carries its `CellResult`, through pytest-xdist too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import inflight, interpreter, operators
from harness.case import AnyCase
from harness.cell import Cell, CellResult
from harness.execution import DeviceLost
from harness.plan import Plan, Planned, cells

RESULT = "sluicegate_cell"
#: The exit status of a worker whose CUDA context is lost.
DEVICE_LOST = 70
#: A subject that keeps killing workers is given up: each death costs a new process, and each hang the whole time limit.
MAX_DEATHS = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sluicegate-plan", default=None, help="plan file written by `sluicegate verify`")


def _plan(config: pytest.Config) -> Plan | None:
    path = config.getoption("--sluicegate-plan")
    return Plan.load(Path(path)) if path else None


def pytest_configure(config: pytest.Config) -> None:
    plan = _plan(config)
    if plan is None:
        raise pytest.UsageError("property suites are run by `sluicegate verify`, which passes --sluicegate-plan")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        import torch

        # Small tensors: a second thread costs more than it brings, and workers share the cores.
        torch.set_num_threads(1)
        interpreter.repair()
        inflight.start(Path(plan.out) / "inflight", worker, plan.case_timeout)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    plan = _plan(metafunc.config)
    module = metafunc.module
    assert plan is not None
    planned = cells(plan, module.OPERATOR, module.PROPERTIES) if module.OPERATOR in plan.operators else []
    ids = [f"{prop.name}-{p.spec.subject}-{p.spec.dtype}" for prop, p in planned]
    metafunc.parametrize("cell", planned, indirect=True, ids=ids)


_failures: Counter[str] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest cells first, so that none of them is left running alone at the end.

    A suite of which the plan wants nothing (`--properties memory`, and the operator has no such property) has one test
    nevertheless, without a cell. It is none.
    """

    def cell(item: pytest.Item) -> Any:
        callspec = getattr(item, "callspec", None)
        return callspec.params["cell"] if callspec else None

    def cost(item: pytest.Item) -> float:
        if (found := cell(item)) is None:
            return 0.0
        _, planned = found
        # A case over sequences takes some thirty times what a case of integers takes.
        weight = 30.0 if isinstance(operators.get(planned.spec.operator), operators.SequenceOperator) else 1.0
        return weight * float(planned.spec.examples)

    items[:] = [item for item in items if cell(item) is None or isinstance(cell(item), tuple)]
    items.sort(key=cost, reverse=True)


class CheckedCell(Cell):
    """A cell as a test sees it: `check` runs it, attaches the result to the report, and raises its failure."""

    def attach(self, record: Any) -> None:
        self._record = record

    def judge(self, case: AnyCase) -> None:
        try:
            super().judge(case)
        except DeviceLost as error:
            # At once, before shrinking tries other cases on a device that answers none: the parent finds this one.
            inflight.note(f"device lost: {error}")
            os._exit(DEVICE_LOST)

    def check(self) -> None:
        __tracebackhide__ = True
        # A broken kernel fails in dozens of cells: the first failures of this worker are shrunk with patience, the others get
        # what is enough to read them.
        self.shrink_seconds /= 1 + _failures[self.spec.operator]
        self.polish_seconds /= 1 + 0.5 * _failures[self.spec.operator]
        try:
            result = self.run()
        finally:
            inflight.unwatch()
        self._record(RESULT, json.dumps(result.to_json()))
        if result.failure:
            _failures[self.spec.operator] += 1
            pytest.fail(f"{result.failure.message}\n{result.failure.sentence}", pytrace=False)
        if result.status == "not_run":
            pytest.skip(result.reason)


@pytest.fixture
def cell(request: pytest.FixtureRequest, record_property: Any) -> Cell:
    prop, planned = request.param
    plan = _plan(request.config)
    assert plan is not None
    if not planned.not_run and inflight.deaths(Path(plan.out) / "inflight", planned.spec) >= MAX_DEATHS:
        reason = f"{planned.spec.subject} has already crashed or hung {MAX_DEATHS} times; its other cells were left out"
        planned = replace(planned, not_run=reason)
    if planned.not_run:
        record_property(RESULT, json.dumps(unrun(planned).to_json()))
        pytest.skip(planned.not_run)
    made = CheckedCell(planned.spec, prop)
    made.attach(record_property)
    return made


def unrun(planned: Planned) -> CellResult:
    return CellResult(planned.spec, "not_run", reason=planned.not_run + ("" if planned.required else " (not required)"))
