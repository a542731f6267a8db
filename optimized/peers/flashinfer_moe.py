"""FlashInfer's mixtures of experts behind our contract (read in 0.7.2: `flashinfer/fused_moe/core.py` and its launchers).

Two backends, and `moe` takes the one that this GPU has: `cutlass_fused_moe` (compute capability 9.0 and newer; compiled at
first use, many minutes on many cores, unless a module built beforehand lies in `flashinfer/data/aot`) and
`trtllm_bf16_moe` (10.x, from kernels that come built). What they do differently, and what is done about it here:

- both: the first half of the first matrix is up, the second gate; the numbers of routing methods are theirs (`routing_methods`);
- CUTLASS: Hd and I are multiples of 8 elements (weights are filled up with zeros, once); under expert parallelism the experts
  that are here are one of equal parts, otherwise ids of others are replaced by one that is out of range, which it
  leaves out. It adds up what the experts return inside the second product (`use_fused_finalize`), with atomics and
  so in another order each time; that is a subject of its own, which promises no bits;
- TRTLLM: weights in the order of `trtllm_layout`; I and Hd are multiples of 128, others go to CUTLASS as TensorRT-LLM
  does it; weights of experts are rounded to bfloat16, and travel in one 32-bit number with the id (`packed`). It can route
  too, with rules for ties and NaN of its own: `trtllm_fused_routing_moe`, for the methods and the arguments that it has;
  what it has not is routed here.

The backend functions are parameters (`run`): a twin that reads the same arguments takes their place where they cannot run.
Prepared weights take as much memory as the weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from optimized.moe_routing import moe_routing

from . import experts, trtllm_layout
from .prepared import Preparations
from .routing_methods import flashinfer_number

#: Elements of bfloat16 in the 16 bytes that CUTLASS loads at once.
CUTLASS_STEP = 8
#: What the routing kernels are compiled for (`trtllm_fused_moe_routing_runner.cu`).
MOST_GROUPED_TOP_K, MOST_KEPT_GROUPS = 22, 4
#: What those of grouped methods refuse: more groups, more experts in one, numbers of experts that are no multiples
#: (`trtllm_fused_moe_routing_deepseek.cu`).
MOST_GROUPS, MOST_OF_A_GROUP, GROUPED_STEP = 8, 32, 4
#: Methods whose score their routing kernels add a bias to.
BIASED = ("deepseek_v3", "minimax2")

PREPARED = Preparations()

Run = Callable[..., Any]


def moe(
    x: torch.Tensor, router_logits: torch.Tensor, w_gate_up: torch.Tensor, w_down: torch.Tensor, **routing: Any
) -> torch.Tensor:
    """TRTLLM where this GPU has it, CUTLASS otherwise."""
    takes_trtllm = x.is_cuda and torch.cuda.get_device_capability(x.device)[0] == 10
    function = trtllm_moe if takes_trtllm else cutlass_moe
    return function(x, router_logits, w_gate_up, w_down, **routing)


def cutlass_moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    *,
    expert_offset: int = 0,
    fused_finalize: bool = False,
    tactics: tuple[int, int] | None = None,
    run: Run | None = None,
    **routing: Any,
) -> torch.Tensor:
    """`fused_finalize`: the faster sum, whose order differs from run to run. `tactics`: configurations of the two products, by
    their numbers in the library's list; None: what it has tuned to, or its default. `run`: `cutlass_fused_moe`, or its twin.
    """
    ids, weights = experts.routed(x, router_logits, w_gate_up, w_down, expert_offset, **routing)
    if x.shape[0] == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    local, total, hidden = w_down.shape[0], router_logits.shape[1], x.shape[1]
    first, second = _up_first(w_gate_up, w_down)
    parallel = {"ep_size": 1, "ep_rank": 0}
    if total % local == 0 and expert_offset % local == 0:
        parallel = {"ep_size": total // local, "ep_rank": expert_offset // local}
    else:
        ids = experts.local_ids(ids, expert_offset, local, local)
    y = (run or _library().cutlass_fused_moe)(
        experts.padded_tokens(x, first.shape[2]),
        ids.contiguous(),
        weights.contiguous(),
        first,
        second,
        x.dtype,
        quant_scales=[],
        use_fused_finalize=fused_finalize,
        **parallel,
        **({} if tactics is None else {"profile_ids": list(tactics)}),
    )
    return _first(y)[:, :hidden].contiguous()


def cutlass_fused_finalize_moe(
    x: torch.Tensor, router_logits: torch.Tensor, w_gate_up: torch.Tensor, w_down: torch.Tensor, **routing: Any
) -> torch.Tensor:
    """As the library is by default: sums by atomics."""
    return cutlass_moe(x, router_logits, w_gate_up, w_down, **routing, fused_finalize=True)


def trtllm_moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    *,
    expert_offset: int = 0,
    run: Run | None = None,
    fallback: Run | None = cutlass_moe,
    **routing: Any,
) -> torch.Tensor:
    """Routed here. `run`: `trtllm_bf16_routed_moe`, or its twin. `fallback`: takes what is not aligned; None: filled up."""
    experts.check(x, router_logits, w_gate_up, w_down, expert_offset)
    if fallback is not None and not trtllm_layout.aligned(w_down.shape[1], w_down.shape[2]):
        return fallback(x, router_logits, w_gate_up, w_down, **routing, expert_offset=expert_offset)
    ids, weights = moe_routing(router_logits, **routing)
    return _trtllm(
        run or _library().trtllm_bf16_routed_moe,
        (packed(ids, weights),),
        x,
        router_logits.shape[1],
        w_gate_up,
        w_down,
        expert_offset,
        top_k=ids.shape[1],
        n_group=None,
        topk_group=None,
        # Nothing is left to be done with the weights that it is given.
        routing_method_type=flashinfer_number("renormalize"),
    )


def trtllm_fused_routing_moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    *,
    top_k: int,
    method: str,
    bias: torch.Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scaling: float = 1.0,
    expert_offset: int = 0,
    run: Run | None = None,
    run_routed: Run | None = None,
    fallback: Run | None = cutlass_moe,
) -> torch.Tensor:
    """Routed by the library where it has such a routing. `run`: `trtllm_bf16_moe`, or its twin; the rest as `trtllm_moe`."""
    routing: dict[str, Any] = {
        "top_k": top_k,
        "method": method,
        "bias": bias,
        "n_group": n_group,
        "topk_group": topk_group,
        "scaling": scaling,
    }
    unaligned = fallback is not None and not trtllm_layout.aligned(w_down.shape[1], w_down.shape[2])
    if (
        unaligned
        or not _routes_groups(router_logits.shape[1], top_k, n_group, topk_group)
        or (bias is not None and method not in BIASED)
    ):
        return trtllm_moe(
            x,
            router_logits,
            w_gate_up,
            w_down,
            **routing,
            expert_offset=expert_offset,
            run=run_routed,
            fallback=fallback,
        )
    experts.check(x, router_logits, w_gate_up, w_down, expert_offset)
    # Its routing kernels read float32 and bfloat16.
    logits = router_logits if router_logits.dtype == torch.bfloat16 else router_logits.float()
    if bias is not None and bias.dtype != torch.bfloat16:
        bias = bias.float()
    return _trtllm(
        run or _library().trtllm_bf16_moe,
        (logits.contiguous(), None if bias is None else bias.contiguous()),
        x,
        router_logits.shape[1],
        w_gate_up,
        w_down,
        expert_offset,
        top_k=top_k,
        n_group=n_group if n_group > 1 else None,
        topk_group=topk_group if n_group > 1 else None,
        routed_scaling_factor=scaling if method in BIASED else None,
        routing_method_type=flashinfer_number(method),
    )


def _routes_groups(count: int, top_k: int, n_group: int, topk_group: int) -> bool:
    """Whether the library's routing kernels take so many groups of so many experts; one group always."""
    return n_group == 1 or (
        top_k <= MOST_GROUPED_TOP_K
        and topk_group <= MOST_KEPT_GROUPS
        and n_group <= MOST_GROUPS
        and count // n_group <= MOST_OF_A_GROUP
        and count % GROUPED_STEP == 0
    )


def packed(expert_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """int32 [T, k]: the id in the upper 16 bits, the weight's bfloat16 in the lower.

    The bits of a negative weight are a negative int16; widened as they are, they would fill the upper half with ones.

    Raises:
        ValueError: never for values, which are not read; ids are below 2^15 because there are no more experts.
    """
    bits = weights.bfloat16().view(torch.int16).int() & 0xFFFF
    return ((expert_ids.int() << 16) | bits).contiguous()


# Tiles, and with them the order of a sum, depend on the number of tokens; but not on the run, unless atomics add up.
_NEEDS: dict[str, Any] = {
    "devices": ("cuda",),
    "dtypes": ("bfloat16",),
    "bitwise": False,
    "library": "flashinfer>=0.7",
    "products_rounded": True,
    "keeps_weights": True,
}
_CUTLASS: dict[str, Any] = {**_NEEDS, "min_capability": (9, 0)}
_TRTLLM: dict[str, Any] = {
    **_NEEDS,
    "min_capability": (10, 0),
    "max_capability": (10, 9),
    "weights_rounded": "bfloat16",
}
moe.sluicegate = {**_CUTLASS, "weights_rounded": "bfloat16"}  # type: ignore[attr-defined]
cutlass_moe.sluicegate = _CUTLASS  # type: ignore[attr-defined]
cutlass_fused_finalize_moe.sluicegate = {**_CUTLASS, "repeatable": False}  # type: ignore[attr-defined]
trtllm_moe.sluicegate = _TRTLLM  # type: ignore[attr-defined]
trtllm_fused_routing_moe.sluicegate = _TRTLLM  # type: ignore[attr-defined]


def _trtllm(
    run: Run,
    routed: tuple[torch.Tensor | None, ...],
    x: torch.Tensor,
    num_experts: int,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
    expert_offset: int,
    **routing: Any,
) -> torch.Tensor:
    if x.shape[0] == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    if num_experts >= 2**15:
        raise ValueError(f"router_logits: got {num_experts} experts, expected fewer than 2^15; ids travel in 16 bits")
    first, second = trtllm_layout.prepared(w_gate_up, w_down)
    y = run(
        *routed,
        hidden_states=experts.padded_tokens(x, second.shape[2]),
        gemm1_weights=first,
        gemm2_weights=second,
        num_experts=num_experts,
        intermediate_size=second.shape[1] * second.shape[3],
        local_expert_offset=expert_offset,
        local_num_experts=w_down.shape[0],
        use_shuffled_weight=True,
        weight_layout=2,
        **routing,
    )
    return _first(y)[:, : x.shape[1]].contiguous()


def _up_first(w_gate_up: torch.Tensor, w_down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[El, 2I, Hd] with up first and [El, Hd, I], dense, sizes multiples of what CUTLASS loads at once; remembered."""

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        gate_up, down = trtllm_layout.padded(w_gate_up, w_down, CUTLASS_STEP, CUTLASS_STEP)
        gate, up = gate_up.chunk(2, dim=1)
        return torch.cat([up, gate], dim=1), experts.dense(down)

    return PREPARED.get(make, (w_gate_up, w_down), ("cutlass", CUTLASS_STEP))


def _first(result: Any) -> torch.Tensor:
    """Later versions return a list with one tensor where earlier ones return the tensor."""
    tensor: torch.Tensor = result if isinstance(result, torch.Tensor) else result[0]
    return tensor


def _library() -> ModuleType:
    return importlib.import_module("flashinfer.fused_moe")
