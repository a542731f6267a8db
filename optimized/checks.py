"""Argument checks shared by the operators: one wording, raised before anything is written.

Two kinds.  *Shape checks* look only at what the host knows already (shape, strides, dtype, device) and always run.
*Value checks* (``check_slots``, ``check_cu_seqlens``) must read the tensors' values, which on CUDA is a host sync, so they
do nothing unless ``SLUICEGATE_STRICT=1``; the variable is read at every call.

Every failure is a ``ValueError`` of the form ``argument: got ..., expected ...; what to do``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import torch
import triton

Dim = int | str | None
"""One expected dimension: a fixed size, the name of a size that must agree between arguments, or None for any size."""


def check_strict() -> bool:
    """Whether strict mode is on now: environment variable ``SLUICEGATE_STRICT=1``."""
    return os.environ.get("SLUICEGATE_STRICT") == "1"


def fail(name: str, got: object, expected: str, advice: str) -> ValueError:
    """The error to raise for argument ``name``; the caller raises it, so that control flow stays visible there."""
    return ValueError(f"{name}: got {got}, expected {expected}; {advice}")


def check_tensor(
    name: str,
    tensor: object,
    *,
    shape: Sequence[Dim] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | None = None,
    dims: dict[str, int] | None = None,
) -> None:
    """Check that ``tensor`` is a tensor of this shape, one of these dtypes, on this device; no value is read.

    Args:
        name: the argument's name, for the message.
        tensor: what the caller passed.
        shape: one entry a dimension, see ``Dim``.  A name that ``dims`` has must match; a new one is bound there.
        dtypes: the accepted dtypes; None accepts all.
        device: the required device; None accepts all.
        dims: the names bound so far, updated in place.  Without it, names hold only within this tensor.

    Raises:
        ValueError: naming ``name``, what it got, what was wanted and what to do.
    """
    if not isinstance(tensor, torch.Tensor):
        raise fail(name, f"{type(tensor).__name__} {tensor!r}", "a torch.Tensor", "pass a tensor")
    if shape is not None:
        bound = {} if dims is None else dims
        got = tensor.shape
        ok = len(got) == len(shape)
        if ok:
            fresh: dict[str, int] = {}
            for size, want in zip(got, shape, strict=True):
                if want is None:
                    continue
                expected = want if isinstance(want, int) else bound.get(want, fresh.setdefault(want, size))
                ok = ok and size == expected
            if ok:
                for key, size in fresh.items():
                    bound.setdefault(key, size)
        if not ok:
            wanted = f"shape {_describe(shape, bound)}"
            raise fail(name, f"shape {list(got)}", wanted, "pass the tensor in the packed layout of the contract")
    if dtypes is not None and tensor.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        raise fail(name, f"dtype {tensor.dtype}", names, f"convert it with {name}.to({dtypes[0]})")
    if device is not None and tensor.device != device:
        raise fail(name, f"device {tensor.device}", f"{device} as the other arguments", "move it there before the call")


def check_int(name: str, value: object, minimum: int) -> None:
    """Check that ``value`` is a Python int (not a bool) of at least ``minimum``; ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise fail(name, f"{type(value).__name__} {value!r}", f"an int >= {minimum}", "pass a plain Python integer")
    if value < minimum:
        raise fail(name, value, f"an int >= {minimum}", "pass a larger value")


def check_contiguous(name: str, vector: torch.Tensor) -> None:
    """Check that a vector's elements are neighbours in memory; ValueError otherwise."""
    if vector.shape[0] > 1 and vector.stride(0) != 1:
        raise fail(name, f"stride {vector.stride(0)}", "a contiguous tensor", f"pass {name}.contiguous()")


def check_span(name: str, view: torch.Tensor, span: int, what: str) -> None:
    """Check that offsets of up to ``span`` elements, which a kernel computes in 32 bits, fit; ValueError otherwise."""
    if span >= 2**31:
        raise fail(name, f"strides {view.stride()}", f"{what} within 2^31 elements", f"pass {name}.contiguous()")


def check_runnable(name: str, tensor: torch.Tensor) -> None:
    """Check that a kernel can run where ``tensor`` lies: on a GPU, or in the interpreter; ValueError otherwise."""
    if tensor.device.type != "cuda" and not triton.knobs.runtime.interpret:
        advice = "move the tensors to a GPU, or set TRITON_INTERPRET=1 before the first import"
        raise fail(name, f"device {tensor.device}", "a CUDA device", advice)


def check_scale(scale: object) -> None:
    """Check that an output's ``scale`` is a Python number or None (the operator's default); ValueError otherwise."""
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
        raise fail("scale", f"{type(scale).__name__} {scale!r}", "a float or None", "pass a plain Python number")


def check_heads(dims: dict[str, int], largest: int) -> None:
    """Check the dims H, K of ``q`` and HV, V of ``v``: HV a multiple of H, head dims from 1 to ``largest``.

    Raises:
        ValueError: naming ``v`` or ``q``.
    """
    if dims["H"] == 0 or dims["HV"] % dims["H"] != 0:
        raise fail("v", f"{dims['HV']} value heads", f"a multiple of {dims['H']} heads", "pass HV a multiple of H")
    for name, argument, dim in (("K", "q", dims["K"]), ("V", "v", dims["V"])):
        if not 1 <= dim <= largest:
            raise fail(argument, f"{name} = {dim}", f"1 to {largest}", "this kernel keeps a head's keys whole")


def check_experts_here(expert_offset: int, local: int, experts: int) -> None:
    """Check that the ``local`` experts from ``expert_offset`` on are among all ``experts``; ValueError otherwise."""
    check_int("expert_offset", expert_offset, 0)
    if expert_offset + local > experts:
        advice = "the experts that are here are among those routed to"
        raise fail("expert_offset", expert_offset, f"at most {experts - local}", advice)


def check_slots(state_indices: torch.Tensor, num_slots: int, *, name: str = "state_indices") -> None:
    """Strict mode only: every slot below ``num_slots``, no slot twice among the active (non-negative) rows.

    Reads the device when strict, does nothing otherwise.  Negative entries are inactive rows and may repeat.
    """
    if not check_strict():
        return
    slots = state_indices.tolist()
    active = [slot for slot in slots if slot >= 0]
    beyond = next((row for row, slot in enumerate(slots) if slot >= num_slots), None)
    if beyond is not None:
        got = f"slot {slots[beyond]} in row {beyond}"
        raise fail(name, got, f"slots below {num_slots}", "use -1 for inactive rows")
    if len(set(active)) != len(active):
        twice = next(slot for slot in active if active.count(slot) > 1)
        rows = [row for row, slot in enumerate(slots) if slot == twice]
        advice = "give every active row its own slot, and inactive rows -1"
        raise fail(name, f"slot {twice} in rows {rows}", "no slot twice among active rows", advice)


def check_cu_seqlens(
    cu_seqlens: torch.Tensor, tokens: int | None, *, tokens_in: str = "", name: str = "cu_seqlens"
) -> None:
    """Strict mode only: starts at 0, never decreases, ends at ``tokens``, those in ``tokens_in``, or before (None: any end)."""
    if not check_strict():
        return
    starts = cu_seqlens.tolist()
    if starts[0] != 0:
        raise fail(name, f"first value {starts[0]}", "0", "pass cumulative starts, beginning with 0")
    for row, (start, end) in enumerate(itertools.pairwise(starts)):
        if end < start:
            got = f"{start} then {end} at positions {row} and {row + 1}"
            raise fail(name, got, "values that never decrease", "pass the cumulative sum of non-negative lengths")
    if tokens is not None and starts[-1] > tokens:
        raise fail(name, f"last value {starts[-1]}", f"at most {tokens} tokens", f"pass all tokens in {tokens_in}")


def _describe(shape: Sequence[Dim], bound: dict[str, int]) -> str:
    """``[T=7, D, 128, any]``: names with the size they are bound to."""
    parts = []
    for want in shape:
        if want is None:
            parts.append("any")
        elif isinstance(want, str):
            parts.append(f"{want}={bound[want]}" if want in bound else want)
        else:
            parts.append(str(want))
    return "[" + ", ".join(parts) + "]"
