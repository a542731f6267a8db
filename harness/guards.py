"""Properties about cost that need no clock: counts that must be zero or bounded (design section 5, spec 9b)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from harness import inflight, interpreter, launches, operators
from harness.case import Case, Layout, Segment, StepCase
from harness.context import Context, Property
from harness.execution import Call, raised, require_device, synchronize
from harness.failure import Failure, fail
from harness.memory import Arena, EagerMode, PoisonedAllocations
from harness.operators.chunk_metadata import ChunkMetadata

#: The compiled variants one kernel may have over a workload of one model's dims and dtypes.
MAX_VARIANTS = 4
WORKLOAD = 500
#: Bytes by which two equal needs may differ in the allocator's books.
POOL_MEMORY_SLACK = 2**20

#: Most bytes that a call may allocate, results included, for each byte of its tokens. Ours comes to 2.
MOST_TIMES = 8


class HostSync(Exception):
    """The call read the device from the host."""


class _SyncFunctions(TorchFunctionMode):
    """Sees Python-level reads that never reach the dispatcher: ``tolist``, ``numpy``, ``bool(t)`` …"""

    _READS = frozenset(
        {
            torch.Tensor.item,
            torch.Tensor.tolist,
            torch.Tensor.numpy,
            torch.Tensor.cpu,
            torch.Tensor.__bool__,
            torch.Tensor.__int__,
            torch.Tensor.__float__,
            torch.Tensor.__index__,
            torch.Tensor.__contains__,
            torch.Tensor.__array__,
        }
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._READS:
            raise HostSync(f"Tensor.{func.__name__} reads the device from the host")
        return func(*args, **(kwargs or {}))


class _SyncOperations(EagerMode):
    """Sees operations whose result's shape or value the host must wait for."""

    _NAMES = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "equal",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        keywords = kwargs or {}
        waits = name in self._NAMES
        waits |= name == "repeat_interleave" and keywords.get("output_size") is None
        waits |= name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1] if i is not None
        )
        if waits:
            raise HostSync(f"aten::{name} makes the host wait for the device")
        return func(*args, **keywords)


@contextmanager
def no_host_sync(device: torch.device) -> Iterator[None]:
    """Raise `HostSync` when the body synchronizes. On a CPU every tensor is treated as if it lay on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        except RuntimeError as error:
            if "synchronizing CUDA operation" in str(error):
                raise HostSync(str(error).splitlines()[0]) from error
            raise
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return
    with _SyncFunctions(), _SyncOperations():
        yield


class _CopiedBytes(EagerMode):
    """Bytes that aten operations write into tensors of their own: gathers, packed copies, casts, scatters."""

    _FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if isinstance(out, torch.Tensor) and name not in self._FREE and not _is_view(func):
            self.bytes += out.numel() * out.element_size()
            self.operations.append(name)
        return out


def _is_view(func: Any) -> bool:
    alias = func._schema.returns[0].alias_info if func._schema.returns else None
    return alias is not None and not alias.is_write


# -- what is called -------------------------------------------------------------------------------------------------


def _call(context: Context, case: Any, layout: Layout = Layout()) -> Callable[[], Any]:  # noqa: B008 - frozen
    """One plain call of the subject on this case, in aligned memory, ready to be repeated."""
    if isinstance(case, StepCase):
        builder = context.function(case.max_batch_size, case.chunk_size, context.device)
        arguments = case.steps[-1].arguments()
        return lambda: builder.prepare(**arguments)
    call = _pack(context, case, layout)
    return lambda: context.function(*call.arguments, **call.keywords)


def _pack(context: Context, case: Case, layout: Layout) -> Call:
    if isinstance(context.operator, ChunkMetadata):
        return context.operator.pack(case.with_(options={"hints": True}), context.device)
    # Aligned, because these counts are about lengths and not about layouts, and in the smallest pool: it has no slots for
    # inactive rows, so with padding a batch has more rows than the pool has slots, as a captured graph may.
    return context.tokens.pack(context.batch(case).plain(None).with_layout(layout), Arena(context.device))


def _execute(context: Context, body: Callable[[], Any]) -> Any:
    try:
        with torch.no_grad(), inflight.watched():
            out = body()
            synchronize(context.device)
            return out
    except (Failure, HostSync):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a subject raises is a finding about the subject
        raised(error, context.operator.name)


# -- the properties -------------------------------------------------------------------------------------------------


def host_sync_body(context: Context, case: Any) -> None:
    body = _call(context, case)
    _execute(context, body)  # compiles, fills caches

    def synced() -> Any:
        with no_host_sync(context.device):
            return body()

    try:
        _execute(context, synced)
    except HostSync as sync:
        fail("host sync", f"{context.operator.name} must not wait for the device: {sync}")


def launches_body(context: Context, case: Any) -> None:
    body = _call(context, case)
    _execute(context, body)
    if context.device.type == "cuda":
        names = _profiled(body)
    else:
        with launches.recorded() as seen:
            _execute(context, body)
        names = seen.kernels
    context.note("launches", len(names))
    most = context.operator.max_launches
    if len(names) > most:
        fail(
            "too many launches",
            f"{context.operator.name} launched {len(names)} kernels in one call, at most {most} expected:"
            f" {', '.join(names[:8])}",
        )


def _profiled(body: Callable[[], Any]) -> list[str]:
    """Names of the device activities (kernels, copies, fills) of one call."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        body()
        torch.cuda.synchronize()
    device = torch._C._autograd.DeviceType.CUDA
    return [e.name for e in profile.events() if e.device_type == device]


def copies_body(context: Context, case: Case) -> None:
    """No gather, scatter, packed copy or cast beside the kernel: the state is read and written where it lies."""
    # Column slices of a projection, as a model has them: what is packed already can be "made contiguous" for nothing.
    sliced = Layout(row_pad=8, fused=True) if context.capabilities.strided else Layout()
    body = _call(context, case, sliced)
    _execute(context, body)
    with _CopiedBytes() as copied:
        _execute(context, body)
    context.note("bytes copied", copied.bytes)
    if copied.bytes:
        fail(
            "copies state",
            f"{context.operator.name} moved {copied.bytes} bytes in {len(copied.operations)} tensor operations beside its kernel"
            f" ({', '.join(sorted(set(copied.operations)))}); expected none",
        )


def working_memory_body(context: Context, case: Case) -> None:
    """What a call allocates is in proportion to what it is given and returns, however its grid was counted."""
    call = _pack(context, case, Layout())
    given = [v for v in (*call.arguments, *call.keywords.values()) if isinstance(v, torch.Tensor)]
    # Inputs of the tokens only: a pool may have any size.
    bytes_given = sum(t.numel() * t.element_size() for t in given if t.shape[:1] == (case.tokens,))
    with PoisonedAllocations() as allocations:
        _execute(context, lambda: context.function(*call.arguments, **call.keywords))
    context.note("bytes allocated", allocations.bytes)
    if allocations.bytes > MOST_TIMES * bytes_given:
        fail(
            "copies state",
            f"{context.operator.name} allocated {allocations.bytes} bytes for {bytes_given} bytes of tokens, at most {MOST_TIMES}"
            " times as many expected",
            mark="working memory",
        )


def working_memory(strategy: Callable[..., Any]) -> Property:
    """Of one case is enough, if it is one in which a wrong count would show."""
    return Property("bounded_working_memory", "cost", working_memory_body, examples=1, strategy=strategy)


def pool_memory_body(context: Context, case: Case) -> None:
    """One call needs the same memory beside a pool of its sequences' slots as beside one 64 times as large."""
    needed = []
    batch = context.batch(case).with_layout(Layout())
    slots = [n if s.active else -1 for n, s in enumerate(batch.segments)]
    for factor in (1, 64):
        call = context.sequences.pack(batch.with_slots(slots, factor * batch.size), Arena(context.device))

        def body(call: Call = call) -> Any:
            return context.function(*call.arguments, **call.keywords)

        _execute(context, body)  # compiles, fills caches
        torch.cuda.reset_peak_memory_stats(context.device)
        # What was asked for: the blocks that the allocator gives may be larger, depending on what it has at hand.
        before = torch.cuda.memory_stats(context.device)["requested_bytes.all.current"]
        _execute(context, body)
        needed.append(torch.cuda.memory_stats(context.device)["requested_bytes.all.peak"] - before)
    context.note("bytes beside the pool", needed[0])
    if abs(needed[1] - needed[0]) > POOL_MEMORY_SLACK:
        fail(
            "copies state",
            f"{context.operator.name} needed {needed[0]} bytes beside a pool of {batch.size} slots and {needed[1]} beside one of"
            f" {64 * batch.size}; expected the same, within {POOL_MEMORY_SLACK}",
            mark="pool",
        )


def variants_body(context: Context, case: Any, workload: int = WORKLOAD) -> None:
    """Over a workload of varying numbers of sequences and tokens, each kernel keeps to a few compiled variants."""
    rng = random.Random(case.seed + case.choice if isinstance(case, Case) else case.seed)
    bodies = (_call(context, _varied(case, rng)) for _ in range(workload))
    with launches.recorded(execute=not interpreter.requested()) as seen:
        for body in bodies:
            _execute(context, body)
            if any(len(variants) > MAX_VARIANTS for variants in seen.variants.values()):
                break  # each further one may be a compilation
    for kernel, variants in seen.variants.items():
        context.note(f"compiled variants of {kernel}", len(variants))
        if len(variants) > MAX_VARIANTS:
            fail(
                "recompiles",
                f"{kernel} needs {len(variants)} compiled variants for {len(seen.kernels)} launches that differ only"
                f" in their lengths, at most {MAX_VARIANTS} expected for {workload}; two of them:"
                f" {' | '.join(sorted(variants)[:2])}",
                mark=kernel,
            )


def _varied(case: Case, rng: random.Random) -> Case:
    count = rng.choice([1, 2, 3, rng.randint(1, 16), rng.randint(1, 48)])
    decode = operators.get(case.operator).decode
    longest = 1 if decode else rng.choice([1, 7, 16, 40])
    rows = tuple(
        Segment(
            1 if decode else rng.randint(1, longest), "resumed" if decode else rng.choice(["fresh", "resumed"]), slot
        )
        for slot in range(count)
    )
    return case.with_(sequences=rows, pool_slots=64, seed=rng.randrange(2**31))


def graph_body(context: Context, case: Case) -> None:
    """Captured once, replayed with other contents and other lengths of the same shapes: equal to an eager call."""
    operator = context.tokens
    mirrored = case.with_(sequences=tuple(reversed(case.sequences)), seed=case.seed ^ 1)
    first, second = context.batch(case).with_layout(Layout()), context.batch(mirrored).with_layout(Layout())
    if context.capabilities.keeps_weights:
        second = replace(second, shared=first.shared)
    static = operator.pack(first, Arena(context.device))
    other = operator.pack(second, Arena(context.device))
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    try:
        with torch.no_grad(), inflight.watched():
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                context.function(*static.arguments, **static.keywords)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                out = context.function(*static.arguments, **static.keywords)
            _refill(static, other)
            graph.replay()
            torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - whatever capture raises is a finding about the subject
        require_device(error)
        fail("not capturable", f"{operator.name} cannot be captured in a CUDA graph: {str(error).splitlines()[0]}")
    context.require_same(
        operator.unpack(out, static, second),
        context.run(second),
        "a captured graph replayed on new contents and lengths must equal an eager call",
        batch=second,
    )


def _refill(static: Call, other: Call) -> None:
    for mine, theirs in zip(static.arguments, other.arguments, strict=True):
        if isinstance(mine, torch.Tensor):
            mine.copy_(theirs)
    for name, mine in static.keywords.items():
        if isinstance(mine, torch.Tensor):
            mine.copy_(other.keywords[name])


host_sync = Property("no_host_sync", "cost", host_sync_body, weight=0.5)
launch_count = Property("bounded_launches", "cost", launches_body, weight=0.25)
copied_bytes = Property("no_copies_beside_the_kernel", "cost", copies_body, weight=0.5)
variants = Property("bounded_variants", "cost", variants_body, examples=2)
pool_memory = Property("memory_independent_of_pool", "cost", pool_memory_body, weight=0.25, devices=("cuda",))
graph_replay = Property("graph_replay", "cost", graph_body, weight=0.5, devices=("cuda",))
