"""How a figure is taken: medians over CUDA-graph replays, with the working set larger than the L2 cache.

A graph holds one call for each of several input sets, so that a replay walks through more memory than the cache holds
and every call finds its inputs in device memory, as it would in a model. Launch gaps between graph nodes are part of
the figure; host work is not. Work that synchronizes with the host cannot be captured: it is timed eagerly, host time
included, and the result says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]

WARMUP_REPLAYS = 3
TARGET_SECONDS = 0.12


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call. `spread` is the distance between the quartiles of the samples."""

    median_us: float
    spread_us: float
    samples: int
    method: str
    """"graph", or "eager" for work that cannot be captured."""
    launches: int | None = None


def time_calls(calls: Sequence[Call]) -> Timing:
    """Median time of one call; `calls` do the same work on different input sets and are walked in turn.

    The first call of every set runs eagerly before: it compiles, and allocates what the library keeps.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    launches = count_launches(calls[0])
    try:
        graph = capture(calls)
    except RuntimeError:
        torch.cuda.synchronize()
        return _eager(calls, launches)
    return _summary(_replay_times(graph, len(calls)), "graph", launches)


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """One graph that runs every call once. Raises RuntimeError where a call synchronizes."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def count_launches(call: Call) -> int | None:
    """Kernels (and copies and fills) that one call puts on the device, or None where the profiler cannot tell."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
    except RuntimeError:
        return None
    device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(device) or None


def time_host(call: Call, repeats: int = 50) -> Timing:
    """Host time of one call, device work not waited for between calls."""
    for _ in range(5):
        call()
    samples = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e6)
    return _summary(samples, "host", None)


def copy_bandwidth(gib: float = 1.0) -> float:
    """Bytes a second (read plus written) of a large device-to-device copy: the ceiling of everything else here."""
    count = int(gib * 2**30) // 4
    source = torch.randn(count, device="cuda")
    target = torch.empty_like(source)
    timing = time_calls([lambda: target.copy_(source)])
    return 2 * source.nbytes / (timing.median_us * 1e-6)


def _replay_times(graph: torch.cuda.CUDAGraph, calls: int) -> list[float]:
    for _ in range(WARMUP_REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    once = _timed(graph.replay)
    replays = max(10, min(100, int(TARGET_SECONDS * 1e6 / max(once, 1.0))))
    return [_timed(graph.replay) / calls for _ in range(replays)]


def _timed(call: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def _eager(calls: Sequence[Call], launches: int | None) -> Timing:
    samples = []
    for _ in range(max(2, 20 // len(calls))):
        for call in calls:
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            samples.append((time.perf_counter() - start) * 1e6)
    return _summary(samples, "eager", launches)


def _summary(samples: list[float], method: str, launches: int | None) -> Timing:
    first, _, third = statistics.quantiles(samples, n=4)
    return Timing(statistics.median(samples), third - first, len(samples), method, launches)
