"""What a subject launches, taken down without launching it.

The subject is called as usual, on tensors of the absent device. Triton's own launcher binds the arguments, specialises
them and settles the options; only its last step, the compilation, is replaced by taking down what would be compiled.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.case import AnyCase, Case, StepCase
from harness.compiling.device import Architecture, absent, present
from harness.memory import Arena
from harness.operators import Operator, TokenOperator
from harness.operators.chunk_metadata import ChunkMetadata


class NotCapturable(Exception):
    """The subject cannot be called on a device that is not there."""


@dataclass(frozen=True)
class Launch:
    """One kernel with everything that decides its machine code.

    source: Triton's own (kernel, signature, constants, attributes). options: of the back end, settled. key: equal for two
    launches exactly when Triton would compile them once.
    """

    kernel: str
    source: Any
    options: Any
    target: Any
    key: str

    @property
    def signature(self) -> dict[str, str]:
        return dict(self.source.signature)


@contextmanager
def taken_down() -> Iterator[list[Launch]]:
    """Launches of the body. Every candidate of an autotuned kernel is one: any of them may be chosen on a device."""
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []
    compile_, tune = JITFunction._do_compile, Autotuner.run

    def take_down(
        self: Any, key: str, signature: Any, device: Any, constexprs: Any, options: Any, attrs: Any, warmup: bool
    ) -> None:
        target = self.device_caches[device][2]
        source = self.ASTSource(self, signature, constexprs, attrs)
        launches.append(Launch(self.fn.__name__, source, options, target, f"{_code(self)} {target} {key}"))
        # Triton takes "no kernel" for "do not launch".

    def try_all(self: Any, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(kwargs):
            chosen = config.all_kwargs()
            if config.pre_hook is not None:
                config.pre_hook({**self.nargs, **kwargs, **chosen})
            self.fn.run(*args, **kwargs, **chosen)
        self.nargs = None

    JITFunction._do_compile, Autotuner.run = take_down, try_all
    try:
        yield launches
    finally:
        JITFunction._do_compile, Autotuner.run = compile_, tune


def _code(kernel: Any) -> str:
    """What Triton takes for the kernel's code: a hash of its source and of all that it refers to."""
    try:
        return str(kernel.cache_key)
    except Exception:  # noqa: BLE001 - refers to what a kernel may not; compiling it says so, and is where it belongs
        # Triton leaves a placeholder behind, with which the compilation would not look again.
        kernel.hash = None
        return f"{kernel.fn.__module__}.{kernel.fn.__qualname__}"


def launches_of(
    function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any], arch: Architecture
) -> list[Launch]:
    """The kernels that ``function`` would launch on ``arch`` for these arguments; CPU tensors stand for ones of a GPU.

    Raises:
        NotCapturable: the function reads the device, or raises for another reason.
    """
    placed = tuple(_placed(value) for value in arguments)
    named = {name: _placed(value) for name, value in keywords.items()}
    with present(arch), taken_down() as launches, torch.no_grad():
        try:
            function(*placed, **named)
        except Exception as error:
            raise NotCapturable(_reason(error)) from error
    return launches


def launches_in(operator: Operator, function: Callable[..., Any], case: AnyCase, arch: Architecture) -> list[Launch]:
    """The kernels that a subject of ``operator`` would launch on ``arch`` for this case."""
    if isinstance(case, StepCase):
        return launches_of(
            lambda *of: function(*of).prepare(**case.steps[-1].arguments()),
            (case.max_batch_size, case.chunk_size, torch.device("cuda", 0)),
            {},
            arch,
        )
    assert isinstance(case, Case)
    if isinstance(operator, ChunkMetadata):
        call = operator.pack(case, torch.device("cpu"))
    else:
        assert isinstance(operator, TokenOperator)
        call = operator.pack(operator.batch(case, torch.device("cpu")), Arena("cpu"))
    return launches_of(function, call.arguments, call.keywords, arch)


def _placed(value: Any) -> Any:
    return absent(value) if isinstance(value, Tensor) else value


#: How torch says that the contents of a meta tensor were asked for.
_READS = ("meta tensor", "Meta tensor", "no data", "data-dependent", "aten::nonzero", "aten::_local_scalar_dense")


def _reason(error: Exception) -> str:
    """One line: what the subject did, what was raised, where."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0] if lines else ''}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    frames = [f for f in frames if Path(f.filename).parent != Path(__file__).parent]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    if any(word in str(error) for word in _READS):
        return f"not capturable without a GPU: reads the device{place} ({said})"
    return f"not capturable without a GPU: raised {said}{place}"
