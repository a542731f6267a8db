"""Functions that have our own contracts (design of each operator: its file in ``references/``), and metadata."""

from __future__ import annotations

from collections.abc import Callable

from harness.case import Case
from harness.operators import expert_choice
from harness.shadow.observation import Observation
from harness.shadow.seen import NotJudged, Seen


def chunks(*, contract: bool) -> Callable[[Seen], Observation]:
    """``(cu_seqlens, chunk_size, total_seqlens, extra_chunks)``; the hints are the caller's claims, not inputs."""

    def translate(seen: Seen) -> Observation:
        options = {name: seen.arguments[name] for name in ("cu_seqlens", "chunk_size")}
        return Observation("chunk_metadata", seen.result, options=options, contract=contract)

    return translate


def step(seen: Seen) -> Observation:
    names = ("seq_lens", "num_contexts", "num_cached_tokens", "state_slots")
    options = {name: seen.arguments[name] for name in names} | {"chunk_size": seen.arguments["self.chunk_size"]}
    return Observation("step_metadata", seen.result, options=options, contract=True)


def conv(operator: str) -> Callable[[Seen], Observation]:
    def translate(seen: Seen) -> Observation:
        arguments = seen.arguments
        bias = arguments.get("bias")
        return Observation(
            operator,
            seen.result,
            tokens={"x": arguments["x"]},
            shared={"weight": arguments["weight"]} | ({} if bias is None else {"bias": bias}),
            starts=arguments.get("cu_seqlens"),
            slots=arguments["state_indices"],
            flags=arguments.get("has_initial_state"),
            states=arguments["conv_state"],
            after=seen.after["conv_state"],
            options={"activation": arguments.get("activation")},
            contract=True,
        )

    return translate


def delta(operator: str, *tokens: str) -> Callable[[Seen], Observation]:
    def translate(seen: Seen) -> Observation:
        arguments = seen.arguments
        return Observation(
            operator,
            seen.result,
            tokens={name: arguments[name] for name in tokens},
            shared={name: arguments[name] for name in ("A_log", "dt_bias") if name in arguments},
            starts=arguments.get("cu_seqlens"),
            slots=arguments["state_indices"],
            flags=arguments.get("has_initial_state"),
            states=arguments["state"],
            after=seen.after["state"],
            options={"scale": arguments.get("scale")},
            contract=True,
        )

    return translate


def experts(seen: Seen) -> Observation:
    """``moe``. Tokens that the rounding of a score could send elsewhere are left out: they have no one right result."""
    arguments = seen.arguments
    x, logits, bias = arguments["x"], arguments["router_logits"], arguments.get("bias")
    options = {
        "method": arguments["method"],
        "bias": None if bias is None else "given",
        "n_group": arguments.get("n_group", 1),
        "topk_group": arguments.get("topk_group", 1),
        "scaling": arguments.get("scaling", 1.0),
        "first": arguments.get("expert_offset", 0),
        "logits_dtype": str(logits.dtype).removeprefix("torch."),
    }
    dims = {"E": logits.shape[1], "k": int(arguments["top_k"])}
    sure = ~expert_choice.ambiguous(logits, bias, Case("moe", (), dims, options=options))
    if logits.shape[0] and not bool(sure.any()):
        raise NotJudged("no token whose choice the rounding of its scores could not change")
    shared = {name: arguments[name] for name in ("w_gate_up", "w_down")} | ({} if bias is None else {"bias": bias})
    return Observation(
        "moe",
        seen.result[sure],
        tokens={"x": x[sure], "router_logits": logits[sure]},
        shared=shared,
        options=options | {"top_k": dims["k"]},
        contract=True,
    )


def norm(seen: Seen) -> Observation:
    arguments = seen.arguments
    return Observation(
        "gated_rmsnorm",
        seen.result,
        tokens={"x": arguments["x"], "z": arguments["z"]},
        shared={"weight": arguments["weight"]},
        options={"eps": arguments["eps"]},
        contract=True,
    )


def norm_module(seen: Seen) -> Observation:
    """``forward`` of transformers' gated norm: rows [.., V], each its own token of one head."""
    arguments = seen.arguments
    x = arguments["hidden_states"]
    return Observation(
        "gated_rmsnorm",
        seen.result.reshape(-1, 1, x.shape[-1]),
        tokens={"x": x.reshape(-1, 1, x.shape[-1]), "z": arguments["gate"].reshape(-1, 1, x.shape[-1])},
        shared={"weight": arguments["self.weight"]},
        options={"eps": arguments["self.variance_epsilon"]},
    )
