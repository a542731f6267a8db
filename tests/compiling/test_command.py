"""`sluicegate compile` as a user and a CI job meet it: exit statuses, messages, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.support import invoke, sluicegate

PLANTED = Path(__file__).with_name("planted.py")
ONE = ("--arch", "sm_90", "--dtype", "float16", "--jobs", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gdn_encode",), "operator: got 'gdn_encode', expected one of chunk_metadata, "),
        (("--arch", "sm_70"), "--arch: got 'sm_70', expected one of sm_80, sm_90, sm_100, sm_120"),
        (("--dtype", "float8"), "--dtype: got 'float8', expected one of float32, float16, bfloat16"),
        (("--baseline", "nowhere.json"), "--baseline: no file nowhere.json"),
        (("--subject", "my.kernels:f"), "expected OPERATOR=module:function"),
        (
            ("gdn_decode", "--subject", f"conv_update={PLANTED}:right"),
            "conv_update is not among the operators to compile",
        ),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("compile", *arguments)
    assert done.status == 2, done.stdout + done.stderr
    assert message in " ".join(done.stderr.split())
    assert not Path("out").exists()


@pytest.mark.slow
def test_somebody_elses_kernels(tmp_path: Path) -> None:
    """A right one and a baseline of it; then, in its place, one that spills, which the baseline notices too."""
    theirs = tmp_path / "theirs.py"
    theirs.write_text(PLANTED.read_text())
    arguments = ("compile", "--subject", "conv_update=theirs.py:right", *ONE)
    done = sluicegate(*arguments, "--save-baseline", "baseline.json", cwd=tmp_path)
    assert done.status == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/compile/compile.json").read_text())
    assert report["schema_version"] == 1
    assert {cell["status"] for cell in report["cells"]} == {"passed"}
    assert report["environment"]["triton"]
    assert "_copy_kernel" in done.stdout
    assert "_copy_kernel" in (tmp_path / "out/compile/compile.html").read_text()

    theirs.write_text(PLANTED.read_text().replace("def right(", "def gone(").replace("def spilling(", "def right("))
    source = theirs.read_text()
    theirs.write_text(source.replace("_copy_kernel", "_other_kernel").replace("_spilling_kernel", "_copy_kernel"))
    done = sluicegate(*arguments, "--baseline", "baseline.json", cwd=tmp_path)
    assert done.status == 1, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/compile/compile.json").read_text())
    assert report["summary"]["regressed"] == report["summary"]["failed"] == len(report["cells"])
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert "bytes a thread" in shown
    assert "the baseline 0" in shown


@pytest.mark.slow
def test_kernel_that_does_not_compile_and_one_that_cannot_be_called(tmp_path: Path) -> None:
    done = sluicegate("compile", "--subject", f"conv_update={PLANTED}:broken", *ONE, cwd=tmp_path)
    assert done.status == 1, done.stdout + done.stderr
    assert "does not compile" in done.stdout
    done = sluicegate("compile", "--subject", f"conv_update={PLANTED}:reads", *ONE, cwd=tmp_path)
    assert done.status == 3, done.stdout + done.stderr
    assert "reads the device" in " ".join(done.stdout.split())
