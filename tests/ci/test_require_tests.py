"""`ci/require_tests.py` turns a silent skip into a red run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ci import require_tests

PASSED = "def test_passes(): pass\n"
SKIPPED = "import pytest\ndef test_skips(): pytest.skip('no NVIDIA GPU here')\n"
UNIMPORTABLE = "import pytest\npytest.importorskip('a_package_that_nobody_has')\ndef test_never(): pass\n"
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_fails(): assert False\n"


def judge(folder: Path, source: str, allowed: str) -> int:
    """Run pytest on `source` and judge its JUnit file."""
    (folder / "test_sample.py").write_text(source, encoding="utf-8")
    (folder / "allowed.txt").write_text(allowed, encoding="utf-8")
    junit = folder / "run.xml"
    # Nothing of this checkout's configuration may take part.
    isolated = ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", folder]
    command = [sys.executable, "-m", "pytest", "-q", *isolated, f"--junitxml={junit}", folder]
    subprocess.run(command, check=False, capture_output=True)
    return require_tests.main([str(junit), "--allow", str(folder / "allowed.txt")])


@pytest.mark.parametrize(
    ("source", "allowed", "exit_code"),
    [
        (PASSED, "", 0),
        (PASSED + SKIPPED, "*NVIDIA GPU*  # ci/gpu.sh runs it", 0),
        (PASSED + SKIPPED, "", 3),
        (PASSED + SKIPPED, "# *NVIDIA GPU*", 3),
        (UNIMPORTABLE, "*NVIDIA GPU*", 3),
        (PASSED + UNIMPORTABLE, "*a_package_that_nobody_has*", 0),
        (PASSED + EXPECTED_FAILURE, "", 3),
        ("", "", 3),
    ],
    ids=[
        "passed",
        "allowed",
        "not allowed",
        "commented out",
        "not importable",
        "not importable, allowed",
        "expected failure",
        "no test",
    ],
)
def test_exit_code(tmp_path: Path, source: str, allowed: str, exit_code: int) -> None:
    assert judge(tmp_path, source, allowed) == exit_code


def test_it_names_the_test_and_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge(tmp_path, SKIPPED, "")
    said = capsys.readouterr().err
    assert "test_sample::test_skips" in said
    assert "no NVIDIA GPU here" in said


def test_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    assert require_tests.main([str(tmp_path / "none.xml"), "--allow", str(tmp_path / "none.txt")]) == 2
