"""Every Triton launch of a stretch of code: kernel, and the key by which Triton would compile it.

On a GPU the key is the hash of the compiled kernel that ran. Under the interpreter nothing is compiled, so the key is
put together from the arguments the way Triton's own specialisation does: constexprs by value, integers by type and by
"is 1" and "divisible by 16" unless they opted out, pointers by dtype and 16-byte alignment.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from harness import interpreter


@dataclass
class Launches:
    """kernels: their names in launch order. variants: kernel name to the distinct keys seen."""

    kernels: list[str] = field(default_factory=list)
    variants: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


@contextmanager
def recorded(*, execute: bool = True) -> Iterator[Launches]:
    """Record launches in the body. ``execute`` false (interpreter only) counts them without running them."""
    seen = Launches()
    if interpreter.requested():
        from triton.runtime.interpreter import InterpretedFunction as Kernel
    else:
        from triton.runtime.jit import JITFunction as Kernel
    original = Kernel.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("warmup"):
            return original(self, *args, **kwargs)
        name = self.fn.__name__
        seen.kernels.append(name)
        if interpreter.requested():
            seen.variants[name].add(_interpreted_key(self, args, kwargs))
            return original(self, *args, **kwargs) if execute else None
        kernel = original(self, *args, **kwargs)
        seen.variants[name].add(kernel.hash)
        return kernel

    Kernel.run = run
    try:
        yield seen
    finally:
        Kernel.run = original


def _interpreted_key(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    signature = inspect.signature(kernel.fn)
    known = {name: value for name, value in kwargs.items() if name in signature.parameters}
    bound = signature.bind(*args, **known)
    bound.apply_defaults()
    parts = []
    for index, (name, value) in enumerate(bound.arguments.items()):
        annotation = str(signature.parameters[name].annotation)
        if "constexpr" in annotation:
            parts.append(f"{name}={value!r}")
        else:
            fixed = _listed(kernel, "do_not_specialize", name, index)
            unaligned = fixed or _listed(kernel, "do_not_specialize_on_alignment", name, index)
            parts.append(f"{name}:{_specialised(value, fixed, unaligned)}")
    launch = {name: value for name, value in kwargs.items() if name in ("num_warps", "num_stages", "num_ctas")}
    return ", ".join([*parts, *(f"{k}={v}" for k, v in sorted(launch.items()))])


def _listed(kernel: Any, option: str, name: str, index: int) -> bool:
    return bool({name, index} & set(kernel.kwargs.get(option) or ()))


def _specialised(value: Any, fixed: bool, unaligned: bool) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        kind = "i32" if -(2**31) <= value < 2**31 else "i64"
        if fixed:
            return kind
        return "1" if value == 1 else kind + ("d" if value % 16 == 0 and not unaligned else "")
    if isinstance(value, torch.Tensor):
        return f"*{value.dtype}" + ("d" if not unaligned and value.data_ptr() % 16 == 0 else "")
    return type(value).__name__
