"""Mixture of experts: which experts a token goes to, and what they make of it.

A token x with router logits l over E experts goes to the k of them with the largest *score*, the largest first, the lower
id first where two are equal. An optional bias b of each expert is added to the score; it takes part in the choice alone.
With σ the sigmoid and C the k chosen experts, the methods are

    method              score        weight of the expert e of C
    default             l            exp(l_e) / Σ over all experts of exp(l)          softmax
    renormalize         l            exp(l_e) / Σ over C of exp(l)                    softmax of the chosen
    renormalize_naive   l            the softmax over all, divided by its sum over C  the same number, in two steps
    deepseek_v3         σ(l)         scaling σ(l_e) / Σ over C of σ(l)                chosen within groups, see below
    llama4              l            σ(l_e), k = 1
    top_k               l            l_e itself
    sigmoid_renorm      σ(l)         σ(l_e) / Σ over C of σ(l)
    minimax2            σ(l)         scaling σ(l_e) / (1e-20 + Σ over C of σ(l))
    sigmoid             σ(l)         σ(l_e)
    top_k_sigmoid       l            σ(l_e)

"deepseek_v3" cuts the experts into `n_group` equal groups of neighbours, scores a group by the sum of its two largest scores
(bias included; of its one, where a group has no more), and chooses among the experts of the `topk_group` best groups alone,
the lower group first where two are equal (DeepSeek-AI: DeepSeek-V3 Technical Report, 2024, section 2.1.2; the groups as in
its published code).

Two rules that make the choice one thing on every device. σ grows with l, so without a bias the order is that of the
logits: a sigmoid that rounds to 1 creates no ties. And where the score is NaN the expert counts as one whose score is −∞: it
comes after all others, in the order of ids, and ids are distinct and in range whatever the logits are. Weights follow
from the logits as they are; what is computed from a NaN is NaN.

Each chosen expert is a SwiGLU MLP,

    y = sum_j w_j W_down[e_j] (silu(W_gate[e_j] x) * (W_up[e_j] x))

(Shazeer et al.: Outrageously Large Neural Networks, 2017; Shazeer: GLU Variants Improve Transformer, 2020). The shared
expert of Qwen3-Next is not part of it.
"""

import torch
from torch import Tensor

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

#: Methods whose score is the sigmoid of the logit; the score of the others is the logit.
SIGMOID_SCORES = ("deepseek_v3", "sigmoid_renorm", "minimax2", "sigmoid")
SCALED = ("deepseek_v3", "minimax2")


def moe_routing(
    logits: Tensor,
    *,
    top_k: int,
    method: str,
    bias: Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scaling: float = 1.0,
    compute_dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Experts and weights of each token, the largest score first.

    Args:
        logits: [T, E], any float dtype.
        top_k: k, 1 to E; 1 for "llama4"; no more than the kept groups have for "deepseek_v3".
        method: one of `METHODS`, see above.
        bias: [E] or None, any float dtype; added to the score for the choice alone, not for the weights.
        n_group, topk_group: for "deepseek_v3", how many groups there are and how many are kept; E is a multiple of
            `n_group`.
        scaling: for "deepseek_v3" and "minimax2", a factor of all weights.
        compute_dtype: of the scores, their comparison and the weights.

    Returns:
        `(expert_ids, weights)`: int32 [T, k] and float32 [T, k] (float64 if that is the compute dtype).

    Raises:
        ValueError: an unknown method, k out of range, a bias of another shape, groups that do not divide the experts, or
            groups or a scaling for a method that has none.
    """
    experts = logits.shape[1]
    _check(experts, top_k, method, bias, n_group, topk_group, scaling)
    wide = logits.to(compute_dtype)
    score = wide
    if method in SIGMOID_SCORES and bias is not None:
        score = torch.sigmoid(wide)
    if bias is not None:
        score = score + bias.to(compute_dtype)
    order = _descending(score)
    if method == "deepseek_v3":
        squashed = torch.sigmoid(wide) if bias is None else score
        kept = _kept_groups(squashed, n_group, topk_group).gather(1, order)
        # Those of kept groups come first; a stable sort leaves them, and the others, in the order they have.
        order = order.gather(1, torch.sort(kept.int(), dim=-1, descending=True, stable=True).indices)
    ids = order[:, :top_k]
    weights = _weights(wide, ids, method, scaling)
    return ids.int(), weights if compute_dtype == torch.float64 else weights.float()


def _descending(score: Tensor) -> Tensor:
    """Ids by score [..., N], the largest first, the lower id first where two are equal; NaN counts as -inf."""
    known = score.masked_fill(score.isnan(), -torch.inf)
    # A stable sort keeps the lower of two equal ids in front; torch.topk promises no order.
    return torch.sort(known, dim=-1, descending=True, stable=True).indices


def _kept_groups(score: Tensor, n_group: int, topk_group: int) -> Tensor:
    """bool [T, E]: whether an expert with this score [T, E] is in one of the `topk_group` best groups."""
    tokens, experts = score.shape
    known = score.masked_fill(score.isnan(), -torch.inf)
    grouped = known.reshape(tokens, n_group, experts // n_group)
    best = torch.sort(grouped, dim=-1, descending=True).values[:, :, :2]
    chosen = _descending(best.sum(-1))[:, :topk_group]
    kept = torch.zeros(tokens, n_group, dtype=torch.bool, device=score.device).scatter(1, chosen, True)
    return kept.repeat_interleave(experts // n_group, dim=1)


def _weights(logits: Tensor, ids: Tensor, method: str, scaling: float) -> Tensor:
    """Weights [T, k] of the chosen experts, from their definitions above."""
    chosen = logits.gather(1, ids)
    if method == "top_k":
        return chosen
    if method == "default":
        return torch.softmax(logits, dim=-1).gather(1, ids)
    if method == "renormalize":
        return torch.softmax(chosen, dim=-1)
    if method == "renormalize_naive":
        of_all = torch.softmax(logits, dim=-1).gather(1, ids)
        return of_all / of_all.sum(-1, keepdim=True)
    squashed = torch.sigmoid(chosen)
    if method in ("llama4", "sigmoid", "top_k_sigmoid"):
        return squashed
    total = squashed.sum(-1, keepdim=True)
    if method == "sigmoid_renorm":
        return squashed / total
    return scaling * squashed / (total + 1e-20 if method == "minimax2" else total)


def _check(
    experts: int, top_k: int, method: str, bias: Tensor | None, n_group: int, topk_group: int, scaling: float
) -> None:
    """Raise a ValueError for what `moe_routing` cannot do."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k: expected 1 to {experts}, the number of experts, got {top_k}")
    if method == "llama4" and top_k != 1:
        raise ValueError(f"top_k: expected 1, as 'llama4' chooses one expert, got {top_k}")
    if bias is not None and bias.shape != (experts,):
        raise ValueError(f"bias: expected shape [{experts}], one number an expert, got {list(bias.shape)}")
    if method not in SCALED and scaling != 1.0:
        raise ValueError(f"scaling: expected 1.0, as {method!r} has none, got {scaling}")
    if method != "deepseek_v3":
        if (n_group, topk_group) != (1, 1):
            name, got = ("n_group", n_group) if n_group != 1 else ("topk_group", topk_group)
            raise ValueError(f"{name}: expected 1, as {method!r} has no groups, got {got}")
        return
    if n_group < 1 or experts % n_group:
        raise ValueError(f"n_group: expected a divisor of the {experts} experts, got {n_group}")
    if not 1 <= topk_group <= n_group:
        raise ValueError(f"topk_group: expected 1 to {n_group}, the number of groups, got {topk_group}")
    if top_k > topk_group * (experts // n_group):
        available = topk_group * (experts // n_group)
        raise ValueError(f"top_k: expected 1 to {available}, the experts of the kept groups, got {top_k}")


def moe_experts(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    expert_offset: int = 0,
    compute_dtype: torch.dtype = torch.float64,
    operand_dtype: torch.dtype | None = None,
) -> Tensor:
    """Send each token through the experts that it was given and add up what they return.

    The weights may be those of some of all experts, as under expert parallelism: with `El` of them here, ids from
    `expert_offset` up to and without `expert_offset + El` are computed, and all others, -1 among them, contribute nothing,
    whatever their weights are.

    Args:
        x: [T, Hd], the tokens.
        expert_ids: int32 [T, k], ids among all experts.
        weights: [T, k], float32.
        w_gate_up: [El, 2I, Hd], an expert's gate rows first, then its up rows.
        w_down: [El, Hd, I].
        expert_offset: the id of the first of these experts.
        compute_dtype: everything between the inputs and the one rounding of y.
        operand_dtype: what goes into the second product is rounded to it once, as a kernel on matrix units does; None does
            not round.

    Returns:
        y [T, Hd] in the dtype of `x`; zero where no expert contributes.
    """
    y = torch.zeros(x.shape, dtype=compute_dtype, device=x.device)
    local = expert_ids.long() - expert_offset
    here = local[(local >= 0) & (local < w_gate_up.shape[0])]
    for expert in here.unique().tolist():
        for place in range(expert_ids.shape[1]):
            # A place at a time: no token occurs twice.
            token = torch.nonzero(local[:, place] == expert).squeeze(1)
            if token.numel() == 0:
                continue
            gate, up = (x[token].to(compute_dtype) @ w_gate_up[expert].to(compute_dtype).T).chunk(2, dim=-1)
            inner = gate * torch.sigmoid(gate) * up
            if operand_dtype is not None:
                inner = inner.to(operand_dtype).to(compute_dtype)
            out = inner @ w_down[expert].to(compute_dtype).T
            y[token] += weights[token, place, None].to(compute_dtype) * out
    return y.to(x.dtype)


def moe(
    x: Tensor,
    router_logits: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    top_k: int,
    method: str,
    bias: Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scaling: float = 1.0,
    expert_offset: int = 0,
    compute_dtype: torch.dtype = torch.float64,
    operand_dtype: torch.dtype | None = None,
) -> Tensor:
    """Route each token by its logits, send it through its experts and add up what they return.

    Args:
        x: [T, Hd], the tokens.
        router_logits: [T, E], over all experts, also where the weights are those of some.
        w_gate_up: [El, 2I, Hd], an expert's gate rows first, then its up rows.
        w_down: [El, Hd, I].
        top_k, method, bias, n_group, topk_group, scaling: as in `moe_routing`.
        expert_offset: as in `moe_experts`; 0 where E = El.
        compute_dtype: everything between the inputs and the one rounding of y, the routing weights among it.
        operand_dtype: as in `moe_experts`.

    Returns:
        y [T, Hd] in the dtype of `x`.

    Raises:
        ValueError: as `moe_routing`; weights of experts that are not among the E.
    """
    experts, here = router_logits.shape[1], w_down.shape[0]
    if not 0 <= expert_offset <= experts - here:
        raise ValueError(
            f"expert_offset: expected 0 to {experts - here}, as {here} of {experts} are here, got {expert_offset}"
        )
    ids, weights = moe_routing(
        router_logits,
        top_k=top_k,
        method=method,
        bias=bias,
        n_group=n_group,
        topk_group=topk_group,
        scaling=scaling,
        compute_dtype=compute_dtype,
    )
    return moe_experts(
        x,
        ids,
        weights,
        w_gate_up,
        w_down,
        expert_offset=expert_offset,
        compute_dtype=compute_dtype,
        operand_dtype=operand_dtype,
    )
