"""Stand-ins for FlashInfer's mixtures of experts: the arguments of the real functions, computed in torch from first principles.

They read exactly what the real ones are given, the prepared weights and the packed ids among it, so that an adapter's whole
preparation is judged on a machine where the real ones cannot run (FlashInfer 0.7.2, `flashinfer/fused_moe/core.py`). They
share no code with the preparation: a kernel does not put rows back in order, it computes them in the order in which they lie,
and the twins do so too and reorder what comes out. What the real functions refuse, they refuse.

`moe` and its siblings are the adapters of `flashinfer_moe` around them: a subject that says whether the preparation is right.
"""

from __future__ import annotations

from typing import Any

import torch

from . import flashinfer_moe

SWIGLU = 3
BLOCK_MAJOR_K = 2

Tensor = torch.Tensor


def trtllm_bf16_routed_moe(
    topk_ids: Tensor | tuple[Tensor, Tensor],
    hidden_states: Tensor,
    gemm1_weights: Tensor,
    gemm2_weights: Tensor,
    num_experts: int,
    top_k: int,
    n_group: int | None,
    topk_group: int | None,
    intermediate_size: int,
    local_expert_offset: int,
    local_num_experts: int,
    routed_scaling_factor: float | None = None,
    routing_method_type: int = 0,
    use_shuffled_weight: bool = True,
    weight_layout: int = BLOCK_MAJOR_K,
    do_finalize: bool = True,
    enable_pdl: bool = True,
    gemm1_lora_delta: Tensor | None = None,
    tune_max_num_tokens: int = 8192,
    activation_type: int = SWIGLU,
) -> Tensor:
    """`topk_ids`: int32 [T, k], the id in the upper half and the bits of a bfloat16 in the lower; or ids and weights apart.

    Raises:
        ValueError: what the real function refuses, and what this one does not compute.
    """
    if isinstance(topk_ids, tuple):
        ids, weights = topk_ids
    else:
        ids = topk_ids >> 16
        # The lower half as it is: a signed 16-bit number whose bits are those of a bfloat16.
        lower = topk_ids & 0xFFFF
        weights = torch.where(lower >= 2**15, lower - 2**16, lower).to(torch.int16).view(torch.bfloat16)
    if ids.dtype != torch.int32 or ids.shape != (hidden_states.shape[0], top_k):
        raise ValueError(f"topk_ids: got {ids.dtype} {list(ids.shape)}, expected int32 [T, {top_k}]")
    _check(hidden_states, gemm1_weights, gemm2_weights, intermediate_size, num_experts)
    _check_part(local_expert_offset, local_num_experts, num_experts, gemm1_weights)
    if (use_shuffled_weight, weight_layout, do_finalize, activation_type) != (True, BLOCK_MAJOR_K, True, SWIGLU):
        raise ValueError("use_shuffled_weight, weight_layout, do_finalize, activation_type: only True, 2, True, 3 here")
    if gemm1_lora_delta is not None:
        raise ValueError("gemm1_lora_delta: got a tensor, expected None; it is not computed here")
    return _computed(hidden_states, ids, weights.float(), gemm1_weights, gemm2_weights, local_expert_offset)


def trtllm_bf16_moe(
    routing_logits: Tensor,
    routing_bias: Tensor | None,
    hidden_states: Tensor,
    gemm1_weights: Tensor,
    gemm2_weights: Tensor,
    num_experts: int,
    top_k: int,
    n_group: int | None,
    topk_group: int | None,
    intermediate_size: int,
    local_expert_offset: int,
    local_num_experts: int,
    routed_scaling_factor: float | None = None,
    routing_method_type: int = 0,
    use_shuffled_weight: bool = True,
    weight_layout: int = BLOCK_MAJOR_K,
    do_finalize: bool = True,
    enable_pdl: bool = True,
    tune_max_num_tokens: int = 8192,
    activation_type: int = SWIGLU,
    norm_topk_prob: bool = True,
) -> Tensor:
    """Routing by FlashInfer's number of the method; weights are rounded to bfloat16, as its routing kernels return them."""
    if routing_logits.dtype not in (torch.float32, torch.bfloat16) or routing_logits.shape[1] != num_experts:
        raise ValueError(f"routing_logits: got {routing_logits.dtype} {list(routing_logits.shape)}")
    if n_group is not None and n_group > 1:
        _check_groups(num_experts, n_group, topk_group or 1, top_k)
    ids, weights = _routed(
        routing_logits.float(),
        routing_bias,
        top_k,
        routing_method_type,
        n_group or 1,
        topk_group or 1,
        1.0 if routed_scaling_factor is None else routed_scaling_factor,
    )
    return trtllm_bf16_routed_moe(
        (ids.int(), weights.bfloat16()),
        hidden_states,
        gemm1_weights,
        gemm2_weights,
        num_experts,
        top_k,
        n_group,
        topk_group,
        intermediate_size,
        local_expert_offset,
        local_num_experts,
        routed_scaling_factor,
        routing_method_type,
        use_shuffled_weight,
        weight_layout,
        do_finalize,
        enable_pdl,
        None,
        tune_max_num_tokens,
        activation_type,
    )


def cutlass_fused_moe(
    input: Tensor,
    token_selected_experts: Tensor,
    token_final_scales: Tensor,
    fc1_expert_weights: Tensor,
    fc2_expert_weights: Tensor,
    output_dtype: torch.dtype,
    quant_scales: list[Tensor],
    *,
    ep_size: int = 1,
    ep_rank: int = 0,
    use_fused_finalize: bool = True,
) -> Tensor:
    """Up rows first; ids out of this rank's range contribute nothing.

    Raises:
        ValueError: what the real function refuses.
    """
    experts, hidden, intermediate = fc2_expert_weights.shape
    if fc1_expert_weights.shape != (experts, 2 * intermediate, hidden) or input.shape[1] != hidden:
        raise ValueError(
            f"fc1_expert_weights: got {list(fc1_expert_weights.shape)} for {list(fc2_expert_weights.shape)}"
        )
    if hidden % 8 or intermediate % 8:
        raise ValueError(f"fc2_expert_weights: got sizes {hidden} and {intermediate}, expected multiples of 8")
    if token_selected_experts.dtype != torch.int32 or token_final_scales.dtype != torch.float32:
        raise ValueError("token_selected_experts, token_final_scales: expected int32 and float32")
    for name, tensor in (("input", input), ("fc1_expert_weights", fc1_expert_weights)):
        if not tensor.is_contiguous() or tensor.data_ptr() % 16:
            raise ValueError(f"{name}: expected a contiguous tensor at a multiple of 16 bytes")
    y = torch.zeros(input.shape, dtype=torch.float32, device=input.device)
    for local in range(experts):
        up, gate = (input.float() @ fc1_expert_weights[local].float().T).chunk(2, dim=1)
        inner = (up * gate * torch.sigmoid(gate)).to(input.dtype).float()
        asked = token_selected_experts == ep_rank * experts + local
        y += _heard(inner @ fc2_expert_weights[local].float().T, asked, token_final_scales)
    return y.to(output_dtype)


def moe(*tensors: Tensor, **routing: Any) -> Tensor:
    """The adapter of the routed entry around its twin; what is not aligned is filled up, so that all of it is prepared."""
    return flashinfer_moe.trtllm_moe(*tensors, **routing, run=trtllm_bf16_routed_moe, fallback=None)


def fused_routing_moe(*tensors: Tensor, **routing: Any) -> Tensor:
    """The adapter of the entry that routes, around its twin."""
    return flashinfer_moe.trtllm_fused_routing_moe(
        *tensors, **routing, run=trtllm_bf16_moe, run_routed=trtllm_bf16_routed_moe, fallback=None
    )


def cutlass_moe(*tensors: Tensor, **routing: Any) -> Tensor:
    """The adapter of CUTLASS around its twin."""
    return flashinfer_moe.cutlass_moe(*tensors, **routing, run=cutlass_fused_moe)


# Every expert computes every token, one after the other: what a GPU is asked to launch would be no mixture of experts any more.
_TAKES: dict[str, Any] = {"devices": ("cpu",), "dtypes": ("bfloat16",), "bitwise": False, "keeps_weights": True}
moe.sluicegate = {**_TAKES, "weights_rounded": "bfloat16"}  # type: ignore[attr-defined]
fused_routing_moe.sluicegate = {**_TAKES, "weights_rounded": "bfloat16"}  # type: ignore[attr-defined]
cutlass_moe.sluicegate = _TAKES  # type: ignore[attr-defined]


def _check(x: Tensor, first: Tensor, second: Tensor, intermediate: int, num_experts: int) -> None:
    if x.dtype != torch.bfloat16 or first.dtype != torch.bfloat16 or second.dtype != torch.bfloat16:
        raise ValueError(f"hidden_states and weights: got {x.dtype}, {first.dtype}, {second.dtype}, expected bfloat16")
    hidden = x.shape[1]
    if intermediate % 128:
        raise ValueError(f"intermediate_size: got {intermediate}, expected a multiple of 128")
    for name, weights, columns, rows in (
        ("gemm1_weights", first, hidden, 2 * intermediate),
        ("gemm2_weights", second, intermediate, hidden),
    ):
        expected = (weights.shape[0], columns // 64, rows, 64)
        if weights.shape != expected or not weights.is_contiguous():
            raise ValueError(f"{name}: got {list(weights.shape)}, expected contiguous {list(expected)}")


def _check_part(offset: int, local: int, num_experts: int, first: Tensor) -> None:
    if not 0 < local <= num_experts - offset or offset < 0 or first.shape[0] != local:
        raise ValueError(f"local_num_experts: got {local} from {offset} of {num_experts}, weights of {first.shape[0]}")


def _computed(x: Tensor, ids: Tensor, weights: Tensor, first: Tensor, second: Tensor, offset: int) -> Tensor:
    """y in x's dtype: products in float32, what goes from one into the other rounded to x's dtype."""
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    tokens = x.float()
    for local in range(first.shape[0]):
        pairs = _unshuffled(_product(tokens, first[local])).unflatten(1, (-1, 2))
        up, gate = pairs[:, :, 0], pairs[:, :, 1]
        inner = (gate / (1 + torch.exp(-gate)) * up).to(x.dtype).float()
        y += _heard(_unshuffled(_product(inner, second[local])), ids == offset + local, weights)
    return y.to(x.dtype)


def _heard(out: Tensor, asked: Tensor, weights: Tensor) -> Tensor:
    """What an expert returns for all tokens [T, M], weighed where it was asked [T, k]: nobody waits to know which those are."""
    weight = torch.where(asked, weights, 0.0).sum(1, keepdim=True)
    return torch.where(asked.any(1, keepdim=True), weight * out, 0.0)


def _product(rows: Tensor, blocks: Tensor) -> Tensor:
    """[T, K] with a matrix in blocks [K / 64, M, 64] -> [T, M], the columns in the order of the matrix's rows."""
    total = rows.new_zeros(rows.shape[0], blocks.shape[1])
    for number, block in enumerate(blocks):
        total += rows[:, 64 * number : 64 * (number + 1)] @ block.float().T
    return total


def _unshuffled(columns: Tensor) -> Tensor:
    """[T, M]: within 32 columns, what lies at 8 (j mod 4) + j div 4 goes to j."""
    groups = columns.unflatten(1, (-1, 4, 8))
    return groups.transpose(2, 3).reshape(columns.shape)


def _check_groups(num_experts: int, n_group: int, topk_group: int, top_k: int) -> None:
    """What the library's grouped routing refuses (0.7.2, `trtllm_fused_moe_routing_deepseek.cu`)."""
    if n_group > 8 or num_experts // n_group > 32 or num_experts % 4 or topk_group > 4 or top_k > 22:
        raise ValueError(
            f"n_group, topk_group, top_k: got {n_group}, {topk_group}, {top_k} of {num_experts} experts; expected at most 8, 4, 22,"
            " and a multiple of 4 experts, at most 32 in a group"
        )


def _routed(
    logits: Tensor, bias: Tensor | None, top_k: int, number: int, n_group: int, topk_group: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """Ids [T, k] and weights [T, k] by FlashInfer's number, token by token, the lower id first where two are equal."""
    rows = [
        _routed_token(
            values.tolist(), None if bias is None else bias.tolist(), top_k, number, n_group, topk_group, scaling
        )
        for values in logits
    ]
    ids = torch.tensor([list(row) for row in rows], dtype=torch.int32).reshape(-1, top_k)
    weights = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64).reshape(-1, top_k)
    return ids.to(logits.device), weights.to(logits.device)


def _routed_token(
    logits: list[float],
    bias: list[float] | None,
    top_k: int,
    number: int,
    n_group: int,
    topk_group: int,
    scaling: float,
) -> dict[int, float]:
    squashed = torch.tensor(logits, dtype=torch.float64).sigmoid().tolist()
    grouped, biased = number == 2, number in (2, 7)
    score = squashed if biased and bias is not None else logits
    if biased and bias is not None:
        score = [value + more for value, more in zip(score, bias, strict=True)]
    score = [value if value == value else -torch.inf for value in score]
    experts = list(range(len(logits)))
    if grouped and n_group > 1:
        size = len(logits) // n_group
        by_group = score if bias is not None else [value if value == value else -torch.inf for value in squashed]
        best = [sum(sorted(by_group[group * size : (group + 1) * size])[-2:]) for group in range(n_group)]
        kept = sorted(range(n_group), key=lambda group: -best[group])[:topk_group]
        experts = [expert for expert in experts if expert // size in kept]
    chosen = sorted(experts, key=lambda expert: -score[expert])[:top_k]
    if number in (0, 1, 4):
        over = logits if number == 0 else [logits[expert] for expert in chosen]
        log_total = torch.tensor(over, dtype=torch.float64).logsumexp(0)
        return {expert: float((torch.tensor(logits[expert]).double() - log_total).exp()) for expert in chosen}
    if number == 5:
        return {expert: logits[expert] for expert in chosen}
    if number in (3, 8, 9):
        return {expert: squashed[expert] for expert in chosen}
    total = sum(squashed[expert] for expert in chosen) + (0.0 if number == 6 else 1e-20)
    return {expert: scaling * squashed[expert] / total for expert in chosen}
