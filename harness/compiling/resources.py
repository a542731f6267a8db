"""One launch through Triton's compiler, and what its machine code asks of a multiprocessor.

Registers, stack and static shared memory are read from the cubin with the `cuobjdump` that Triton brings, so a kernel out
of Triton's disk cache is measured like a fresh one. Where there is a stack, the assembler is asked again, by Triton itself
and with its flags, how much of it are spilled registers.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from harness.compiling.capture import Launch

#: From compute capability 9.0 on, a cubin's shared memory holds the kibibyte that the driver keeps in every block. The
#: limit of `Architecture.shared` does not count it.
_RESERVED_SHARED = 1024


@dataclass(frozen=True)
class Figures:
    """What one compiled kernel needs. Bytes of spills are stores and loads as ptxas counts them, of a thread.

    shared_static, shared_dynamic: bytes a block. tensor_memory: columns (Blackwell). seconds: of the compilation, or of
    the look-up where ``cached``.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared_static: int
    shared_dynamic: int
    tensor_memory: int
    num_warps: int
    num_stages: int
    ptx_bytes: int
    cubin_bytes: int
    seconds: float
    cached: bool

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads

    @property
    def shared(self) -> int:
        return self.shared_static + self.shared_dynamic


def compiled(launch: Launch) -> Figures:
    """Compile a launch for its target and measure the result. Whatever the compiler raises comes through."""
    import triton
    from triton import knobs

    hits: list[bool] = []
    listener, start = knobs.compilation.listener, time.perf_counter()
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    try:
        kernel = triton.compile(launch.source, target=launch.target, options=launch.options.__dict__)
    finally:
        knobs.compilation.listener = listener
    seconds = time.perf_counter() - start
    usage = _usage(kernel.asm["cubin"], kernel.metadata.name)
    stores, loads = _spilled(launch, kernel) if usage["STACK"] else (0, 0)
    return Figures(
        registers=usage["REG"],
        spill_stores=stores,
        spill_loads=loads,
        stack=usage["STACK"],
        shared_static=max(0, usage["SHARED"] - (_RESERVED_SHARED if launch.target.arch >= 90 else 0)),
        shared_dynamic=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        num_warps=kernel.metadata.num_warps,
        num_stages=kernel.metadata.num_stages,
        ptx_bytes=len(kernel.asm["ptx"].encode()),
        cubin_bytes=len(kernel.asm["cubin"]),
        seconds=seconds,
        cached=any(hits),
    )


def _usage(cubin: bytes, name: str) -> dict[str, int]:
    """``REG:56 STACK:0 SHARED:1024 ...`` of the kernel ``name``."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(rf"Function {re.escape(name)}:\s*\n(.*)", printed)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected the resource usage of {name}, got {printed!r}")
    return {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", found[1])}


def _spilled(launch: Launch, kernel: Any) -> tuple[int, int]:
    """Bytes of spill stores and loads, from the log of one more run of the assembler on the same PTX."""
    from triton import knobs
    from triton.compiler import make_backend

    backend, printed = make_backend(launch.target), io.StringIO()
    with knobs.nvidia.scope(), contextlib.redirect_stdout(printed):
        knobs.nvidia.dump_ptxas_log = True
        backend.make_cubin(kernel.asm["ptx"], {}, launch.options, launch.target.arch)
    pattern = rf"Function properties for {re.escape(kernel.metadata.name)}\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    found = re.search(pattern, printed.getvalue())
    if found is None:
        raise RuntimeError(f"ptxas: expected the spills of {kernel.metadata.name}, got {printed.getvalue()!r}")
    return int(found[1]), int(found[2])
