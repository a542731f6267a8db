"""One call of a subject: hostile memory around it, a watchdog over it, its result taken apart and checked for shape."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from harness import bounds, inflight
from harness.failure import Failure, fail
from harness.memory import Arena, PoisonedAllocations

_PACKAGE = Path(__file__).parent


class DeviceLost(RuntimeError):
    """The CUDA context is unusable (illegal access, launch failure): this process cannot judge anything any more."""


class OutOfDeviceMemory(RuntimeError):
    """The GPU had no memory left. Other workers use it too, so this says nothing about the case and is no verdict."""


_FATAL_CUDA = (
    "illegal memory access",
    "misaligned address",
    "device-side assert",
    "launch failure",
    "unspecified launch",
)

_FULL_CUDA = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    # The first product of a process, which finds no room for cuBLAS's own.
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(",
)
#: How torch's allocator says what it was asked for, and what there is.
_SIZE = r"([0-9.]+) (bytes|[KMGT]iB)"
_ASKED = re.compile(rf"Tried to allocate {_SIZE}\. GPU \d+ has a total capacity of {_SIZE}")
#: Bytes that a process may keep for its next cases. One property in ten needs 4 GiB and more, and twelve workers share a GPU.
KEPT = 1 << 30


@dataclass
class Call:
    """A packed call: what the subject gets, and what is needed to read the result."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    arena: Arena


def device_lost(error: BaseException) -> bool:
    """Whether this error says that the CUDA context is unusable from now on."""
    return any(word in str(error) for word in _FATAL_CUDA)


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says that the GPU has no memory left: as torch's allocator says it, or CUDA, cuBLAS or Triton.

    Not if more was asked for than the whole GPU has: that no other worker is to blame for.
    """
    if isinstance(error, (OutOfDeviceMemory, torch.OutOfMemoryError)):
        asked = _ASKED.search(str(error))
        return asked is None or _bytes(*asked.group(1, 2)) <= _bytes(*asked.group(3, 4))
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL_CUDA)


def _bytes(number: str, unit: str) -> float:
    return float(number) * 1024 ** ("bytes", "KiB", "MiB", "GiB", "TiB").index(unit)


def give_back(device: torch.device) -> None:
    """Let other workers have the GPU's memory that is not in use here: torch keeps all that it was ever given."""
    if device.type == "cuda" and torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) > KEPT:
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def require_device(error: BaseException) -> None:
    """Raise `DeviceLost` or `OutOfDeviceMemory` where that is what the error says: then it is nothing that the subject did."""
    if device_lost(error):
        raise DeviceLost(str(error)) from error
    if out_of_memory(error):
        raise OutOfDeviceMemory(str(error)) from error


def raised(error: BaseException, what: str) -> NoReturn:
    """Turn what a subject raised into a failure; a lost device becomes `DeviceLost`, a full one `OutOfDeviceMemory`."""
    require_device(error)
    text = str(error)
    # The last frame outside this package is where an engineer wants to look.
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not Path(f.filename).is_relative_to(_PACKAGE)]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    lines = text.strip().splitlines()
    fail(
        "raised",
        f"{what} raised {type(error).__name__}{place}: {lines[0] if lines else ''}",
        details="".join(traceback.format_exception(error)),
        mark=type(error).__name__,
    )


@contextmanager
def guarded(call: Call, *, check_memory: bool, what: str) -> Iterator[None]:
    """Run the body (the subject) with armed memory; afterwards every guard, input and untouched slot is compared.

    Under the interpreter, no access may have gone outside the buffers either (`harness.bounds`).
    """
    call.arena.arm()
    poison = PoisonedAllocations(call.arena.fill)
    try:
        with bounds.watched() as watch, poison, torch.no_grad():
            for buffer in call.arena.buffers:
                watch.fence(buffer.storage, buffer.first, buffer.last, buffer.name)
            yield
        synchronize(call.arena.device)
    except Failure:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a subject raises is a finding about the subject
        raised(error, what)
    if check_memory:
        # First who went outside and where; the guard bands only say that somebody did, and not always: what is written there
        # may be what stood there.
        watch.check()
        call.arena.check()
        poison.check()


def invoke(function: Callable[..., Any], call: Call, *, check_memory: bool = True, what: str = "the subject") -> Any:
    """Call the subject once and return what it returned."""
    with guarded(call, check_memory=check_memory, what=what), inflight.watched():
        return function(*call.arguments, **call.keywords)
    raise AssertionError("unreachable: guarded() swallows nothing")
