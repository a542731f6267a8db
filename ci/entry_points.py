"""Make a checkout's entry points visible without installing it.

On a bare machine (no network, no build backend, a Python that is not ours to change) `pip install -e .` is out of
reach. But all that an installation adds to a checkout on `PYTHONPATH` is its metadata: this writes that, from
pyproject.toml, as `<site>/sluicegate-<version>.dist-info`. Put `<site>` on `PYTHONPATH` beside the checkout.

    python ci/entry_points.py build/site
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def groups(project: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Entry-point groups of a `[project]` table, scripts among them, as an installer would write them."""
    found: dict[str, dict[str, str]] = {}
    if project.get("scripts"):
        found["console_scripts"] = dict(project["scripts"])
    for group, entries in project.get("entry-points", {}).items():
        found[group] = dict(entries)
    return found


def render(project: dict[str, Any]) -> dict[str, str]:
    """The files of the dist-info folder: name to text."""
    metadata = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    if "requires-python" in project:
        metadata.append(f"Requires-Python: {project['requires-python']}")
    metadata += [f"Requires-Dist: {requirement}" for requirement in project.get("dependencies", [])]
    sections = (
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in groups(project).items()
    )
    return {
        "METADATA": "\n".join(metadata) + "\n",
        "entry_points.txt": "\n".join(sections),
        "INSTALLER": "ci/entry_points.py\n",
    }


def write(pyproject: Path, site: Path) -> Path:
    """Write the dist-info folder for `pyproject` into `site`, over an older one. Returns its path."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in render(project).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("site", type=Path, help="folder that will be on PYTHONPATH; made if it is missing")
    parser.add_argument("--pyproject", type=Path, default=ROOT / "pyproject.toml")
    arguments = parser.parse_args(argv)
    if not arguments.pyproject.is_file():
        print(f"entry_points: expected a pyproject.toml, got {arguments.pyproject}", file=sys.stderr)
        return 2
    print(write(arguments.pyproject, arguments.site))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
