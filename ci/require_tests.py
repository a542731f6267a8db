"""Fail a test run in which something that was required did not run.

pytest exits 0 when a test was skipped: a missing development package, a kernel that does not import, a forgotten
`importorskip` would quietly shrink the suite. This reads the run's JUnit file and accepts a skip only where its message
matches a line of the allow-list. No tests at all is a failure too.

    python ci/require_tests.py out/tests.xml --allow tests/skips.txt

Exit 0: everything ran, or was allowed not to. 2: wrong usage. 3: something required did not run.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Skip:
    """A test that did not run to its end, and what it gave as the reason."""

    test: str
    message: str


#: What pytest says in the place of the reason.
COLLECTION = "collection skipped"


def read_run(path: Path) -> tuple[int, list[Skip]]:
    """Number of test cases in a JUnit file, and those of them that were skipped or expected to fail."""
    total, skips = 0, []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        total += 1
        skipped = case.find("skipped")
        if skipped is not None:
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            message = skipped.get("message") or ""
            # Where a whole file is skipped, the reason stands beside its place in the file.
            skips.append(Skip(name, (skipped.text or "") if message == COLLECTION else message))
    return total, skips


def read_allowed(path: Path) -> list[str]:
    """Patterns of the allow-list: one message pattern a line, `#` starts a comment."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def missing(skips: list[Skip], allowed: list[str]) -> list[Skip]:
    """The skips that no pattern allows."""
    return [skip for skip in skips if not any(fnmatch.fnmatchcase(skip.message, pattern) for pattern in allowed)]


def main(argv: list[str] | None = None) -> int:
    """Judge one run; the verdict is the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("junit", type=Path, help="the file that pytest --junitxml wrote")
    parser.add_argument("--allow", type=Path, required=True, help="file of allowed skip messages, one pattern a line")
    arguments = parser.parse_args(argv)

    for path in (arguments.junit, arguments.allow):
        if not path.is_file():
            print(f"require_tests: expected a file, got {path}", file=sys.stderr)
            return 2
    total, skips = read_run(arguments.junit)
    if total == 0:
        print(f"require_tests: no test ran, says {arguments.junit}", file=sys.stderr)
        return 3
    unexpected = missing(skips, read_allowed(arguments.allow))
    for skip in unexpected:
        print(f"require_tests: required, but did not run: {skip.test}: {skip.message}", file=sys.stderr)
    if unexpected:
        print(f"require_tests: install what is missing, or allow the reason in {arguments.allow}", file=sys.stderr)
        return 3
    print(f"required tests: {total - len(skips)} of {total} ran, {len(skips)} allowed skips")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
