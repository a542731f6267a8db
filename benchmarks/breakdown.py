"""Where the time goes: every kernel, copy and fill of a call with its device time, from torch's profiler.

Times of kernels that run one after another, without the gaps between them: their sum is below what `timing` reports.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.timing import Call, device_events

CALLS = 6
NAME_LENGTH = 96


@dataclass(frozen=True)
class Kernel:
    """One kernel of a call, all its launches together."""

    name: str
    launches: float
    """In one call."""
    device_us: float
    """In one call, mean."""


def kernels(calls: Sequence[Call]) -> list[Kernel]:
    """What one call runs on the device, longest first. `calls` must have run before: they compile and tune."""
    times = defaultdict(list)
    for event in device_events(*(calls[index % len(calls)] for index in range(CALLS))):
        times[short(event.name)].append(event.time_range.elapsed_us())
    found = [Kernel(name, len(each) / CALLS, sum(each) / CALLS) for name, each in times.items()]
    return sorted(found, key=lambda kernel: -kernel.device_us)


def short(name: str) -> str:
    """A kernel's name without its return type, template arguments and parameters."""
    name = name.removeprefix("void ")
    return re.split(r"[<(]", name, maxsplit=1)[0][:NAME_LENGTH] or name[:NAME_LENGTH]
