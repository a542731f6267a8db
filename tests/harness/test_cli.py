"""The command line as a user and a CI job meet it: exit statuses, messages, files."""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.operators import OPERATORS
from harness.subjects import registered
from tests.harness.support import SUBJECTS, Run, invoke, sluicegate, target, verify

pytestmark = pytest.mark.slow

QUICK = ("conv_update", "--properties", "equivalence,memory", "--cases", "20")

ONE = ("conv_update", "--properties", "equivalence", "--cases", "6")


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return verify(
        *QUICK, "--subject", f"conv_update={target('conv_update', 'right')}", cwd=tmp_path_factory.mktemp("passed")
    )


#: One fails on the plainest case, which is the first one of every seed; the other one on none, so that all cases count.
BOTH = (
    *("--subject", f"conv_update={target('next_slot_written', 'faulty')}"),
    *("--subject", f"conv_update={target('conv_update', 'right')}"),
)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return verify(*QUICK, "--workers", "2", *BOTH, cwd=tmp_path_factory.mktemp("failed"))


# -- wrong usage ------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "operator": (("gdn_encode",), r"operator: got 'gdn_encode', expected one of chunk_metadata, "),
    "tier": (("--tier", "hourly"), "--tier: got 'hourly', expected one of quick, premerge, nightly"),
    "group": (("--properties", "equivalence,speed"), "got 'speed', expected some of equivalence, relations, memory"),
    "subject without operator": (("--subject", "my.kernels:f"), "expected OPERATOR=module:function"),
    "subject of no operator": (("--subject", "gdn=my.kernels:f"), "with OPERATOR one of chunk_metadata, "),
    "subject without function": (
        ("--subject", "conv_update=my.kernels"),
        "expected module:function or path/to/file.py",
    ),
    "subject of another operator": (
        ("gdn_decode", "--subject", "conv_update=optimized.causal_conv:conv_update"),
        "conv_update is not among the operators to verify",
    ),
    "module": (("--subject", "conv_update=no_such_module:f"), "cannot import 'no_such_module'"),
    "file": (("--subject", "conv_update=no/such/file.py:f"), "no file "),
    "function": (("--subject", "conv_update=optimized.causal_conv:nothing"), "has no attribute 'nothing'"),
    "not callable": (("--subject", "conv_update=harness.tiers:TIERS"), "is a tuple, expected a function"),
    "file that does not import": (("--subject", "conv_update=broken.py:f"), "raised ZeroDivisionError"),
    "module that does not import": (("--subject", "conv_update=broken:f"), "raised ZeroDivisionError"),
    "capability": (("--subject", "conv_update=boasts.py:f"), "unknown capabilities ['speed'], expected some of"),
    "ledger": (("--ledger", "nowhere.yaml"), "--ledger: no file nowhere.yaml"),
    "device": (("--device", "tpu"), "'tpu' is not one of"),
    "cases": (("--cases", "0"), "--cases"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_usage(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, message = WRONG[what]
    monkeypatch.chdir(tmp_path)
    # The folder is put on the path for the sake of `module:function`; other tests need not see it.
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("broken.py").write_text("1 / 0")
    Path("boasts.py").write_text("def f(): ...\nf.sluicegate = {'speed': 11}")
    done = invoke("verify", *arguments, "--seed", "7")
    assert done.status == 2, done.stdout + done.stderr
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not Path("out").exists()


def test_wrong_usage_of_the_installed_command(tmp_path: Path) -> None:
    done = sluicegate("verify", "--subject", "conv_update=no_such_module:f", cwd=tmp_path)
    assert done.status == 2
    assert done.stderr.startswith("sluicegate verify: subject: cannot import 'no_such_module'")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without an NVIDIA GPU")
def test_cuda_without_a_gpu() -> None:
    done = invoke("verify", *QUICK, "--device", "cuda")
    assert done.status == 2
    assert "torch sees no CUDA device; use --device cpu" in done.stderr


def test_replay_of_nothing() -> None:
    done = invoke("replay", "nowhere.json")
    assert done.status == 2
    assert "no file nowhere.json" in done.stderr


def test_unregistered_operator_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import plan
    from harness.cli import verify as command

    monkeypatch.setattr(plan, "registered", lambda operator: [])
    with pytest.raises(
        ValueError, match=r"gdn_decode: no subject is registered; give one with --subject gdn_decode=module:"
    ):
        command._plan(["gdn_decode"], None, "quick", None, None, 0, "cpu", tmp_path, 1.0)


# -- outcomes ---------------------------------------------------------------------------------------------------------


def test_all_held(passed: Run) -> None:
    assert passed.status == 0, passed.stdout + passed.stderr
    assert passed.report["failures"] == []
    assert passed.report["summary"]["passed"] == passed.report["summary"]["cells"]
    assert passed.report["summary"]["cases"] >= 20
    assert "All that was required ran and held" in passed.stdout


def test_an_operator_without_such_properties_is_left_out(tmp_path: Path) -> None:
    """A step's metadata has no property of the group `memory`."""
    run = verify(
        *("step_metadata", "conv_update", "--properties", "memory", "--cases", "6", "--device", "cpu"),
        *("--subject", f"conv_update={target('conv_update', 'right')}"),
        cwd=tmp_path,
    )
    assert run.status == 0, run.stdout + run.stderr
    assert {cell["operator"] for cell in run.report["cells"]} == {"conv_update"}


def test_one_failed(failed: Run) -> None:
    assert failed.status == 1
    assert "untouched slot changed" in {f["symptom"] for f in failed.report["failures"]}
    shown = failed.report["failures"][0]
    assert shown["replay"] in failed.stdout.replace("\n", " ") or shown["id"] in failed.stdout


def test_something_required_did_not_run(tmp_path: Path) -> None:
    """An interpreter that cannot be trusted with bfloat16: those cells are not run, and not passed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('PLANT_DISTRUST'):\n"
        "    from harness import interpreter\n"
        "    interpreter.probe = lambda: {'bfloat16': 'planted distrust'}\n"
    )
    subject = f"conv_update={target('conv_update', 'right')}"
    done = verify(
        *(*ONE, "--subject", subject, "--device", "cpu"),
        cwd=tmp_path,
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        PLANT_DISTRUST="1",
        TRITON_INTERPRET="1",
    )
    assert done.status == 3, done.stdout + done.stderr
    untrusted = done.cells(dtype="bfloat16")
    assert untrusted
    assert {(c["status"], c["reason"], c["required"]) for c in untrusted} == {("not_run", "planted distrust", True)}
    assert {c["status"] for c in done.report["cells"] if c["dtype"] != "bfloat16"} == {"passed"}
    assert done.report["summary"]["required_not_run"] == len(untrusted)


def test_a_full_gpu_is_no_verdict(tmp_path: Path) -> None:
    """Neither a failure of the subject, nor a pass: required, and not run."""
    subject = "conv_update=" + target("out_of_memory", "faulty")
    run = verify("conv_update", "--subject", subject, "--properties", "equivalence", cwd=tmp_path)
    assert run.status == 3
    assert run.report["summary"]["failed"] == 0
    for cell in run.cells(property="equivalence"):
        assert (cell["status"], cell["required"]) == ("not_run", True)
        assert "--workers" in cell["reason"]
        assert "Tried to allocate 1 GiB." in cell["reason"]


def test_what_a_subject_does_not_claim_is_not_required(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        (SUBJECTS / "right.py").read_text() + "\nconv_update.sluicegate = {'dtypes': ('float32',)}\n"
    )
    # By module name, from the folder that holds it.
    done = verify(*ONE, "--subject", "conv_update=mine:conv_update", cwd=tmp_path)
    assert done.status == 0, done.stdout + done.stderr
    assert {c["status"] for c in done.cells(dtype="float32")} == {"passed"}
    assert {(c["status"], c["required"]) for c in done.cells(dtype="bfloat16")} == {("not_run", False)}


# -- the report -------------------------------------------------------------------------------------------------------


def test_schema(failed: Run, passed: Run) -> None:
    for run in (failed, passed):
        report = run.report
        assert report["schema_version"] == 1
        assert {"environment", "summary", "cells", "failures"} <= set(report)
        assert {"cases", "passed", "failed", "not_run"} <= set(report["summary"])
        keys = {"operator", "subject", "property", "device", "dtype", "status", "cases", "seconds", "reason"}
        assert all(keys <= set(cell) for cell in report["cells"])
        assert {c["status"] for c in report["cells"]} <= {"passed", "failed", "not_run"}
        assert sum(c["cases"] for c in report["cells"]) == report["summary"]["cases"]
        assert report["run"]["seed"] == 7
        assert {"torch", "triton", "python", "commit"} <= set(report["environment"])
    keys = {"id", "operator", "subject", "property", "symptom", "message", "case", "replay"}
    assert all(keys <= set(failure) for failure in failed.report["failures"])
    ids = [failure["id"] for failure in failed.report["failures"]]
    assert len(set(ids)) == len(ids)
    assert {p.stem for p in (failed.out / "failures").iterdir()} == set(ids)
    assert not list((passed.out / "failures").iterdir())


def test_junit(failed: Run) -> None:
    root = ElementTree.parse(failed.out / "junit.xml").getroot()
    cases, failures = list(root.iter("testcase")), list(root.iter("failure"))
    assert len(cases) == failed.report["summary"]["cells"]
    assert len(failures) == failed.report["summary"]["failed"]


def test_html(failed: Run) -> None:
    page = (failed.out / "report.html").read_text()
    assert all(failure["id"] in page for failure in failed.report["failures"])
    assert "http-equiv" not in page
    assert 'src="http' not in page


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """What must be equal in two runs of one seed."""
    times = ("seconds", "judged_seconds", "replay")
    cells = [{k: v for k, v in c.items() if k not in times} for c in report["cells"]]
    failures = [{k: v for k, v in f.items() if k not in times} for f in report["failures"]]
    return {"cells": cells, "failures": failures, "coverage": report["coverage"], "summary": report["summary"]}


def test_same_seed_same_run(failed: Run, tmp_path: Path) -> None:
    """On another number of workers too: what a cell draws does not depend on its neighbours."""
    again = verify(*QUICK, *BOTH, cwd=tmp_path)
    assert {c["status"] for c in again.report["cells"]} == {"passed", "failed"}
    assert json.dumps(comparable(again.report), indent=1) == json.dumps(comparable(failed.report), indent=1)


def test_list_names_everything() -> None:
    done = invoke("list")
    assert done.status == 0
    for name in OPERATORS:
        assert f"{name}:" in done.stdout
        assert all(subject.target in done.stdout for subject in registered(name))


def test_list_of_no_operator() -> None:
    done = invoke("list", "gdn_encode")
    assert done.status == 2
    assert "expected one of chunk_metadata" in done.stderr
