"""The operators that a model computes with, chosen by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import references
from harness import subjects
from harness.subjects import Capabilities
from serving.gates import gates

OPERATORS = (
    "step_metadata",
    "conv_prefill",
    "conv_update",
    "gdn_prefill",
    "gdn_decode",
    "gated_rmsnorm",
    "moe",
)
BASES = ("references", "oracle", "optimized")


@dataclass(frozen=True)
class KernelSet:
    """One implementation of each operator, with the signatures of the operators' contracts (ARCHITECTURE.md).

    chunk_size: of the logical chunks that `step_metadata` builds, and where a prefix may be cut without changing a bit.
    gates: what makes log decays and steps out of the projections for `gdn_prefill`; in float32 unless it is a reference.
    """

    step_metadata: Callable[..., Any]
    conv_prefill: Callable[..., Any]
    conv_update: Callable[..., Any]
    gdn_prefill: Callable[..., Any]
    gdn_decode: Callable[..., Any]
    gated_rmsnorm: Callable[..., Any]
    moe: Callable[..., Any]
    chunk_size: int = 64
    gates: Callable[..., tuple[Tensor, Tensor]] = gates

    def replaced(self, **operators: Any) -> KernelSet:
        """The same set with other implementations of the named operators."""
        return replace(self, **operators)

    @classmethod
    def named(cls, text: str, *, compute_dtype: torch.dtype = torch.float64) -> KernelSet:
        """A set by its name, perhaps with other implementations of some operators.

        "references": token by token, straight from the definition. "oracle": the same with the chunk form of the prefill,
        which computes the same function faster. "optimized": the subjects of that name. After a comma, an operator and where it
        comes from: "references", "oracle", the name of one of its subjects, a library that `optimized.peers` has an adapter
        for, or module:function, as in

            optimized,gdn_prefill=references,gdn_decode=pkg.module:function,conv_update=sglang

        Args:
            compute_dtype: of the references between their inputs and the one rounding of their results; float64 tensors are
                always computed in float64.

        Raises:
            ValueError: an unknown name, with those that are known.
        """
        base, *changes = (part.strip() for part in text.split(","))
        if base not in BASES:
            raise ValueError(f"kernels: got {base!r}, expected one of {', '.join(BASES)} first, then operator=name")
        chosen = dict.fromkeys(OPERATORS, base)
        for change in changes:
            operator, separator, name = change.partition("=")
            if not separator or operator not in OPERATORS:
                raise ValueError(f"kernels: got {change!r}, expected operator=name with one of {', '.join(OPERATORS)}")
            chosen[operator] = name
        found = {operator: implementation(operator, name, compute_dtype) for operator, name in chosen.items()}
        if chosen["gdn_prefill"] in ("references", "oracle"):
            found["gates"] = _reference(references.gates, compute_dtype)
        promised = Capabilities.of(found["gdn_prefill"]).chunk_size
        chosen_set = cls(**found)  # type: ignore[arg-type]  # chunk_size is none of the names
        return chosen_set.replaced(chunk_size=promised) if promised else chosen_set


def implementation(operator: str, name: str, compute_dtype: torch.dtype) -> Callable[..., Any]:
    """One operator from where `KernelSet.named` says."""
    if name == "oracle" and operator == "gdn_prefill":
        return _reference(references.gdn_chunked, compute_dtype)
    if name in ("references", "oracle"):
        function: Callable[..., Any] = getattr(references, operator)
        return function if operator == "step_metadata" else _reference(function, compute_dtype)
    if ":" in name:
        return _dense(subjects.load_target(name))
    known = {subject.name: subject for subject in subjects.registered(operator)}
    if name in known:
        return _dense(known[name].load())
    try:
        return _dense(subjects.load_target(f"optimized.peers.{name}:{operator}"))
    except ValueError as error:
        raise ValueError(
            f"kernels: got {operator}={name!r}, expected references, oracle, {', '.join([*known, ''])}"
            f"a library of optimized/peers that has this operator, or module:function ({error})"
        ) from error


def _reference(function: Callable[..., Any], compute_dtype: torch.dtype) -> Callable[..., Any]:
    """The reference, computing in `compute_dtype`, or in float64 if that is what it is given."""

    @functools.wraps(function)
    def computed(first: Tensor, *others: Any, **keywords: Any) -> Any:
        dtype = torch.promote_types(compute_dtype, first.dtype)
        return function(first, *others, **keywords, compute_dtype=dtype)

    return computed


def _dense(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, given dense copies of the token's views if it declares that it takes no others."""
    if Capabilities.of(function).strided:
        return function

    @functools.wraps(function)
    def copied(*tokens: Tensor, **keywords: Any) -> Any:
        gates = {name: keywords[name].contiguous() for name in ("a", "b", "g", "beta") if name in keywords}
        return function(*(token.contiguous() for token in tokens), **keywords | gates)

    return copied
