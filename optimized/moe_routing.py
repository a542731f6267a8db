"""Which experts each token goes to, and with what weights: one kernel, a token (on a GPU) a program.

The score is in float32, and the order is exactly that of the scores: see `optimized.moe_routing_kernels`. Weights that are
divided by a sum are computed relative to the largest, so logits far from zero lose no digits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from . import checks
from .moe_routing_kernels import routing_kernel

METHODS = (
    "default",
    "renormalize",
    "deepseek_v3",
    "llama4",
    "renormalize_naive",
    "top_k",
    "sigmoid_renorm",
    "minimax2",
    "sigmoid",
    "top_k_sigmoid",
)
_SCALED = ("deepseek_v3", "minimax2")
#: Methods whose score is the sigmoid of the logit, not the logit; it matters only where something is added to it.
_SIGMOID_SCORES = ("deepseek_v3", "sigmoid_renorm", "minimax2", "sigmoid")
#: What a method's weights are, in the words of `moe_routing_kernels.weigh`.
_WEIGHTS = {
    "default": "softmax_of_all",
    "renormalize": "softmax_of_chosen",
    "renormalize_naive": "softmax_of_all_over_sum",
    "top_k": "logits",
    "llama4": "sigmoid",
    "sigmoid": "sigmoid",
    "top_k_sigmoid": "sigmoid",
    "sigmoid_renorm": "sigmoid_over_sum",
    "deepseek_v3": "sigmoid_over_sum",
    "minimax2": "sigmoid_over_sum_and_epsilon",
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def moe_routing(
    logits: torch.Tensor,
    *,
    top_k: int,
    method: str,
    bias: torch.Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scaling: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and weights of each token, the largest score first, the lower id first where two are equal.

    Scores and weights of each method are those of `references.moe`. Scores are compared, and weights computed, in float32.

    Args:
        logits: [T, E], float32, float16 or bfloat16, any strides.
        top_k: k, 1 to E; 1 for "llama4"; no more than the kept groups have for "deepseek_v3".
        method: one of `METHODS`.
        bias: [E] or None, float32, float16 or bfloat16; added to the score for the choice alone.
        n_group, topk_group: for "deepseek_v3", how many groups of neighbours, and how many of them are kept; 1 for others.
        scaling: for "deepseek_v3" and "minimax2", a factor of all weights; 1 for others.

    Returns:
        `(expert_ids, weights)`: int32 [T, k], distinct and in range whatever the logits are, and float32 [T, k]. A NaN
        counts as -inf for the choice; a weight that is computed from a NaN is NaN.

    Raises:
        ValueError: wrong shape, dtype, device, method, k, groups or scaling.
    """
    check(logits, top_k, method, bias, n_group, topk_group, scaling)
    tokens = logits.shape[0]
    expert_ids = torch.empty((tokens, top_k), dtype=torch.int32, device=logits.device)
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=logits.device)
    if tokens == 0:
        return expert_ids, weights
    arguments = kernel_arguments(logits, top_k, method, bias, n_group, topk_group, scaling)
    # The interpreter pays per operation. On a GPU a token fits a warp, whose threads exchange their best without waiting.
    block = 32 if logits.device.type == "cpu" else 1
    with torch.cuda.device_of(logits):
        routing_kernel[(triton.cdiv(tokens, block),)](
            expert_ids=expert_ids,
            weights=weights,
            tokens=tokens,
            BLOCK_T=block,
            num_warps=max(1, min(8, arguments["GROUPS"] * arguments["SIZE"] // 512)),
            **arguments,
        )
    return expert_ids, weights


def kernel_arguments(
    logits: torch.Tensor,
    top_k: int,
    method: str,
    bias: torch.Tensor | None,
    n_group: int,
    topk_group: int,
    scaling: float,
) -> dict[str, Any]:
    """What every kernel that routes takes, by name: the arguments of a choice that was checked."""
    grouped = topk_group < n_group
    groups = n_group if grouped else 1
    group_size = logits.shape[1] // groups
    return {
        "logits": logits,
        "bias": logits if bias is None else bias,
        "group_size": group_size,
        "n_group": groups,
        "topk_group": topk_group if grouped else 1,
        "top_k": top_k,
        "scaling": float(scaling),
        "stride_lt": logits.stride(0),
        "stride_le": logits.stride(1),
        "stride_b": 0 if bias is None else bias.stride(0),
        "GROUPS": triton.next_power_of_2(groups),
        "SIZE": triton.next_power_of_2(group_size),
        "PLACES": triton.next_power_of_2(top_k),
        "SQUASH": bias is not None and method in _SIGMOID_SCORES,
        "HAS_BIAS": bias is not None,
        "GROUPED": grouped,
        "WEIGHTS": _WEIGHTS[method],
    }


def check(
    logits: torch.Tensor,
    top_k: int,
    method: str,
    bias: torch.Tensor | None,
    n_group: int,
    topk_group: int,
    scaling: float,
    *,
    name: str = "logits",
) -> None:
    """Raise a ValueError for what cannot be; no value is read."""
    dims: dict[str, int] = {}
    checks.check_tensor(name, logits, shape=("T", "E"), dtypes=_FLOATS, dims=dims)
    if bias is not None:
        checks.check_tensor("bias", bias, shape=("E",), dtypes=_FLOATS, device=logits.device, dims=dims)
    checks.check_runnable(name, logits)
    experts = dims["E"]
    if method not in METHODS:
        raise checks.fail("method", repr(method), f"one of {', '.join(METHODS)}", "other ways to route are not known")
    checks.check_int("top_k", top_k, 1)
    checks.check_int("n_group", n_group, 1)
    checks.check_int("topk_group", topk_group, 1)
    if isinstance(scaling, bool) or not isinstance(scaling, (int, float)):
        raise checks.fail("scaling", f"{type(scaling).__name__} {scaling!r}", "a float", "pass a plain Python number")
    if top_k > experts:
        raise checks.fail("top_k", top_k, f"at most {experts}", "there are no more experts")
    if method == "llama4" and top_k != 1:
        raise checks.fail("top_k", top_k, "1", "'llama4' chooses one expert")
    if method not in _SCALED and scaling != 1.0:
        raise checks.fail("scaling", scaling, "1.0", f"{method!r} has no scaling")
    if method != "deepseek_v3":
        for name, got in (("n_group", n_group), ("topk_group", topk_group)):
            if got != 1:
                raise checks.fail(name, got, "1", f"{method!r} has no groups")
        return
    if experts % n_group:
        raise checks.fail("n_group", n_group, f"a divisor of {experts}", "groups have equally many experts")
    if topk_group > n_group:
        raise checks.fail("topk_group", topk_group, f"at most {n_group}", "there are no more groups")
    if top_k > topk_group * (experts // n_group):
        available = topk_group * (experts // n_group)
        raise checks.fail("top_k", top_k, f"at most {available}", "there are no more experts in the kept groups")
