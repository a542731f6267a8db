"""A CUDA device that is not there: subjects launch on it, nothing runs.

Its tensors are meta tensors that say they lie on ``cuda:0``, so every torch operation on them gives a shape, strides and
an offset, and reading one raises. What a launcher asks torch or Triton about the device (capability, multiprocessors,
stream) is answered for the architecture that is compiled for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CUDA = torch.device("cuda", 0)
#: Allocations are aligned far beyond the 16 bytes that Triton looks at; a view's offset decides, as on a real device.
_BASE = 1 << 20


@dataclass(frozen=True)
class Architecture:
    """A compute capability, and the most shared memory that one block may have there, in bytes."""

    name: str
    capability: tuple[int, int]
    shared: int
    multiprocessors: int

    @property
    def number(self) -> int:
        return self.capability[0] * 10 + self.capability[1]


#: Shared memory per block with opt-in: CUDA C++ Programming Guide, technical specifications per compute capability.
#: Multiprocessors are those of A100, H100, B200 and RTX PRO 6000, for launchers that size their grid by them.
ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("sm_80", (8, 0), 163 * 1024, 108),
        Architecture("sm_90", (9, 0), 227 * 1024, 132),
        Architecture("sm_100", (10, 0), 227 * 1024, 148),
        Architecture("sm_120", (12, 0), 99 * 1024, 188),
    )
}


def architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise ValueError(f"--arch: got {name!r}, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


class _AbsentTensor(Tensor):
    """A meta tensor that claims to lie on the absent device. Results of operations on it claim so too.

    Not to torch itself: much of what torch does with meta tensors is written in Python and asks them for their device.
    """

    inside_torch = False

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("meta") if _AbsentTensor.inside_torch else _CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return not _AbsentTensor.inside_torch

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return _AbsentTensor.inside_torch

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return _BASE + int(self.storage_offset()) * self.element_size()


def absent(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides, dtype and alignment on the absent device."""
    aligned = tensor.data_ptr() % 16 // tensor.element_size()
    length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    storage = torch.empty(max(length, 0) + aligned, dtype=tensor.dtype, device="meta")
    return storage.as_strided(tensor.shape, tensor.stride(), aligned).as_subclass(_AbsentTensor)


def _is_cuda(value: Any) -> bool:
    if isinstance(value, str):
        return value == "cuda" or value.startswith("cuda:")
    return isinstance(value, torch.device) and value.type == "cuda"


class _Placement(TorchFunctionMode):
    """Whatever is asked for on a CUDA device is made on the absent one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = dict(kwargs or {})
        wanted = _is_cuda(keywords.get("device"))
        # Only a real device pins memory.
        keywords.pop("pin_memory", None)
        if wanted:
            keywords["device"] = "meta"
        elif func is Tensor.cuda:
            func, args, keywords, wanted = Tensor.to, (args[0], "meta"), {}, True
        elif func is Tensor.to and any(_is_cuda(a) for a in args[1:]):
            args, wanted = tuple("meta" if _is_cuda(a) else a for a in args), True
        with _replaced(_AbsentTensor, "inside_torch", True):
            out = func(*args, **keywords)
        if wanted and isinstance(out, Tensor) and not isinstance(out, _AbsentTensor):
            return out.as_subclass(_AbsentTensor)
        return out


@contextmanager
def present(arch: Architecture) -> Iterator[None]:
    """While the body runs, torch and Triton believe in one device of this architecture."""
    from triton.runtime import driver

    properties = SimpleNamespace(
        name=arch.name,
        major=arch.capability[0],
        minor=arch.capability[1],
        multi_processor_count=arch.multiprocessors,
        shared_memory_per_block=48 * 1024,
        shared_memory_per_block_optin=arch.shared,
        warp_size=32,
        total_memory=80 << 30,
    )
    stream = SimpleNamespace(cuda_stream=0, device=_CUDA, wait_stream=lambda _: None, synchronize=lambda: None)
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: arch.capability,
        "get_device_name": lambda device=None: arch.name,
        "get_device_properties": lambda device=None: properties,
        "current_stream": lambda device=None: stream,
        "Event": _Event,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "_exchange_device": lambda device: device,
        "_maybe_exchange_device": lambda device: device,
        "_lazy_init": lambda: None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(_replaced(torch.cuda, name, answer))
        stack.enter_context(_replaced(driver, "_active", _Driver(arch)))
        stack.enter_context(_Placement())
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _Event:
    """Of work that is never queued: always done."""

    def __init__(self, **_: object) -> None: ...

    def record(self, stream: object = None) -> None: ...

    def wait(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Driver:
    """As much of Triton's driver as is asked on the way to a compilation."""

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self.utils = SimpleNamespace(get_device_properties=self._properties)

    def _properties(self, device: object) -> dict[str, int]:
        return {"max_shared_mem": self.arch.shared, "multiprocessor_count": self.arch.multiprocessors, "warpSize": 32}

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch.number, 32)

    def get_current_device(self) -> str:
        """Triton keeps compiled kernels by device: a name of its own leaves those of a real device alone."""
        return f"absent {self.arch.name}"

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def get_device_capability(self, device: object = None) -> tuple[int, int]:
        return self.arch.capability

    def get_active_torch_device(self) -> torch.device:
        return _CUDA
