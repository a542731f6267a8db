"""What the tests of the harness share: shrinking by hand, cells of planted subjects, and the command in a subprocess."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.strategies import SearchStrategy
from typer.testing import CliRunner

from harness.case import AnyCase, Case, Segment
from harness.cell import Cell, CellResult, CellSpec
from harness.cli import build
from harness.context import Property
from harness.draws import draws as draws_of_seed
from harness.failure import Failure
from harness.isolation import find_property
from harness.shrink import polish

SUBJECTS = Path(__file__).parent / "subjects"
ROOT = Path(__file__).resolve().parents[2]

_SETTINGS = settings(
    max_examples=3000,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def minimal(strategy: SearchStrategy[Any], predicate: Callable[[Any], bool] = lambda _: True) -> Any:
    """The example that Hypothesis shrinks to among those for which ``predicate`` holds; raises when it finds none."""
    return find(strategy, predicate, settings=_SETTINGS, random=random.Random(0))


def smallest(strategy: SearchStrategy[Any], predicate: Callable[[Any], bool]) -> Any:
    """The smallest case for which ``predicate`` holds as a user gets it: shrunk by Hypothesis, then polished.

    Hypothesis cannot leave a crowd of sequences when it would have to lengthen the list that is drawn beside it.
    """
    found = minimal(strategy, predicate)
    failure = Failure("the predicate holds")

    def judge(case: AnyCase) -> Failure | None:
        return failure if predicate(case) else None

    return polish(found, failure, judge, seconds=20.0)[0]


def find_any(strategy: SearchStrategy[Any], predicate: Callable[[Any], bool], *, examples: int = 1000) -> Any:
    """Any example for which ``predicate`` holds, within so many draws; raises `NoSuchExample` otherwise."""
    quick = settings(_SETTINGS, max_examples=examples, phases=(Phase.generate,))
    return find(strategy, predicate, settings=quick, random=random.Random(0))


def draws(strategy: SearchStrategy[Any], count: int) -> list[Any]:
    """So many cases, the same ones every time."""
    return draws_of_seed(strategy, count, seed=20240229)


def target(name: str, file: str) -> str:
    """The ``path.py:function`` of a planted subject."""
    return f"{SUBJECTS / file}.py:{name}"


def run_cell(
    operator: str,
    prop: str | Property,
    target: str,
    *,
    dtype: str = "float32",
    examples: int = 60,
    seed: int = 0,
    check_memory: bool = True,
) -> CellResult:
    """One cell of the report, in this process: this property on this subject."""
    found = find_property(operator, prop) if isinstance(prop, str) else prop
    spec = CellSpec(operator, "planted", target, found.name, "cpu", dtype, examples, seed, check_memory)
    return Cell(spec, found).run()


def failing_case(result: CellResult, symptom: str) -> Case:
    """The shrunk case of a cell that must have failed with this symptom."""
    assert result.status == "failed", f"{result.spec.property} passed {result.cases} cases of a planted fault"
    assert result.failure is not None
    assert result.failure.symptom == symptom, result.failure.message
    fields = {k: v for k, v in result.failure.case.items() if k != "target"}
    return Case.from_json(json.loads(json.dumps(fields)))


def lengths_of(case: Case) -> list[tuple[int, str]]:
    return [(s.length, s.kind) for s in case.sequences]


def row(slot: int = 0, length: int = 1) -> Segment:
    return Segment(length, "resumed", slot)


@dataclass(frozen=True)
class Run:
    """A finished command, with its report when it wrote one."""

    status: int
    stdout: str
    stderr: str
    out: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.out / "report.json").read_text())

    def cells(self, **wanted: str) -> list[dict[str, Any]]:
        return [c for c in self.report["cells"] if all(c[k] == v for k, v in wanted.items())]


def sluicegate(*arguments: str, cwd: Path, timeout: float = 300.0, **environment: str) -> Run:
    """The command as a user types it, from ``cwd``; `verify` writes to ``cwd/out``."""
    out = cwd / "out"
    if arguments[0] == "verify":
        arguments = (*arguments, "--out", str(out))
        if "--workers" not in arguments:
            arguments = (*arguments, "--workers", "1")
    script = Path(sys.executable).with_name("sluicegate")
    done = subprocess.run(
        [str(script), *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr, out)


def invoke(*arguments: str) -> Run:
    """The command in this process and folder: no seconds of imports, for what needs no process of its own."""
    done = CliRunner().invoke(build(), list(arguments), env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Run(done.exit_code, done.stdout, done.stderr, Path("out"))


def verify(*arguments: str, cwd: Path, **options: Any) -> Run:
    return sluicegate("verify", *arguments, "--seed", "7", cwd=cwd, **options)
