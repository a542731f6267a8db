"""Faults of the judging code are well-formed and planted where they say, and the tests that they name find them."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.cli import build
from harness.faults import injection, matrix
from harness.faults import model as kernels
from harness.faults.judging import checkout, model, runner
from harness.faults.verdict import Settings, Verdict

pytest_plugins = ["pytester"]

FAULTS = model.load()
LEAST = 180
AREAS = {"references", "verdicts", "calls", "cases", "runs", "serving"}


def named(fault_id: str) -> model.JudgingFault:
    return next(fault for fault in FAULTS if fault.id == fault_id)


# -- the catalogue ----------------------------------------------------------------------------------------------------


def test_every_area_has_its_faults() -> None:
    counts = Counter(fault.operator for fault in FAULTS)
    assert set(counts) == AREAS
    assert min(counts.values()) >= 25
    assert sum(counts.values()) >= LEAST
    assert any(fault.historical for fault in FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_the_anchor_occurs_once_and_the_change_is_python(fault: model.JudgingFault) -> None:
    changed = injection.changed_source(fault)
    assert changed != injection.source_of(fault.module).read_text(encoding="utf-8")
    ast.parse(changed)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_the_tests_that_it_names_are_there(fault: model.JudgingFault) -> None:
    for test in fault.tests:
        file, _, name = test.partition("::")
        source = ast.parse((checkout.ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
        assert name in functions if name else any(f.startswith("test_") for f in functions)


def test_no_two_faults_are_the_same_change_or_have_the_same_id() -> None:
    changes = Counter((f.module, f.find, f.replace) for f in FAULTS)
    assert [change for change, count in changes.items() if count > 1] == []
    assert {f.id for f in FAULTS} & {f.id for f in kernels.load()} == set()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tests": []}, "tests"),
        ({"tests": ["harness/budget.py"]}, "tests"),
        ({"source": "somewhere"}, "source"),
        ({"replace": "x = 1"}, "find and replace"),
        ({"module": "optimized.gdn_decode"}, "module"),
        ({"subject": "harness.cell"}, "unknown fields \\['subject'\\]"),
    ],
)
def test_a_malformed_entry_is_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    entry = {
        "id": "x",
        "source": "own",
        "wrong": "All of it.",
        "module": "harness.budget",
        "find": "x = 1",
        "replace": "x = 2",
        "tests": ["tests/harness/test_budget.py"],
        **change,
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"area": "verdicts", "faults": [entry]}))
    with pytest.raises(ValueError, match=complaint):
        model.load(tmp_path)


def test_a_file_of_tests_that_is_not_there_is_refused() -> None:
    lost = replace(FAULTS[0], tests=("tests/harness/test_nothing.py",))
    with pytest.raises(ValueError, match=r"got 'tests/harness/test_nothing.py', expected a file of"):
        checkout.check([lost])


# -- a run ------------------------------------------------------------------------------------------------------------

NORM = named("ref-norm-epsilon-outside")
QUICK = {
    "killed": NORM,
    "survived": replace(NORM, id="harmless", replace=NORM.find + "  # nothing is wrong here"),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    settings = Settings("cpu", 1, tmp_path_factory.mktemp("judging") / "run", time_limit=60.0)
    found = runner.run(QUICK.values(), settings, workers=2, listener=lambda _: None)
    return dict(zip(QUICK, found, strict=True))


def test_a_fault_that_a_test_notices_is_killed_by_that_test(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["killed"]
    assert verdict.status == "killed"
    assert verdict.first is not None
    assert verdict.first.property == "test_reference_gated_norm.py"
    assert verdict.first.sentence.startswith("tests/references/test_reference_gated_norm.py::test_")
    assert "AssertionError" in verdict.message or "ExceptionGroup" in verdict.message
    assert 0 < verdict.seconds <= verdict.total_seconds
    assert verdict.fault.to_json()["kind"] == "judging"
    assert matrix.exit_status([verdict]) == 0


def test_a_change_without_an_effect_survives(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["survived"]
    assert (verdict.status, verdict.first) == ("survived", None)
    assert verdict.cases >= 5
    assert matrix.exit_status([verdict]) == 1


SAID = """
import pytest
from hypothesis import find, given, strategies as st
from hypothesis.errors import NoSuchExample

@pytest.fixture
def broken():
    assert False, "not the test's own word"

def test_asserts(): assert 1 == 2
def test_misses_an_error():
    with pytest.raises(ValueError, match="x"):
        pass
@given(st.integers())
def test_asserts_of_a_draw(n): assert n < 0
def test_finds_none(): find(st.integers(0, 3), lambda n: n > 3)
def test_stumbles(): None.nothing
def test_is_not_set_up(broken): pass
def test_passes(): pass
"""


def test_only_a_test_that_says_no_has_judged(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """An assertion, a failed expectation, a search that finds nothing; not what breaks under a test, or before it."""
    monkeypatch.setenv("SLUICEGATE_JUDGING_REPORT", str(pytester.path / "report.json"))
    pytester.makepyfile(test_said=SAID, test_unimportable="import torsch")
    spec = importlib.util.spec_from_file_location("reporter", Path(runner.__file__).with_name("reporter.py"))
    assert spec is not None
    assert spec.loader is not None
    reporter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reporter)
    pytester.inline_run("--continue-on-collection-errors", plugins=[reporter])
    report = json.loads((pytester.path / "report.json").read_text())
    judged = {failure["test"].rpartition("::")[2]: failure["judged"] for failure in report["failures"]}
    no, broke = ("asserts", "misses_an_error", "asserts_of_a_draw", "finds_none"), ("stumbles", "is_not_set_up")
    assert judged == {
        **{f"test_{name}": True for name in no},
        **{f"test_{name}": False for name in broke},
        "test_unimportable.py": False,
    }
    assert report["passed"] == 1


def test_what_breaks_under_a_test_is_no_kill() -> None:
    broke = {
        "test": "tests/test_x.py::test_y",
        "judged": False,
        "symptom": "TypeError",
        "message": "call: TypeError: f",
    }
    for session in (runner.Session(1.0, 3, [broke]), runner.Session(1.0, problem="call: TypeError: f")):
        verdict = runner._verdict(NORM, session)
        assert (verdict.status, verdict.message) == ("error", "call: TypeError: f")
        assert matrix.exit_status([verdict]) == 1


def test_what_fails_without_the_fault_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout whose own tests are red; nothing is run for the fault."""
    report = {
        "passed": 3,
        "failures": [{"test": "test_x", "judged": True, "symptom": "AssertionError", "message": "no"}],
    }
    answers = [runner.Session(1.0, **report)]
    monkeypatch.setattr(runner, "tested", lambda *_: answers.pop())
    [verdict] = runner.run([NORM], Settings("cpu", 1, tmp_path / "run"), workers=1, listener=lambda _: None)
    assert (verdict.status, answers) == ("error", [])
    assert "does not pass without the fault: test_x: no" in verdict.message


def test_tests_that_do_not_end_are_ended(tmp_path: Path) -> None:
    """With whatever they started."""
    started = tmp_path / "started"
    (tmp_path / "test_sleeps.py").write_text(
        "import pathlib, subprocess, sys, time\n\n\ndef test_sleeps():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"    pathlib.Path({str(started)!r}).write_text(str(child.pid))\n    time.sleep(600)\n"
    )
    session = runner.tested(tmp_path, ["test_sleeps.py"], Settings("cpu", 1, tmp_path, time_limit=4.0))
    assert session.problem == "no answer within 4 s"
    child = int(started.read_text())
    try:
        assert ended(child)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def ended(process: int) -> bool:
    """Whether it is gone within a second, but for what its parent has not asked about yet."""
    for _ in range(20):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


def test_the_copy_comes_first_and_the_repository_stays_as_it_is(tmp_path: Path) -> None:
    base = checkout.unchanged(tmp_path)
    fault = named("budget-factor-doubled")
    before = injection.source_of(fault.module).read_bytes()
    root = checkout.planted(fault, base, tmp_path)
    script = "import harness.budget, references; print(harness.budget.FACTOR, harness.__file__, references.__file__)"
    printed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=checkout.environment(root, tmp_path, tmp_path / "report.json"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert printed[0] == "4.0"
    assert all(path.startswith(str(root)) for path in printed[1:])
    assert injection.source_of(fault.module).read_bytes() == before
    assert (base / "harness" / "budget.py").read_bytes() == before


def test_an_unknown_name_is_wrong_usage() -> None:
    done = CliRunner().invoke(build(), ["faults", "--judging", "--fault", "no-such-fault"])
    assert done.exit_code == 2
    assert "got no-such-fault, which are no faults of the judging code" in done.stderr
