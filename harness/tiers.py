"""Tiers: how many cases each operator gets where, and which cells must have run.

The numbers are cases of one operator over all its cells of a tier. They are profiles, not flags scattered over tests:
quick answers an engineer in about a minute, premerge is what a CI job requires, nightly looks further.
"""

from __future__ import annotations

from dataclasses import dataclass

TIERS = ("quick", "premerge", "nightly")

#: tier -> device -> operator -> cases.
CASES: dict[str, dict[str, dict[str, int]]] = {
    "quick": {
        "cpu": {
            "chunk_metadata": 1500,
            "step_metadata": 400,
            "conv_prefill": 400,
            "conv_update": 350,
            "gdn_decode": 500,
            "gdn_prefill": 250,
            "gated_rmsnorm": 200,
            "moe_routing": 800,
            "moe": 200,
            "engine": 800,
        },
        "cuda": {
            "chunk_metadata": 600,
            "step_metadata": 600,
            "conv_prefill": 600,
            "conv_update": 400,
            "gdn_decode": 600,
            "gdn_prefill": 600,
            "gated_rmsnorm": 300,
            "moe_routing": 260,
            "moe": 300,
            "engine": 250,
        },
    },
    "premerge": {
        "cpu": {
            "chunk_metadata": 9600,
            "step_metadata": 1000,
            "conv_prefill": 550,
            "conv_update": 800,
            "gdn_decode": 900,
            "gdn_prefill": 450,
            "gated_rmsnorm": 350,
            "moe_routing": 1600,
            "moe": 300,
            "engine": 2500,
        },
        "cuda": {
            "chunk_metadata": 2200,
            "step_metadata": 1100,
            "conv_prefill": 1500,
            "conv_update": 1000,
            "gdn_decode": 1500,
            "gdn_prefill": 1500,
            "gated_rmsnorm": 800,
            "moe_routing": 1000,
            "moe": 1000,
            "engine": 900,
        },
    },
    "nightly": {
        "cpu": {
            "chunk_metadata": 60000,
            "step_metadata": 5000,
            "conv_prefill": 4000,
            "conv_update": 3000,
            "gdn_decode": 5000,
            "gdn_prefill": 3000,
            "gated_rmsnorm": 2000,
            "moe_routing": 10000,
            "moe": 3000,
            "engine": 20000,
        },
        "cuda": {
            "chunk_metadata": 20000,
            "step_metadata": 10000,
            "conv_prefill": 20000,
            "conv_update": 12000,
            "gdn_decode": 20000,
            "gdn_prefill": 20000,
            "gated_rmsnorm": 8000,
            "moe_routing": 12000,
            "moe": 10000,
            "engine": 6000,
        },
    },
}

#: A property with a fixed number of examples runs in the quick tier only if it is cheap.
NOT_QUICK = ("cold_equals_warm",)


#: Hypothesis begins with the plainest case of all: fewer than this would hardly look further.
MINIMUM = 6


@dataclass(frozen=True)
class Share:
    """A cell's claim on its operator's cases: a weight, or a fixed number."""

    weight: float
    fixed: int | None


def distribute(total: int, shares: list[Share]) -> list[int]:
    """Cases for each cell: fixed numbers first, the rest by weight, at least six each.

    The minimum may make the sum larger than ``total``, never smaller.
    """
    weights = sum(s.weight for s in shares if s.fixed is None)
    rest = max(0, total - sum(s.fixed or 0 for s in shares))
    out = []
    for share in shares:
        if share.fixed is not None:
            out.append(share.fixed)
        else:
            out.append(max(MINIMUM, -(-int(rest * share.weight) // max(1, round(weights)))) if weights else MINIMUM)
    missing = total - sum(out)
    heaviest = max(
        range(len(shares)), key=lambda i: shares[i].weight if shares[i].fixed is None else -1.0, default=None
    )
    if missing > 0 and heaviest is not None and shares[heaviest].fixed is None:
        out[heaviest] += missing
    return out
