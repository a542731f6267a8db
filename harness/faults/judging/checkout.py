"""A copy of the repository's packages and tests in which one place is changed, found before the original.

The judge runs as it is: whole packages, real files under their own names, in a folder of their own that is the root of a
pytest run and comes first on the path. The repository itself is never touched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.faults import injection
from harness.faults.judging.model import JudgingFault

ROOT = Path(__file__).resolve().parents[3]
#: What the tests import, and the tests. Everything else of a checkout (documents, results) judges nothing.
PARTS = ("harness", "references", "optimized", "serving", "accuracy", "properties", "tests", "pyproject.toml")
#: The reporter alone in a folder: it must not come from the copy, whose harness is not to be trusted.
REPORTER = "sluicegate_judging_reporter"
_LEFT_OUT = shutil.ignore_patterns(".hypothesis", ".pytest_cache", "reporter-*")


def check(faults: Iterable[JudgingFault]) -> None:
    """Raises ValueError where this is no checkout, a file of tests is not there, or an anchor does not occur exactly once."""
    missing = [part for part in PARTS if not (ROOT / part).exists()]
    if missing:
        raise ValueError(
            f"--judging: {ROOT} has no {', '.join(missing)}; run from a checkout, an installed package has no tests"
        )
    for fault in faults:
        for test in fault.tests:
            if not (ROOT / file_of(test)).is_file():
                raise ValueError(f"fault {fault.id}: tests: got {test!r}, expected a file of {ROOT}")
        injection.changed_source(fault)


def file_of(test: str) -> str:
    """The file of ``file`` or ``file::name``."""
    return test.partition("::")[0]


def unchanged(folder: Path) -> Path:
    """Copy the repository to ``folder``/unchanged; its root."""
    root = folder / "unchanged"
    root.mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / part, root / part)
    return root


def planted(fault: JudgingFault, base: Path, folder: Path) -> Path:
    """Copy ``base``, what Python compiled there included, to ``folder``/<id> and plant the fault; its root."""
    root = folder / fault.file_name
    shutil.copytree(base, root, ignore=_LEFT_OUT)
    path = root / injection.source_of(fault.module).relative_to(ROOT)
    path.write_text(injection.changed_source(fault), encoding="utf-8")
    return root


def environment(root: Path, folder: Path, report: Path) -> dict[str, str]:
    """The variables of a process that finds the packages of ``root`` before all others and writes to ``report``."""
    plugin = folder / "reporter"
    plugin.mkdir(exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("reporter.py"), plugin / f"{REPORTER}.py")
    given = [
        path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path).resolve() != ROOT
    ]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(plugin), *given]),
        "SLUICEGATE_JUDGING_REPORT": str(report),
        "OMP_NUM_THREADS": "1",
    }
