"""``python -m harness.shadow --target module:function=operator -- script.py args``: a program with shadows in it."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from harness.shadow.launch import Wanted, from_environment, unwrapped, watch


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.shadow", description=__doc__)
    parser.add_argument(
        "--target", action="append", default=[], metavar="MODULE:FUNCTION=OPERATOR[@SIGNATURE]", help="may be repeated"
    )
    parser.add_argument("--every", type=int, default=1, help="compare one call in so many (default 1)")
    parser.add_argument("--out", default="shadow", help="folder of the mismatches' files (default shadow)")
    parser.add_argument("program", nargs="+", metavar="-- script.py | -m module", help="and its arguments")
    # argparse would read the program's own options: everything behind the first -- is the program's.
    given = sys.argv[1:] if arguments is None else arguments
    if "--" not in given:
        parser.error("put -- before the program: --target module:function=operator -- script.py args")
    cut = given.index("--")
    options = parser.parse_args([*given[:cut], "program"])
    program = given[cut + 1 :]
    if not program or program == ["-m"]:
        parser.error("name a program behind the --: script.py, or -m module")
    try:
        wanted = [Wanted.parse(text) for text in options.target]
        count = len(wanted) + from_environment()
        if options.every < 1:
            raise ValueError(f"--every: got {options.every}, expected 1 or more")
    except ValueError as error:
        parser.error(str(error))
    if not count:
        parser.error("give --target, or set SLUICEGATE_SHADOW")
    for each in wanted:
        watch(each, every=options.every, out=options.out, report_at_exit=True)
    try:
        if program[0] == "-m":
            sys.argv = program[1:]
            sys.path.insert(0, "")
            runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = program
            sys.path.insert(0, str(Path(program[0]).resolve().parent))
            runpy.run_path(program[0], run_name="__main__")
    finally:
        for target, reason in unwrapped.items():
            sys.stderr.write(f"sluicegate shadow: {target} was not shadowed: {reason}\n")


if __name__ == "__main__":
    main()
