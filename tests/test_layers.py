"""The layer rule of ARCHITECTURE.md holds, and the check that says so bites."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
LAYERS = ("references", "optimized", "harness", "properties", "serving", "accuracy", "benchmarks")


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter over the checkout at `root`."""
    script = Path(sysconfig.get_path("scripts")) / "lint-imports"
    # An inherited PYTHONPATH would find the real checkout before the copy.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [script, "--no-logo", "--no-cache"], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def imports(source: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, lazily inside functions too."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"), filename=str(source))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def outsiders(folder: Path, allowed: frozenset[str]) -> list[str]:
    """Imports in `folder` of anything but the standard library, the folder itself and `allowed`."""
    inside = allowed | sys.stdlib_module_names | {folder.name}
    return [
        f"{path.relative_to(folder.parent)}:{line} imports {module}"
        for path in sorted(folder.rglob("*.py"))
        for line, module in imports(path)
        if module.split(".")[0] not in inside
    ]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the layers, to plant breaches in."""
    for package in CONFIG["root_packages"]:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_layers_hold() -> None:
    run = lint_imports(ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_layer_is_checked() -> None:
    present = {name for name in LAYERS if (ROOT / name / "__init__.py").is_file()}
    assert present == set(CONFIG["root_packages"]), "root_packages in pyproject.toml must list the layers that exist"
    sources = {module for contract in CONFIG["contracts"] for module in contract["source_modules"]}
    assert present <= sources, "each layer needs a contract in pyproject.toml"


@pytest.mark.parametrize(
    ("planted_in", "statement", "contract"),
    [
        ("references", "import harness", "references stand alone"),
        ("references", "import triton", "references stand alone"),
        ("optimized", "import references", "optimized knows neither the truth nor the test"),
        ("optimized", "import harness", "optimized knows neither the truth nor the test"),
        ("harness", "def late():\n    import optimized", "harness reaches kernels by name only"),
        ("harness", "import flashinfer", "harness reaches kernels by name only"),
        ("properties", "import optimized", "properties judge every subject alike"),
        ("accuracy", "import optimized", "accuracy asks the model, whatever its kernels"),
        ("serving", "import accuracy", "serving reaches kernels by name, and is no property"),
        ("benchmarks", "import properties", "benchmarks measure, they do not judge"),
    ],
)
def test_planted_breach_is_reported(checkout: Path, planted_in: str, statement: str, contract: str) -> None:
    (checkout / planted_in / "planted_breach.py").write_text(statement + "\n", encoding="utf-8")
    run = lint_imports(checkout)
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"{contract} BROKEN" in run.stdout
    assert f"{planted_in}.planted_breach" in run.stdout


def test_adapter_may_declare_capabilities(checkout: Path) -> None:
    peers = checkout / "optimized" / "peers"
    peers.mkdir(exist_ok=True)
    (peers / "__init__.py").touch()
    (peers / "planted.py").write_text("import harness.subjects\n", encoding="utf-8")
    run = lint_imports(checkout)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("references", frozenset({"torch"})),
        # Runs before anything is installed.
        ("ci", frozenset()),
    ],
)
def test_imports_nothing_else(folder: str, allowed: frozenset[str]) -> None:
    assert outsiders(ROOT / folder, allowed) == []


def test_outsider_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "references"
    folder.mkdir()
    (folder / "plain.py").write_text("import math\nimport torch.nn.functional as F\nfrom references import gdn\n")
    (folder / "late.py").write_text("def f():\n    from einops import rearrange\n    return rearrange\n")
    assert outsiders(folder, frozenset({"torch"})) == ["references/late.py:2 imports einops"]
