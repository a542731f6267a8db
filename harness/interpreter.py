"""Triton's interpreter, made trustworthy for bfloat16, probed before use.

As shipped (3.6 to 3.9) the interpreter truncates float32 to bfloat16 where hardware rounds to nearest even, and does
bfloat16 arithmetic on the raw 16-bit patterns. A correct kernel would fail on a CPU for reasons of its own. `repair`
replaces those conversions with exact ones, lets 3.6 run beside numpy 2.4 and spares CPU tensors the copy to "the host" and
back; `probe` then checks the result, and a cell whose dtype cannot be trusted is reported as not run.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from harness import bounds, interpreter_memory


def requested() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, nearest even, NaN kept."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def bfloat16_values(bits: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


@cache
def repair() -> str | None:
    """Patch the interpreter in place, once. Returns why it could not be done, or None."""
    if not requested():
        return None
    try:
        import triton.language as tl
        from triton.runtime import interpreter as upstream

        builder: Any = upstream.InterpreterBuilder
        handle = upstream.TensorHandle
        convert = upstream._convert_float
        binary, dot, executor = builder.binary_op, builder.create_dot, upstream.GridExecutor
        options = upstream.interpreter_builder.options
        patch_attribute, is_builtin = upstream._patch_attr, tl.core.is_builtin
        restore, to_host = executor._restore_args_dev, executor._init_args_hst
        patch_tensor = upstream._patch_lang_tensor
        interpreter_memory.watch(upstream)
    except (ImportError, AttributeError) as error:
        return f"this Triton's interpreter has another shape than the ones known here ({error})"

    def exact_convert(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if source == tl.float32 and target == tl.bfloat16:
            return bfloat16_bits(data).reshape(data.shape)
        if source == tl.bfloat16 and target == tl.float32:
            return bfloat16_values(data).view(np.uint32).reshape(data.shape)
        return convert(data, source, target, rounding)

    def exact_binary(self: Any, left: Any, right: Any, op: Any) -> Any:
        if left.dtype.scalar == tl.bfloat16 and right.dtype.scalar == tl.bfloat16:
            out = op(bfloat16_values(left.data), bfloat16_values(right.data))
            return handle(out if out.dtype == np.bool_ else bfloat16_bits(out), tl.bfloat16)
        return binary(self, left, right, op)

    def exact_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        """A sum in float64, rounded once to the accumulator's dtype: of float32, BLAS gives a row other bits in other places."""
        if a.dtype.scalar == tl.bfloat16 and b.dtype.scalar == tl.bfloat16:
            a, b = (handle(bfloat16_values(x.data), tl.float32) for x in (a, b))
        if not (wide(a) and wide(b)):
            return dot(self, a, b, d, *options)
        total = np.matmul(a.data, b.data, dtype=np.float64).astype(d.data.dtype)
        return handle(total + d.data, d.dtype.scalar)

    def wide(operand: Any) -> bool:
        return bool(operand.dtype.is_floating() and operand.dtype.primitive_bitwidth > 8)

    # Tensors that already lie on the CPU need no copy to the host and no copy back; upstream copies each whole storage
    # back onto itself, which for a pool of many slots costs more than the kernel.
    def on_cpu(values: Any) -> bool:
        return all(tensor.device.type == "cpu" for tensor in bounds.tensors(values))

    def init_args(self: Any, args: Any, kwargs: Any) -> Any:
        if on_cpu(args) and on_cpu(kwargs.values()):
            return list(args), dict(kwargs)
        return to_host(self, args, kwargs)

    def restore_args(self: Any, args: Any, host: Any, kwargs: Any, kwargs_host: Any) -> None:
        if not (on_cpu(args) and on_cpu(kwargs.values())):
            restore(self, args, host, kwargs, kwargs_host)

    # Upstream lists all members of the language anew for each call of a jit function from another one.
    builtins: dict[Any, list[tuple[str, Any]]] = {}

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        if package not in builtins:
            builtins[package] = [(n, m) for n, m in inspect.getmembers(package) if is_builtin(m)]
        for name, member in builtins[package]:
            if getattr(package, name) is member:  # otherwise an outer call has patched it already
                patch_attribute(package, name, member, builder, scope)

    # numpy 2.4 turns an array of one element into an int no more unless it has no dimension, and scalars of 3.6 have one.
    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda value: int(value.handle.data.item()))

    upstream._patch_lang_tensor = patch_lang_tensor
    upstream._patch_builtin = patch_builtin
    # Every integer addition is otherwise done twice, once in 64 bits to look for overflow: half the time of a kernel. The
    # high-slot property looks for what overflow does.
    upstream.interpreter_builder.options = replace(options, sanitize_overflow=False)
    upstream._convert_float = exact_convert
    builder.binary_op, builder.create_dot = exact_binary, exact_dot
    executor._init_args_hst, executor._restore_args_dev = init_args, restore_args
    return None


@cache
def probe() -> dict[str, str]:
    """dtype name to the reason why the interpreter must not be trusted with it; empty when all is well."""
    if not requested():
        return {}
    reason = repair()
    import triton

    if not triton.knobs.runtime.interpret:
        return dict.fromkeys(
            ("float32", "float16", "bfloat16"), "Triton was imported before TRITON_INTERPRET=1 was set"
        )
    from harness._probe_kernel import probe_arithmetic

    untrusted = {}
    values = torch.linspace(-3.0, 3.0, 64, dtype=torch.float32) * torch.tensor(1.0 + 2.0**-9 + 2.0**-13)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        source = values.to(dtype)
        stored, summed = torch.empty_like(source), torch.empty_like(source)
        wide = torch.empty_like(values)
        try:
            probe_arithmetic(values, source, stored, summed, wide)
        except Exception as error:  # noqa: BLE001 - an interpreter that cannot run this cannot be trusted with anything
            untrusted[name] = f"the interpreter fails at {name} arithmetic ({error})" + (
                f": {reason}" if reason else ""
            )
            continue
        exact = (
            torch.equal(stored, source)
            and torch.equal(wide, source.float())
            and torch.equal(summed, (source.float() + source.float() * 1.0).to(dtype))
        )
        if not exact:
            untrusted[name] = f"the interpreter's {name} arithmetic is inexact" + (f": {reason}" if reason else "")
    return untrusted
