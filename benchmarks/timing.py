"""How a figure is taken: medians over CUDA-graph replays, with the working set larger than the L2 cache.

A graph holds one call for each of several input sets, so that a replay walks through more memory than the cache holds
and every call finds its inputs in device memory, as it would in a model. Launch gaps between graph nodes are part of
the figure; host work is not. Work that synchronizes with the host cannot be captured: it is timed eagerly, host time
included, and the result says so.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]

WARMUP_REPLAYS = 3
TARGET_SECONDS = 0.1
EAGER_SAMPLES = 20


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call. `spread_us` is the distance between the quartiles of the samples."""

    median_us: float
    spread_us: float
    samples: int
    method: str
    """"graph"; "eager" for work that synchronizes; "host" for host time alone."""
    launches: int | None = None
    """Kernels, copies and fills that one call puts on the device; None where the profiler cannot tell."""


def time_calls(calls: Sequence[Call]) -> Timing:
    """Median time of one call; `calls` do the same work on different input sets and are walked in turn.

    Every call runs once eagerly before: it compiles, and allocates what its library keeps.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    launches = count_launches(calls[0])
    if synchronizes(calls[0]):
        return _summary(_eager_times(calls), "eager", launches)
    return _summary(_replay_times(capture(calls), len(calls)), "graph", launches)


def quickest(choices: Sequence[Sequence[Call]], replays: int = 5) -> list[Call]:
    """Of several ways to do the same work, the one whose graph ran quickest; one that cannot run is left out.

    Raises:
        RuntimeError: none can run; with what the last of them raised.
    """
    times: list[tuple[float, int]] = []
    reason: Exception | None = None
    for index, calls in enumerate(choices):
        try:
            for call in calls:
                call()
            torch.cuda.synchronize()
            graph = capture(calls)
            graph.replay()
            torch.cuda.synchronize()
            times.append((min(_timed(graph.replay) for _ in range(replays)), index))
        except Exception as error:  # noqa: BLE001 - a configuration may not fit this GPU, and says so in its own way
            reason = error
    if not times:
        raise RuntimeError(f"none of {len(choices)} configurations ran; the last: {reason}") from reason
    return list(choices[min(times)[1]])


def failed(error: Exception) -> str:
    """What the table says of a side that broke."""
    first_line = (str(error).splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first_line[:80]}"


def synchronizes(call: Call) -> bool:
    """Whether a call makes the host wait for the device, which a CUDA graph cannot hold."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return False


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """One graph that runs every call once, in order."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def count_launches(call: Call) -> int | None:
    return len(device_events(call)) or None


def device_events(*calls: Call) -> list[Any]:
    """The profiler's events of what these calls put on the device: kernels, copies and fills."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's notices about its own cycles
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for call in calls:
                call()
            torch.cuda.synchronize()
        return [event for event in profile.events() if str(event.device_type).endswith("CUDA")]


def time_host(call: Call, samples: int = 50) -> Timing:
    """Host time of one call. Each sample starts with an idle device and does not wait for it, unless the call does."""
    times = []
    for index in range(samples + 5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if index >= 5:
            times.append((time.perf_counter() - start) * 1e6)
    torch.cuda.synchronize()
    return _summary(times, "host", None)


def copy_bandwidth(gib: float = 1.0) -> float:
    """Bytes a second, read plus written, of a large device-to-device pass: the ceiling of everything else here.

    An elementwise kernel, not `Tensor.copy_`: inside a graph that becomes a copy-engine node, which on an H100 reaches
    2.4 TB/s where kernels reach 3.0.
    """
    source = torch.randn(int(gib * 2**30) // 4, device="cuda")
    target = torch.empty_like(source)
    timing = time_calls([lambda: torch.mul(source, 1.5, out=target)])
    return 2 * source.nbytes / (timing.median_us * 1e-6)


def copy_time(num_bytes: int, sets: int) -> float:
    """Microseconds in which the same kernel moves `num_bytes` (read plus written): what a pass of this size can reach.

    Short of `num_bytes` over `copy_bandwidth`, because a short kernel pays for starting and draining.
    """
    count = max(num_bytes // 8, 1)
    pairs = [(torch.randn(count, device="cuda"), torch.empty(count, device="cuda")) for _ in range(sets)]
    calls: list[Call] = [lambda source=s, target=t: torch.mul(source, 1.5, out=target) for s, t in pairs]  # type: ignore[misc]
    return time_calls(calls).median_us


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


def _eager_times(calls: Sequence[Call]) -> list[float]:
    samples = []
    for index in range(EAGER_SAMPLES):
        torch.cuda.synchronize()
        start = time.perf_counter()
        calls[index % len(calls)]()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) * 1e6)
    return samples


def _summary(samples: list[float], method: str, launches: int | None) -> Timing:
    first, _, third = statistics.quantiles(samples, n=4)
    return Timing(statistics.median(samples), third - first, len(samples), method, launches)
