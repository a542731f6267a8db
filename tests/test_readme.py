"""The README is tried: its kernel fails as it says, its commands exist, its links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(b for b in blocks if containing in b)


def commands() -> list[str]:
    shown = re.findall(r"^\$ ([^#\n]+)", README, re.MULTILINE)
    return [command.strip() for command in shown]


@pytest.fixture(scope="module")
def failing_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The README's verify command, run in an empty folder that holds the README's kernel."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_kernels.py").write_text(block("python", "# my_kernels.py"))
    (command,) = (c for c in commands() if c.startswith("sluicegate verify"))
    arguments = [*command.split()[1:], "--device", "cpu"]
    run = subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return folder, run


def test_the_kernel_of_the_readme_fails_as_shown(
    failing_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, run = failing_run
    assert run.returncode == 1, run.stdout + run.stderr
    shown = block("text", "over budget")
    # The headline, the symptom and the replay line are the README's; figures and timings may move with torch's generator.
    for line in ("gdn_decode / equivalence / over budget", "Smallest failing batch", "Run this one case again:"):
        assert line in shown
        assert line in run.stdout
    (replay,) = re.findall(r"^sluicegate replay \S+$", shown, re.MULTILINE)
    assert replay in run.stdout
    report = json.loads((folder / "out/latest/report.json").read_text())
    failure = next(f for f in report["failures"] if f["dtype"] == "bfloat16")
    assert failure["sentence"].startswith("1 row: slot 0; H=2 HV=4")


def test_the_replay_line_reproduces_it(failing_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = failing_run
    (replay,) = re.findall(r"^sluicegate replay \S+$", block("text", "over budget"), re.MULTILINE)
    again = subprocess.run(
        [sys.executable, "-m", "harness.cli", *replay.split()[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1, again.stdout + again.stderr
    assert "failed as recorded" in again.stdout


def test_make_targets_of_the_readme_exist_and_ci_runs_them() -> None:
    targets = {c.split()[1] for c in commands() if c.startswith("make ")}
    assert targets == {"verify", "test"}
    makefile, job = (ROOT / "Makefile").read_text(), (ROOT / "ci/premerge.sh").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        assert f"make {target}" in job
    assert "ci/premerge.sh" in (ROOT / ".ci/run").read_text()


def test_links_and_files_of_the_readme_exist() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    assert linked
    for target in (link for link in linked if not link.startswith("http")):
        assert (ROOT / target).exists(), f"README.md links to {target}, which does not exist"
    for script in re.findall(r"`(ci/\S+?\.sh)`", README):
        assert (ROOT / script).exists()


def test_every_command_of_the_readme_is_offered() -> None:
    run = subprocess.run([sys.executable, "-m", "harness.cli", "--help"], capture_output=True, text=True, check=True)
    for name in set(re.findall(r"`?sluicegate (\w+)", README)):
        assert re.search(rf"\b{name}\b", run.stdout), f"README.md names `sluicegate {name}`"
