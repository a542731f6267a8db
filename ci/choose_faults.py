"""Choose the faults of the premerge job from what runs of ``sluicegate faults`` measured.

    python ci/choose_faults.py out/faults/faults.json > ci/premerge_faults.txt

The list covers every operator and every property that was the first to kill something: greedily, what covers most for its seconds
first, where a historical fault counts a third of its own. Then, until the time is used up, the cheapest fault of every other pair of
operator and property, and the fastest historical faults, operators in turn. A fault costs the seconds to its kill and what
copying, shrinking and confirming take.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

#: Seconds of a trial beside those to the kill, as measured: the copy of the package, and making the case smaller twice.
OVERHEAD = 2.0
HISTORICAL = 3.0


def cost(fault: dict[str, Any]) -> float:
    """Seconds of one core."""
    return float(fault["seconds"]) + OVERHEAD


def historical(fault: dict[str, Any]) -> bool:
    return bool(fault["source"] != "own")


def pair(fault: dict[str, Any]) -> tuple[str, str]:
    """Operator and property: the same property of another operator is other code."""
    return fault["operator"], fault["witnesses"][0]["property"]


def weighed(fault: dict[str, Any]) -> float:
    """What is chosen by: seconds, a third of them for what has happened."""
    return cost(fault) / (HISTORICAL if historical(fault) else 1.0)


def cover(faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A cheap cover of all operators and all properties."""
    chosen: list[dict[str, Any]] = []
    # An operator and a property may have one name.
    missing = {part for fault in faults for part in enumerate(pair(fault))}
    while missing:
        best = min(
            (fault for fault in faults if missing & set(enumerate(pair(fault)))),
            key=lambda fault: (weighed(fault) / len(missing & set(enumerate(pair(fault)))), fault["id"]),
        )
        missing -= set(enumerate(pair(best)))
        chosen.append(best)
    return chosen


def fill(chosen: list[dict[str, Any]], faults: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """With pairs that are missing and then historical faults besides, as long as all of them cost at most ``seconds``."""
    chosen, pairs = list(chosen), set(map(pair, chosen))
    ids, spent = {fault["id"] for fault in chosen}, sum(map(cost, chosen))
    wanted = []
    for fault in sorted(faults, key=lambda f: (weighed(f), f["id"])):
        if pair(fault) not in pairs:
            pairs.add(pair(fault))
            wanted.append(fault)
    turns: dict[str, int] = {}
    real = []
    for fault in sorted((f for f in faults if historical(f) and f not in wanted), key=lambda f: (cost(f), f["id"])):
        turns[fault["operator"]] = turns.get(fault["operator"], 0) + 1
        real.append((turns[fault["operator"]], cost(fault), fault))
    wanted += [fault for _, _, fault in sorted(real, key=lambda item: item[:2])]
    for fault in wanted:
        if fault["id"] not in ids and spent + cost(fault) <= seconds:
            ids.add(fault["id"])
            spent += cost(fault)
            chosen.append(fault)
    return chosen


def render(chosen: list[dict[str, Any]], command: str) -> str:
    """The list, operator by operator; behind each id what killed it and after how many seconds."""
    lines = [
        "# The faults of the premerge job: `sluicegate faults --list` takes this file. One id a line.",
        f"# Chosen by: {command}",
        f"# {len(chosen)} faults, {sum(map(cost, chosen)):.0f} s of one core where they were measured.",
    ]
    for operator in sorted({fault["operator"] for fault in chosen}):
        lines += ["", f"# {operator}"]
        of = sorted((f for f in chosen if f["operator"] == operator), key=lambda f: str(f["id"]))
        lines += [f"{f['id']}  # {f['witnesses'][0]['property']}, {f['seconds']:.1f} s" for f in of]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="faults.json of runs of one device and tier")
    parser.add_argument("--seconds", type=float, default=200.0, help="of one core, for all faults")
    arguments = parser.parse_args(argv)
    faults: list[dict[str, Any]] = []
    for path in arguments.runs:
        faults += json.loads(path.read_text(encoding="utf-8"))["faults"]
    killed = [fault for fault in faults if fault["status"] == "killed"]
    needed = cover(killed)
    if not needed or sum(map(cost, needed)) > arguments.seconds:
        print(
            f"choose_faults: {len(needed)} faults cover everything and take {sum(map(cost, needed)):.0f} s, expected some and at"
            f" most {arguments.seconds:g} s; give --seconds, or runs that killed something",
            file=sys.stderr,
        )
        return 1
    command = f"ci/choose_faults.py --seconds {arguments.seconds:g}"
    print(render(fill(needed, killed, arguments.seconds), command), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
