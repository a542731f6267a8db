"""Views that are rarely met: a vector whose elements lie apart, a tensor whose offsets need more than 31 bits along some axis.

A kernel may take them or refuse them, by a ValueError that names the argument; what it may not do is read them wrongly.
"""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness import execution
from harness.arguments import POSITIONAL, named_arguments
from harness.batch import Batch, Result
from harness.case import Case, Layout, Segment
from harness.context import Context, Property
from harness.execution import Call
from harness.failure import fail
from harness.memory import Arena
from harness.operators import get
from harness.operators.base import SequenceOperator
from harness.strategies import Scale
from harness.subjects import Capabilities

#: An int32 holds no more, and neither does the offset that a kernel computes in one.
MOST = 2**31
#: Strides are multiples of it, lest they be refused for their alignment.
GRAIN = 16
#: Linux's; Python has a name for it from 3.13 on.
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def stretched(tensor: Tensor, axis: int, beyond: int = -1, most: int = MOST) -> Tensor:
    """The same contents, so far apart along ``axis`` that index ``beyond`` (2 or more) lies ``most`` elements from the first.

    The stride itself fits an int32. On a CPU the pages between are never touched, and as many lie before the first element,
    so that an offset that wraps around still hits mapped memory.
    """
    size, inner = tensor.shape[axis], tensor.select(axis, 0)
    stride = (most // (beyond % size) // GRAIN + 1) * GRAIN
    strides = list(inner.contiguous().stride())
    strides.insert(axis, stride)
    lead = MOST if tensor.device.type == "cpu" else 0
    storage = _untouched(lead + (size - 1) * stride + inner.numel(), tensor)
    return storage.as_strided(tensor.shape, strides, lead).copy_(tensor)


def _untouched(elements: int, like: Tensor) -> Tensor:
    """So much memory; on a CPU address space without a promise that there is memory for all of it."""
    if like.device.type != "cpu":
        return torch.empty(elements, dtype=like.dtype, device=like.device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, elements * like.element_size(), flags), dtype=like.dtype)


def taken_or_refused(context: Context, call: Call, name: str, view: Tensor, batch: Batch) -> Result | None:
    """The result of the call with ``view`` as its argument ``name``; None when a ValueError that says so refuses it."""
    refused = []

    def attempt(*args: Any, **kwargs: Any) -> Any:
        try:
            return context.function(*args, **kwargs)
        except ValueError as error:
            refused.append(str(error))
            return None

    positional, changed = POSITIONAL[context.operator.name], {**named_arguments(context, call), name: view}
    keywords = {key: value for key, value in changed.items() if key not in positional}
    call = replace(call, arguments=tuple(changed[key] for key in positional), keywords=keywords)
    out = execution.invoke(attempt, call, check_memory=context.check_memory, what=context.operator.name)
    if not refused:
        return context.tokens.unpack(out, call, batch)
    if not re.search(rf"\b{re.escape(name)}\b", refused[0]):
        text = f"{name} with strides {view.stride()}: the ValueError does not name it: {refused[0].splitlines()[0]}"
        fail("not rejected", text, mark=name)
    return None


def _vectors(context: Context, call: Call) -> Iterator[str]:
    """Tensors that are neither tokens nor states: weights, parameters, starts, slots, flags."""
    state = context.operator.state_name if isinstance(context.operator, SequenceOperator) else ""
    for name, value in named_arguments(context, call).items():
        if isinstance(value, Tensor) and value.numel() and name not in (*context.tokens.token_inputs, state):
            yield name


def spread_vectors_body(context: Context, case: Case) -> None:
    """Each vector once with poison between its elements: read with its stride, or refused."""
    batch = context.batch(case)
    expected = context.run(batch)
    for name in _vectors(context, context.tokens.pack(batch, Arena(context.device))):
        call = context.tokens.pack(batch, Arena(context.device))
        vector = named_arguments(context, call)[name]
        spread = call.arena.place(f"{name}, spread", vector, strides=[2 * s for s in vector.contiguous().stride()])
        result = taken_or_refused(context, call, name, spread, batch)
        if result is None and spread.is_contiguous():
            fail("raised", f"{name} of one element, which is contiguous whatever its stride, was refused", mark=name)
        if result is not None:
            why = f"{name} with strides {spread.stride()} was accepted, so it must give the rows of a contiguous one"
            context.require_same(result, expected, why, batch=batch)


def _stretchable(context: Context, call: Call) -> Iterator[tuple[str, int]]:
    """Tensors of two axes or more, and their axes of three elements or more.

    Without the slots of a pool: how far those may lie apart nobody may restrict (`placement.high_slot`).
    """
    state = context.operator.state_name if isinstance(context.operator, SequenceOperator) else ""
    for name, value in named_arguments(context, call).items():
        if isinstance(value, Tensor) and value.dim() > 1:
            yield from ((name, axis) for axis in range(name == state, value.dim()) if value.shape[axis] > 2)


def stretched_body(context: Context, case: Case) -> None:
    """Each tensor stretched along each of its axes, tokens, heads or features: right, or refused.

    Half as far, every offset in a token fits an int32, and there is no reason to refuse.
    """
    # A 2-byte pool halves the memory that a GPU really has to hold.
    batch = context.batch(case.with_(state_dtype=case.dtype))
    batch = batch.with_layout(Layout(wide_indices=batch.layout.wide_indices))
    expected = context.run(batch)
    for name, axis in _stretchable(context, context.tokens.pack(batch, Arena(context.device))):
        for most in (MOST, MOST // 2) if axis else (MOST,):
            call = context.tokens.pack(batch, Arena(context.device))
            far = stretched(named_arguments(context, call)[name], axis, most=most)
            result = taken_or_refused(context, call, name, far, batch)
            if result is not None:
                why = f"{name} with strides {far.stride()} was accepted, so it must give the rows of a contiguous one"
                context.require_same(result, expected, why, batch=batch)
            elif most < MOST:
                text = f"{name} with strides {far.stride()} was refused, though it spans no more than 2^30 elements a token"
                fail("raised", text, mark=name)
            del call, far  # gigabytes, which the next one would be allocated beside


def three_of_each(operator: str) -> Callable[[Scale, str], Any]:
    """A few tokens of three heads or channels at least: with two, the stride itself would need more than 31 bits."""

    def fit(case: Case) -> Case:
        least = {name: max(3, min(size, 20)) for name, size in case.dims.items() if name != "W"}
        heads = {name: 3 for name in ("H", "HV") if name in case.dims}
        decode = get(operator).decode
        sequences = tuple(Segment(1, "resumed", n) for n in range(3)) if decode else (Segment(4, "resumed", 1),)
        return case.with_(dims={**case.dims, **least, **heads}, sequences=sequences)

    def strategy(scale: Scale, dtype: str) -> Any:
        return get(operator).cases(scale, dtype).map(fit)

    return strategy


def takes_no_views(_: str, function: Callable[..., Any]) -> str:
    return "" if Capabilities.of(function).strided else "it takes no strided views"


spread_vectors = Property(
    "spread_vectors", "arguments", spread_vectors_body, weight=0.25, nothing_to_check=takes_no_views
)


def stretched_axes(operator: str) -> Property:
    """The property for an operator, whose cases it needs with three heads."""
    return Property(
        "stretched_axes",
        "arguments",
        stretched_body,
        examples=2,
        dtypes=("bfloat16",),
        strategy=three_of_each(operator),
        nothing_to_check=takes_no_views,
    )
