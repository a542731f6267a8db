"""The signatures that `shadow` knows, as data, and which of them a target has.

A target is recognised by its parameter names. What they do not tell, above all whether a state is [V, K] or [K, V], is
said at wrap time, and another signature can be named.
"""

from __future__ import annotations

import inspect
from typing import Any

from harness.operators.step_metadata import FIELDS
from harness.shadow import contracts, convolutions, delta
from harness.shadow.signature import Signature, Translate

_RULE = frozenset({"g", "beta", "initial_state", "output_final_state"})
_FUSED = frozenset({"A_log", "a", "dt_bias", "b", "q", "k", "v", "initial_state_source", "initial_state_indices"})
_POOLED = frozenset({"q", "k", "v", "g", "beta", "initial_state", "initial_state_indices"})
_STATE = {"state": "state_indices"}
_CONV = {"conv_state": "state_indices"}


def _contract(operator: str, translate: Translate, names: str, **rest: Any) -> Signature:
    return Signature(
        f"contract.{operator}",
        (operator,),
        f"our contract of {operator}",
        translate,
        frozenset(names.split()),
        **rest,
    )


def _hints_default_to_none(target: inspect.Signature) -> bool:
    return target.parameters["total_seqlens"].default is None


#: The most particular first: the first that fits is taken.
SIGNATURES: tuple[Signature, ...] = (
    _contract(
        "chunk_metadata",
        contracts.chunks(contract=True),
        "cu_seqlens chunk_size total_seqlens extra_chunks",
        accepts=_hints_default_to_none,
    ),
    _contract(
        "step_metadata",
        contracts.step,
        "seq_lens num_contexts num_cached_tokens state_slots",
        reads={"self": ("chunk_size",)},
        fields=FIELDS,
    ),
    _contract(
        "conv_prefill",
        contracts.conv("conv_prefill"),
        "x weight bias conv_state cu_seqlens state_indices has_initial_state activation",
        pools=_CONV,
        updated=("conv_state",),
    ),
    _contract(
        "conv_update",
        contracts.conv("conv_update"),
        "x weight bias conv_state state_indices activation",
        absent=frozenset({"cu_seqlens"}),
        pools=_CONV,
        updated=("conv_state",),
    ),
    _contract(
        "gdn_prefill",
        contracts.delta("gdn_prefill", "q", "k", "v", "g", "beta"),
        "q k v g beta state cu_seqlens state_indices has_initial_state",
        pools=_STATE,
        updated=("state",),
    ),
    _contract(
        "gdn_decode",
        contracts.delta("gdn_decode", "q", "k", "v", "a", "b"),
        "q k v a b A_log dt_bias state state_indices",
        pools=_STATE,
        updated=("state",),
    ),
    _contract("gated_rmsnorm", contracts.norm, "x z weight eps"),
    _contract("moe", contracts.experts, "x router_logits w_gate_up w_down top_k method"),
    Signature(
        "tensorrt_llm.chunk_indices",
        ("chunk_metadata",),
        "TensorRT-LLM's cu_seqlens_to_chunk_indices_offsets, the Triton and the naive one",
        contracts.chunks(contract=False),
        frozenset({"cu_seqlens", "chunk_size"}),
        absent=frozenset({"q", "x", "query"}),
    ),
    Signature(
        "fused_sigmoid_gating.vk",
        ("gdn_decode",),
        "fused_sigmoid_gating_delta_rule_update with states [slots, HV, V, K] (SGLang, TensorRT-LLM since #13645)",
        delta.fused_gates(value_first=True),
        _FUSED,
        pools={"initial_state_source": "initial_state_indices"},
        updated=("initial_state_source",),
    ),
    Signature(
        "fused_sigmoid_gating.kv",
        ("gdn_decode",),
        "the same with states [slots, HV, K, V] (TensorRT-LLM before #13645, SGLang until then)",
        delta.fused_gates(value_first=False),
        _FUSED,
        pools={"initial_state_source": "initial_state_indices"},
        updated=("initial_state_source",),
    ),
    Signature(
        "pooled_delta_rule.vk",
        ("gdn_prefill",),
        "chunk_gated_delta_rule on a pool of states [slots, HV, V, K] (SGLang 0.5.10)",
        delta.pooled_states(value_first=True),
        _POOLED,
        pools={"initial_state": "initial_state_indices"},
        updated=("initial_state",),
    ),
    Signature(
        "pooled_delta_rule.kv",
        ("gdn_prefill",),
        "the same on a pool of states [slots, HV, K, V] (TensorRT-LLM #12791)",
        delta.pooled_states(value_first=False),
        _POOLED,
        pools={"initial_state": "initial_state_indices"},
        updated=("initial_state",),
    ),
    Signature(
        "fla.delta_rule",
        ("gdn_prefill",),
        "flash-linear-attention's chunk_, fused_recurrent_ and naive_ gated_delta_rule, states [N, HV, K, V]",
        delta.packed_states("q", "k", "v"),
        _RULE | {"q", "k", "v"},
    ),
    Signature(
        "transformers.delta_rule",
        ("gdn_prefill",),
        "transformers' torch_chunk_ and torch_recurrent_gated_delta_rule, states [B, HV, K, V]",
        delta.packed_states("query", "key", "value"),
        _RULE | {"query", "key", "value"},
    ),
    Signature(
        "engines.causal_conv1d_fn",
        ("conv_prefill",),
        "causal_conv1d_fn of TensorRT-LLM, vLLM and SGLang, packed [D, T], states [slots, D, W-1]",
        convolutions.packed,
        frozenset({"x", "weight", "bias", "conv_states", "query_start_loc", "cache_indices", "has_initial_state"}),
        pools={"conv_states": "cache_indices"},
        updated=("conv_states",),
    ),
    Signature(
        "causal_conv1d_update",
        ("conv_update",),
        "causal_conv1d_update of transformers, causal-conv1d and the engines, one token a row",
        convolutions.update,
        frozenset({"conv_state", "weight", "bias", "activation"}),
        absent=frozenset({"cu_seqlens", "state_indices"}),
        pools={"conv_state": "conv_state_indices"},
        updated=("conv_state",),
    ),
    Signature(
        "causal_conv1d_fn",
        ("conv_prefill",),
        "causal_conv1d_fn of transformers and causal-conv1d, [B, D, T]; it gives no state",
        convolutions.whole_rows,
        frozenset({"weight", "bias", "activation"}),
        absent=frozenset({"conv_states", "conv_state", "cu_seqlens"}),
    ),
    Signature(
        "transformers.gated_norm",
        ("gated_rmsnorm",),
        "forward of transformers' Qwen3NextRMSNormGated and Qwen3_5RMSNormGated",
        contracts.norm_module,
        frozenset({"self", "hidden_states", "gate"}),
        reads={"self": ("weight", "variance_epsilon")},
    ),
)

BY_NAME = {signature.name: signature for signature in SIGNATURES}


def choose(target: inspect.Signature, operator: str | None, name: str, what: str) -> Signature:
    """The signature called ``name``; with ``"auto"`` the first that fits the target and judges ``operator`` (None: any).

    Raises:
        ValueError: nothing fits; the message says what there is.
    """
    parameters = ", ".join(target.parameters)
    if name != "auto":
        if name not in BY_NAME:
            raise ValueError(f"signature: got {name!r}, expected auto or one of {', '.join(BY_NAME)}")
        chosen = BY_NAME[name]
        missing = sorted(chosen.required - set(target.parameters))
        if missing:
            raise ValueError(
                f"signature: {name} needs parameters {', '.join(missing)}, {what} has ({parameters}); give adapt="
            )
        if operator is not None and operator not in chosen.operators:
            raise ValueError(f"operator: got {operator!r}, but signature {name} is judged as {chosen.operators[0]}")
        return chosen
    fitting = [s for s in SIGNATURES if s.fits(target)]
    wanted = [s for s in fitting if operator is None or operator in s.operators]
    if wanted:
        return wanted[0]
    if fitting:
        raise ValueError(
            f"operator: got {operator!r}, but calls of {what} are judged as {fitting[0].operators[0]} (signature"
            f" {fitting[0].name}); leave the operator out, or give adapt="
        )
    raise ValueError(
        f"signature: none that is known fits {what}({parameters}); name one of {', '.join(BY_NAME)}, or give adapt= with a"
        " function from harness.shadow.Seen to harness.shadow.Observation"
    )


def alternatives(signature: Signature) -> list[str]:
    """Signatures with the same parameters: which of them it is nobody can see from outside."""
    return [s.name for s in SIGNATURES if s is not signature and s.required == signature.required]
