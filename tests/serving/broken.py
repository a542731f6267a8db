"""Operators with a fault each, which the serving assertion must trace."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import references


def gdn_decode(q: Tensor, k: Tensor, v: Tensor, *, state: Tensor, state_indices: Tensor, **others: Any) -> Tensor:
    """Right for one row; the second takes the decay of its neighbour."""
    gates = {name: others[name].clone() for name in ("a", "b")}
    if len(q) > 1:
        gates["a"][1] = gates["a"][0]
    return references.gdn_decode(q, k, v, state=state, state_indices=state_indices, **others | gates)
