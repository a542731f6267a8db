"""Gated delta rules of other libraries in our contract's terms (read in fla-core 0.6.0, transformers 5.24, SGLang 0.5.10).

All of them take log decays g and a beta after the sigmoid, [B, T, heads, dim] or packed as [1, T, ...] with ``cu_seqlens``.
They differ in who normalises q and k, and in which of K and V is the state's last dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.shadow.observation import Observation
from harness.shadow.seen import NotJudged, Seen


def require(condition: bool, reason: str) -> None:
    """Raise `NotJudged` unless the condition holds."""
    if not condition:
        raise NotJudged(reason)


def plain_only(arguments: Mapping[str, Any], *names: str) -> None:
    """These options change what is computed; a call that uses one is not judged."""
    for name in names:
        value = arguments.get(name)
        require(value is None or (isinstance(value, bool | int) and not value), f"the option {name} is used")


def _starts(tokens: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    batch, length = tokens.shape[:2]
    if cu_seqlens is not None:
        return cu_seqlens
    return torch.arange(batch + 1, device=tokens.device) * length


def _rule(seen: Seen, names: tuple[str, str, str], **states: Any) -> Observation:
    arguments = seen.arguments
    q, k, v = (arguments[name] for name in names)
    g, beta = arguments.get("g"), arguments.get("beta")
    plain_only(arguments, "gk", "gv", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel", "allow_neg_eigval")
    plain_only(arguments, "head_first", "cp_context")
    tokens = {
        "q": q.flatten(0, 1),
        "k": k.flatten(0, 1),
        "v": v.flatten(0, 1),
        "g": v.new_zeros(v.shape[:3], dtype=torch.float32).flatten(0, 1) if g is None else g.flatten(0, 1),
        "beta": v.new_ones(v.shape[:3]).flatten(0, 1) if beta is None else beta.flatten(0, 1),
    }
    options = {
        "scale": arguments.get("scale"),
        "normalised_outside": not arguments.get("use_qk_l2norm_in_kernel", False),
    }
    output = seen.result[0]
    return Observation(
        "gdn_prefill",
        output.flatten(0, 1),
        tokens=tokens,
        starts=_starts(q, arguments.get("cu_seqlens")),
        options=options,
        **states,
    )


def packed_states(*names: str) -> Callable[[Seen], Observation]:
    """States go in as [N, HV, K, V] (or [N, HV, V, K] with ``state_v_first``) and come out as a new tensor."""
    q, k, v = names

    def translate(seen: Seen) -> Observation:
        value_first = bool(seen.arguments.get("state_v_first") or seen.arguments.get("transpose_state_layout"))

        def ours(state: Tensor | None) -> Tensor | None:
            return state if state is None or value_first else state.mT

        initial, final = seen.arguments.get("initial_state"), seen.result[1]
        return _rule(seen, (q, k, v), states=ours(initial), after=ours(final))

    return translate


def pooled_states(*, value_first: bool) -> Callable[[Seen], Observation]:
    """``initial_state`` is a whole pool, updated in place at ``initial_state_indices``; every sequence reads its slot."""

    def translate(seen: Seen) -> Observation:
        slots = seen.arguments["initial_state_indices"]
        require(slots is not None, "initial_state_indices is None")
        before, after = seen.arguments["initial_state"], seen.after["initial_state"]
        return _rule(
            seen,
            ("q", "k", "v"),
            slots=slots,
            states=before if value_first else before.mT,
            after=after if value_first else after.mT,
        )

    return translate


def fused_gates(*, value_first: bool) -> Callable[[Seen], Observation]:
    """``fused_sigmoid_gating_delta_rule_update``: one token for each sequence, gates from a, b, A_log and dt_bias."""

    def translate(seen: Seen) -> Observation:
        arguments = seen.arguments
        plain_only(arguments, "is_kda", "lower_bound", "disable_state_update", "retrieve_parent_token")
        require(arguments.get("softplus_beta", 1.0) == 1.0, "softplus_beta is not 1")
        require(arguments.get("softplus_threshold", 20.0) == 20.0, "softplus_threshold is not 20")
        require(bool(arguments.get("use_qk_l2norm_in_kernel")), "q and k are not normalised by the call")
        q, k, v = (arguments[name].flatten(0, 1) for name in ("q", "k", "v"))
        slots = arguments["initial_state_indices"]
        require(slots is not None and slots.shape[0] == q.shape[0], "a sequence has more or less than one token")
        starts = arguments.get("cu_seqlens")
        require(starts is None or bool((starts.diff() == 1).all()), "a sequence has more or less than one token")
        before, after = arguments["initial_state_source"], seen.after["initial_state_source"]
        heads = v.shape[1]
        return Observation(
            "gdn_decode",
            seen.result.reshape(-1, heads, v.shape[2]),
            tokens={
                "q": q,
                "k": k,
                "v": v,
                "a": arguments["a"].reshape(-1, heads),
                "b": arguments["b"].reshape(-1, heads),
            },
            shared={"A_log": arguments["A_log"], "dt_bias": arguments["dt_bias"]},
            slots=slots,
            states=before if value_first else before.mT,
            after=after if value_first else after.mT,
            options={"scale": arguments.get("scale")},
        )

    return translate
