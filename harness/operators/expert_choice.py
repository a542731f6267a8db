"""What the two operators of a mixture of experts share: which expert is chosen by what, and logits to choose by.

Logits are drawn so that every choice is one thing: between two experts there is an exact tie, which goes to the lower id, or
a gap that no float32 arithmetic bridges. Where a score has arithmetic in it (a sigmoid, a bias, a sum over a group), tokens
whose choice rounding could change get other logits (`settled`); what a kernel may make of those is a property's own question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from harness.case import Case
from harness.operators.base import torch_dtype
from harness.strategies import Scale
from references.moe import METHODS, SCALED, SIGMOID_SCORES

#: Of the experts; the first is the plainest. Most are no powers of two, and some are more than a warp or a block has lanes. On a
#: GPU every block of a power of two occurs: a compiler chooses layouts by it, and got those for 16 and 32 wrong.
EXPERTS = {"cpu": (4, 1, 2, 3, 5, 8, 12), "cuda": (4, 1, 2, 3, 8, 12, 30, 60, 64, 128, 160, 256, 384, 512)}
#: The router alone costs next to nothing.
ROUTED_EXPERTS = {"cpu": (4, 1, 2, 3, 6, 17, 40, 60, 128, 300, 512), "cuda": (*EXPERTS["cuda"], 300, 1100)}
#: Experts of a token; 0: all of them, of few.
TOP_K = (2, 1, 3, 4, 8, 10, 0)
MOST_CHOSEN = 16
LOGITS = ("random", "random", "ties", "near ties", "wide", "equal")
LOADS = ("random", "random", "one expert", "idle")
BIASES = (None, None, "small", "large")
SCALINGS = (1.0, 1.0, 2.5)
SOFTMAXES = ("default", "renormalize", "renormalize_naive")
#: Of whose weights the sum is divided out.
RATIOS = ("deepseek_v3", "sigmoid_renorm", "minimax2")
#: Scores of a token closer than this to each other, times 1 + |score|, and not equal, may come in either order: sigmoids of
#: float32 arithmetic differ by a few units of 6e-8.
TIE = 4e-6
#: The largest logits: the sigmoid of the smallest is still a normal float32, so that ratios of them are known. Of a softmax,
#: they may be larger than what float32 has an exponential of.
WIDEST = 60.0
WIDEST_SOFTMAX = 200.0
#: Where logits are weights, results are to fit float16.
WIDEST_WEIGHT = 8.0


def routings(
    scale: Scale, experts: Mapping[str, tuple[int, ...]]
) -> SearchStrategy[tuple[dict[str, int], dict[str, Any]]]:
    """(dims, options) of a case: E and k, and what else `moe_routing` is asked for."""
    return st.builds(
        routing,
        st.sampled_from(experts[scale.name]),
        st.sampled_from(TOP_K),
        # Groups have most that can go wrong, so every fourth case has them.
        st.sampled_from((*METHODS, "deepseek_v3", "deepseek_v3")),
        st.sampled_from(BIASES),
        # The last divisor: groups of one expert, which have no second one.
        st.sampled_from((1, 2, -1, 1, 2, 3, 4, 5, 0)),
        # Where all groups are kept, they choose nothing.
        st.sampled_from((0, 1, 2, 3, 0, 1, 2, None)),
        st.sampled_from(SCALINGS),
    )


def routing(
    experts: int, top_k: int, method: str, bias: str | None, groups: int, kept: int | None, scaling: float
) -> tuple[dict[str, int], dict[str, Any]]:
    """What is drawn, made to fit: k within E and within the kept groups, groups and scaling for methods that have them.

    kept: the groups kept beyond the first, fewer than all; None: all.
    """
    n_group = topk_group = 1
    if method == "deepseek_v3":
        divisors = [n for n in range(1, experts + 1) if experts % n == 0]
        n_group = divisors[groups % len(divisors)]
        topk_group = n_group if kept is None else 1 + kept % max(1, n_group - 1)
    available = topk_group * (experts // n_group)
    chosen = min(top_k or MOST_CHOSEN, available)
    options = {
        "method": method,
        "bias": bias,
        "n_group": n_group,
        "topk_group": topk_group,
        "scaling": scaling if method in SCALED else 1.0,
    }
    return {"E": experts, "k": 1 if method == "llama4" else chosen}, options


def regimes() -> dict[str, SearchStrategy[str]]:
    """Words for how logits are drawn and how evenly they load the experts."""
    return {"logits": st.sampled_from(LOGITS), "load": st.sampled_from(LOADS)}


def check(case: Case) -> None:
    """ValueError for a case that nobody can be asked to route: made while shrinking, it is no case."""
    dims, options = case.dims, case.options
    if options["method"] == "deepseek_v3" and dims["E"] % options["n_group"]:
        raise ValueError(f"n_group: {options['n_group']} groups of {dims['E']} experts")
    if dims["k"] > options["topk_group"] * (dims["E"] // options["n_group"]):
        raise ValueError(f"top_k: {dims['k']} of fewer experts")


def keywords(case: Case) -> dict[str, Any]:
    """Of a call, but for the bias: what the method has, so that a subject is not asked for what it could only refuse."""
    options = case.options
    out: dict[str, Any] = {"top_k": case.dims["k"], "method": options["method"]}
    if options["method"] == "deepseek_v3":
        out |= {"n_group": options["n_group"], "topk_group": options["topk_group"]}
    if options["method"] in SCALED:
        out["scaling"] = options["scaling"]
    return out


def say_options(case: Case) -> str:
    """``deepseek_v3 with bias, 2 of 4 groups``: those that are not plain."""
    options = case.options
    words = [str(options["method"])]
    if options["bias"]:
        words.append(f"a {options['bias']} bias")
    if options["n_group"] > 1:
        words.append(f"{options['topk_group']} of {options['n_group']} groups")
    if options["scaling"] != 1.0:
        words.append(f"scaled by {options['scaling']:g}")
    return ", ".join(words)


def coverage(case: Case) -> dict[str, list[str | int]]:
    dims, options = case.dims, case.options
    return {
        "experts": [dims["E"]],
        "top k": ["all" if dims["k"] == dims["E"] else dims["k"]],
        "method": [options["method"]],
        "bias": [str(options["bias"])],
        "groups": [options["n_group"]],
        "logits": [case.regime["logits"]],
        "load": [case.regime["load"]],
    }


# -- contents ---------------------------------------------------------------------------------------------------------


def draw_bias(case: Case, draw: torch.Generator, device: torch.device) -> Tensor | None:
    """[E], exact in every dtype, so that its sums with logits of few digits are exact too.

    Small ones are of the size of a sigmoid, and float32; large ones decide nearly alone, and have the logits' dtype.
    """
    kind = case.options["bias"]
    if kind is None:
        return None
    normal = torch.randn(case.dims["E"], generator=draw, device=device)
    if kind == "large":
        return ((normal * 16).round().clamp(-64, 64) / 4).to(logits_dtype(case))
    return (normal * 32).round().clamp(-127, 127) / 64


def logits_dtype(case: Case) -> torch.dtype:
    return torch_dtype(case.options.get("logits_dtype") or case.dtype)


def draw_logits(case: Case, draw: torch.Generator, device: torch.device, bias: Tensor | None) -> Tensor:
    """[T, E] in the dtype of the logits, settled."""
    rows, experts, dtype = case.tokens, case.dims["E"], logits_dtype(case)
    normal = torch.randn(rows, experts, generator=draw, device=device)
    likes = torch.randn(1, experts, generator=draw, device=device)
    busy = torch.rand(experts, generator=draw, device=device)
    kind, load = case.regime["logits"], case.regime["load"]
    if load == "one expert":
        # All tokens want the same experts, so that all others have none.
        normal = likes.expand_as(normal)
    widest = WIDEST_SOFTMAX if case.options["method"] in SOFTMAXES else WIDEST
    if case.options["method"] == "top_k":
        widest = WIDEST_WEIGHT
    logits = {
        "random": normal * 2,
        "ties": normal.round(),
        "near ties": 1 + (normal * 1.5).round() * torch.finfo(dtype).eps,
        "wide": (normal * 0.4 * widest).clamp(-widest, widest),
        "equal": normal[:, :1].expand_as(normal) if experts else normal,
    }[kind]
    if load == "idle":
        # As many stay in play as a token needs, in every group.
        size = experts // case.options["n_group"]
        needed = max(min(case.dims["k"], size), (size + 1) // 2)
        rank = busy.reshape(-1, size).argsort(1).argsort(1).reshape(-1)
        logits = torch.where(rank < needed, logits, -WIDEST)
    return settled(logits.to(dtype), bias, case)


def settled(logits: Tensor, bias: Tensor | None, case: Case) -> Tensor:
    """The logits, other ones for tokens whose choice the rounding of float32 could change."""
    for factor in (0.125, 0.0):
        unsure = ambiguous(logits, bias, case)
        if not bool(unsure.any()):
            return logits
        # All equal to zero, every score is a sum of numbers of few digits.
        logits = torch.where(unsure[:, None], (logits * factor).to(logits.dtype), logits)
    return logits


def ambiguous(logits: Tensor, bias: Tensor | None, case: Case) -> Tensor:
    """bool [T]: two scores of which one is, or could just as well be, chosen are almost equal and not quite."""
    method, chosen = case.options["method"], case.dims["k"]
    if bias is None and method != "deepseek_v3":
        return torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)  # the order is that of the logits
    score = scores(logits, bias, method)
    unsure = torch.zeros(score.shape[0], dtype=torch.bool, device=score.device)
    if method == "deepseek_v3":
        groups, kept = case.options["n_group"], case.options["topk_group"]
        grouped = _known(torch.sigmoid(logits.double())) if bias is None else score
        of_groups = grouped.reshape(score.shape[0], groups, score.shape[1] // groups)
        pairs = of_groups.sort(dim=-1, descending=True).values[..., :2]
        best = pairs.sum(-1)
        order = torch.sort(best, dim=-1, descending=True, stable=True)
        # Sums of other numbers may be equal too, as of the sigmoids of x and -x: float32 rounds them in its own ways.
        sorted_pairs = pairs.gather(1, order.indices[..., None].expand_as(pairs))
        other = (sorted_pairs[:, :-1] != sorted_pairs[:, 1:]).any(-1)
        unsure |= _near(order.values, kept, also_equal=other)
        inside = torch.zeros_like(best, dtype=torch.bool).scatter(1, order.indices[:, :kept], True)
        score = score.masked_fill(~inside.repeat_interleave(score.shape[1] // groups, 1), -torch.inf)
    if bias is None:
        return unsure
    return unsure | _near(score.sort(-1, descending=True).values, chosen)


def scores(logits: Tensor, bias: Tensor | None, method: str) -> Tensor:
    """[T, E] in float64: what the choice goes by (`references.moe`); NaN counts as the least."""
    wide = logits.double()
    if bias is None:
        return _known(wide)
    return _known((torch.sigmoid(wide) if method in SIGMOID_SCORES else wide) + bias.double())


def _known(score: Tensor) -> Tensor:
    return score.masked_fill(score.isnan(), -torch.inf)


def _near(descending: Tensor, chosen: int, also_equal: Tensor | None = None) -> Tensor:
    """Whether one of the first so many of a row, or one that equals the last of them, is almost equal to the next one.

    also_equal: bool, of the places where being equal counts as almost equal.
    """
    gaps = descending[:, :-1] - descending[:, 1:]
    counts = descending[:, :-1] >= descending[:, chosen - 1 : chosen]
    unlike = gaps > 0 if also_equal is None else (gaps > 0) | also_equal
    return (counts & unlike & (gaps < TIE * (1 + descending[:, 1:].abs()))).any(1)


# -- errors -----------------------------------------------------------------------------------------------------------


def weight_terms(logits: Tensor, ids: Tensor, weights: Tensor, method: str) -> Tensor:
    """|weight| [T, k], times what exponentials make of rounding their arguments: the |terms| of `harness.budget`."""
    wide = logits.double()
    chosen = wide.gather(1, ids.long())
    if method == "top_k":
        return weights.double().abs()
    if method in SOFTMAXES:
        among = wide if method == "default" else chosen
        spread = (chosen - among.amax(-1, keepdim=True)).abs()
    else:
        spread = chosen.abs() * torch.sigmoid(-chosen)
        if method in RATIOS:
            # What the sum is off by: each sigmoid's share of it times its own.
            share = torch.sigmoid(chosen) / torch.sigmoid(chosen).sum(-1, keepdim=True)
            spread = spread + (share * spread).sum(-1, keepdim=True)
    # Of a logit of -inf no exponential is in doubt.
    return weights.double().abs() * (1 + spread.nan_to_num(nan=0.0, posinf=0.0))
