"""The references as subjects: right, in the inputs' dtypes, and without a promise about bits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import references


def conv_prefill(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return references.conv_prefill(x, weight, **rest)


def conv_update(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return references.conv_update(x, weight, **rest)


def gdn_prefill(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    return references.gdn_prefill(q, k, v, **rest)


def gdn_decode(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
    return references.gdn_decode(q, k, v, **rest)


def gated_rmsnorm(x: Tensor, z: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    return references.gated_rmsnorm(x, z, weight, **rest)


def first_row_reaches_the_last(x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
    """Wrong: sequences are one sequence."""
    mixed = x.clone()
    mixed[-1:] += x[:1]
    return references.conv_prefill(mixed, weight, **rest)


_NAMES = ("conv_prefill", "conv_update", "gdn_prefill", "gdn_decode", "gated_rmsnorm", "first_row_reaches_the_last")
for _name in _NAMES:
    globals()[_name].sluicegate = {"bitwise": False}
