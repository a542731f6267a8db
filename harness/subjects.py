"""Implementations under test, reached by name.

A subject is a plain function with the operator's signature. It is found through the entry-point group
``sluicegate.subjects.<operator>``, or given on the command line as ``operator=module:function``. What it cannot take it
declares in a dict attribute named ``sluicegate`` (see `Capabilities`); a function without one claims everything.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

GROUP = "sluicegate.subjects."
BASELINES = "sluicegate.baselines."


@dataclass(frozen=True)
class Capabilities:
    """What a subject takes. What it does not take is not generated for it and is listed as not covered.

    devices, dtypes, state_dtypes: names. max_head_dim: largest K or V. equal_head_dims: only K == V. strided: accepts
    views that are not dense. padded_pool: accepts a slot stride larger than a slot. bitwise: keeps the bitwise promises
    of the relations (otherwise they are judged by the budget). min_capability, max_capability: CUDA compute capability, as
    (9, 0). library: what it is imported from and how new that must be, as "flashinfer>=0.7". repeatable: the same call gives the
    same bits, whatever `bitwise` says (sums by atomics do not). keeps_weights: what it makes of weights it keeps as long as
    they do not change, so that a captured graph goes on with those of its capture.
    case_share: the part of the usual number of cases it gets where it is slow (a kernel under the interpreter).
    chunk_size: tokens at whose multiples a sequence may be cut and resumed without changing a bit; 0: no such promise.
    batch_invariant: whether a row's bits do not depend on how many rows there are beside it; else such comparisons are judged
    by the budget. routing_methods: of a mixture of experts; empty: all. weights_rounded: the dtype to which it rounds
    routing weights, empty for none. products_rounded: whether every result on the way is rounded to the dtype of the inputs,
    as separate calls of a library do, and not only what goes into the second product. parts_rounded: what each expert
    adds to a token is. Budgets of such subjects allow for what they declare. deep_sigmoids: whether sigmoids that are next to
    nothing in float32 are still divided rightly by their sum, which as they stand are 0 / 0.
    """

    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16", "int32")
    state_dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    max_head_dim: int = 256
    equal_head_dims: bool = False
    strided: bool = True
    padded_pool: bool = True
    bitwise: bool = True
    min_capability: tuple[int, int] = (0, 0)
    max_capability: tuple[int, int] = (99, 9)
    library: str = ""
    repeatable: bool = True
    keeps_weights: bool = False
    case_share: float = 1.0
    chunk_size: int = 0
    batch_invariant: bool = True
    routing_methods: tuple[str, ...] = ()
    weights_rounded: str = ""
    products_rounded: bool = False
    parts_rounded: bool = False
    deep_sigmoids: bool = True

    @property
    def roundings(self) -> dict[str, Any]:
        """Options of a case that is judged with what the subject declares to round."""
        names = ("weights_rounded", "products_rounded", "parts_rounded")
        return {name: value for name in names if (value := getattr(self, name))}

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Capabilities:
        declared: Mapping[str, Any] = getattr(function, "sluicegate", {})
        known = {f.name for f in fields(cls)}
        unknown = set(declared) - known
        if unknown:
            raise ValueError(
                f"{function.__name__}.sluicegate: got unknown capabilities {sorted(unknown)}, expected some of {sorted(known)}"
            )
        return cls(**declared)


@dataclass(frozen=True)
class Subject:
    """One implementation of one operator. ``target`` is ``module:function``; importing waits until it is needed."""

    operator: str
    name: str
    target: str
    origin: str = field(default="entry point", compare=False)

    def load(self) -> Callable[..., Any]:
        return load_target(self.target)

    @property
    def spec(self) -> str:
        return f"{self.operator}={self.target}"


def load_target(target: str) -> Callable[..., Any]:
    """The function behind ``module:function`` or ``path/to/file.py:function``."""
    module_name, _, attribute = target.rpartition(":")
    if not module_name or not attribute:
        raise ValueError(f"subject: got {target!r}, expected module:function or path/to/file.py:function")
    if module_name.endswith(".py"):
        module = _module_from_file(Path(module_name))
    else:
        # A console script has its own folder on the path, not the one that it is run from.
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.append(os.getcwd())
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name and module_name.startswith(error.name)
            if not absent:
                raise ValueError(_broken(module_name, error)) from error
            raise ValueError(
                f"subject: cannot import {module_name!r} ({error}); run from the folder that holds it, set PYTHONPATH, or give a"
                " path ending in .py"
            ) from error
    function = module
    for part in attribute.split("."):
        if not hasattr(function, part):
            raise ValueError(f"subject: {module_name!r} has no attribute {attribute!r}")
        function = getattr(function, part)
    if not callable(function):
        raise ValueError(f"subject: {target!r} is a {type(function).__name__}, expected a function")
    return function


def _module_from_file(path: Path) -> Any:
    path = path.resolve()
    if not path.exists():
        raise ValueError(f"subject: no file {path}")
    name = f"sluicegate_subject_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"subject: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(_broken(path, error)) from error
    return module


def _broken(module: object, error: Exception) -> str:
    return f"subject: importing {module} raised {type(error).__name__}: {error}; it must import by itself"


def sibling(function: Callable[..., Any], name: str) -> Callable[..., Any] | None:
    """The function of this name in the module that defines ``function``, if there is one."""
    module = sys.modules.get(getattr(function, "__module__", ""))
    return getattr(module, name, None)


def registered(operator: str) -> list[Subject]:
    """The subjects that installed packages offer for this operator, by name."""
    found = entry_points(group=GROUP + operator)
    return sorted((Subject(operator, e.name, e.value) for e in found), key=lambda s: s.name)


def baseline(operator: str) -> Subject | None:
    """The same work done the pre-optimization way, if a package offers it."""
    found = sorted(entry_points(group=BASELINES + operator), key=lambda e: e.name)
    return Subject(operator, found[0].name, found[0].value) if found else None


def parse(text: str, operators: Mapping[str, Any]) -> Subject:
    """``operator=module:function`` from the command line."""
    operator, separator, target = text.partition("=")
    if not separator or operator not in operators:
        raise ValueError(
            f"--subject: got {text!r}, expected OPERATOR=module:function with OPERATOR one of {', '.join(operators)}"
        )
    if ":" not in target:
        raise ValueError(f"--subject: got {target!r}, expected module:function or path/to/file.py:function")
    return Subject(operator, target, target, "command line")
