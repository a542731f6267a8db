"""A copy of a package in which one place is changed, importable beside the original.

Production code carries no switch: the whole package is copied under another name into a folder of its own, the text is
replaced in the copy, and the subject is loaded from there. Real files, because Triton reads the source of a kernel;
the whole package, so that relative imports work and a fault in a helper reaches the subject that imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.faults.model import Fault


class AnchorError(ValueError):
    """The text that a fault replaces is not there exactly once: the catalogue and the source have drifted apart."""


class ImportFailure(ValueError):
    """The changed package cannot be imported."""


def source_of(module: str) -> Path:
    """The file of a module, found without running it (its package's ``__init__`` excepted)."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"module: got {module!r}, expected one with Python source")
    return Path(spec.origin)


def changed_source(fault: Fault) -> str:
    """The module's text with the fault in it. Raises `AnchorError` unless the anchor occurs exactly once, or in its span."""
    path = source_of(fault.module)
    text = path.read_text(encoding="utf-8")
    if fault.span is not None:
        start, end = fault.span.offsets(text)
        if text[start:end] != fault.find:
            raise AnchorError(
                f"fault {fault.id}: got {text[start:end]!r} at line {fault.span.line} of {path}, expected {fault.find!r};"
                " the source has changed since the fault was generated: generate it again"
            )
        return text[:start] + fault.replace + text[end:]
    count = text.count(fault.find)
    if count != 1:
        first = fault.find.strip().splitlines()[0]
        raise AnchorError(
            f"fault {fault.id}: its anchor occurs {count} times in {path}, expected exactly once; choose a line that is"
            f" still there and unique, then run tests/faults. The anchor begins: {first}"
        )
    return text.replace(fault.find, fault.replace)


def alias(fault: Fault) -> str:
    """The name under which the changed package is importable."""
    return "fault_" + "".join(c if c.isalnum() else "_" for c in fault.id)


def write(fault: Fault, folder: Path) -> str:
    """Write the changed package under ``folder``; the subject in it as ``module:function``."""
    text = changed_source(fault)
    package, _, inner = fault.module.partition(".")
    original = source_of(package)
    if inner:
        copy = folder / alias(fault)
        shutil.copytree(original.parent, copy, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        (copy / source_of(fault.module).relative_to(original.parent)).write_text(text, encoding="utf-8")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{alias(fault)}.py").write_text(text, encoding="utf-8")
    return alias(fault) + fault.subject.removeprefix(package)


@contextmanager
def injected(fault: Fault, folder: Path) -> Iterator[str]:
    """The target of the changed subject, importable here and in processes started from here while the body runs.

    Raises `ImportFailure` when the changed package cannot be imported, and ValueError when the subject does not import the
    changed module: the fault would change nothing.
    """
    target = write(fault, folder)
    search = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([search] if search else [])])
    importlib.invalidate_caches()
    try:
        try:
            importlib.import_module(target.partition(":")[0])
        except Exception as error:
            raise ImportFailure(f"fault {fault.id}: {type(error).__name__} at import: {error}") from error
        changed = alias(fault) + fault.module.removeprefix(fault.module.partition(".")[0])
        if changed not in sys.modules:
            raise ValueError(
                f"fault {fault.id}: {fault.subject} does not import {fault.module}, so the fault cannot reach it"
            )
        yield target
    finally:
        sys.path.remove(str(folder))
        if search is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = search
        for name in [name for name in sys.modules if name.partition(".")[0] == alias(fault)]:
            del sys.modules[name]
