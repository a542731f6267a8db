"""`ci/entry_points.py` writes what an installer would have written."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

from ci import entry_points

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def as_groups(found: importlib.metadata.EntryPoints) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for entry in found:
        groups.setdefault(entry.group, {})[entry.name] = entry.value
    return groups


def test_metadata_is_found_without_installing(tmp_path: Path) -> None:
    folder = entry_points.write(ROOT / "pyproject.toml", tmp_path)
    assert folder.name == f"sluicegate-{PROJECT['version']}.dist-info"
    (distribution,) = importlib.metadata.distributions(path=[str(tmp_path)])
    assert (distribution.name, distribution.version) == ("sluicegate", PROJECT["version"])
    written = as_groups(distribution.entry_points)
    assert written.pop("console_scripts") == PROJECT["scripts"]
    assert written == PROJECT["entry-points"]


def test_another_python_sees_them_through_pythonpath(tmp_path: Path) -> None:
    entry_points.write(ROOT / "pyproject.toml", tmp_path)
    # -I -S: neither this environment's installation nor its PYTHONPATH can help.
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "from importlib.metadata import entry_points as e;"
        "print(*(p.value for p in e(group='sluicegate.subjects.gdn_decode')))"
    )
    run = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == list(PROJECT["entry-points"]["sluicegate.subjects.gdn_decode"].values())


def test_writing_twice_leaves_the_later(tmp_path: Path) -> None:
    source = tmp_path / "pyproject.toml"
    for target in ("old:function", "new:function"):
        source.write_text(f'[project]\nname = "a-b"\nversion = "2"\n[project.entry-points."g"]\nx = "{target}"\n')
        folder = entry_points.write(source, tmp_path / "site")
    assert folder.name == "a_b-2.dist-info"
    assert "x = new:function" in (folder / "entry_points.txt").read_text()


def test_missing_pyproject_is_wrong_usage(tmp_path: Path) -> None:
    assert entry_points.main([str(tmp_path), "--pyproject", str(tmp_path / "none.toml")]) == 2


def test_installed_entry_points_are_those_of_this_checkout() -> None:
    """A stale installation would verify yesterday's subjects."""
    installed = as_groups(importlib.metadata.distribution("sluicegate").entry_points)
    assert installed == entry_points.groups(PROJECT), "run `make setup`: pyproject.toml changed since the installation"
