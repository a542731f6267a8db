"""Causal convolutions of other libraries in our contract's terms.

The engines (TensorRT-LLM, vLLM, SGLang) hold channels first, [D, T] packed, and states [slots, D, W-1] by slot;
transformers and causal-conv1d hold [B, D, T] and a state for each row of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.shadow.delta import plain_only, require
from harness.shadow.observation import Observation
from harness.shadow.seen import Seen


def _activation(given: Any) -> str | None:
    require(given in (None, False, True, "silu", "swish"), f"activation {given!r}")
    return "silu" if given else None


def _shared(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    return {"weight": weight} | ({} if bias is None else {"bias": bias})


def _slots(indices: Tensor | None, pad_slot: Any) -> Tensor | None:
    """Negative where a row is inactive: any negative index is, and whatever the engine pads with."""
    return indices if indices is None or pad_slot is None else torch.where(indices == pad_slot, -1, indices)


def packed(seen: Seen) -> Observation:
    """``causal_conv1d_fn`` of the engines. Some overwrite x with the result: x is the copy from before the call."""
    arguments = seen.arguments
    weight, starts = arguments["weight"], arguments["query_start_loc"]
    require(starts is not None and arguments["x"].dim() == 2, "sequences are not packed")
    require(arguments["conv_states"] is not None, "there is no state")
    before, after = arguments["conv_states"], seen.after["conv_states"]
    require(before.shape[2] == weight.shape[1] - 1, "a conv state is wider than W - 1")
    flags = arguments["has_initial_state"]
    count = starts.shape[0] - 1
    slots = _slots(arguments["cache_indices"], arguments.get("pad_slot_id"))
    return Observation(
        "conv_prefill",
        seen.result.T,
        tokens={"x": arguments["x"].T},
        shared=_shared(weight, arguments["bias"]),
        starts=starts,
        slots=slots,
        flags=torch.zeros(count, dtype=torch.bool) if flags is None else flags,
        states=before,
        after=after,
        options={"activation": _activation(arguments["activation"])},
    )


def whole_rows(seen: Seen) -> Observation:
    """``causal_conv1d_fn`` of transformers and causal-conv1d: B sequences of T tokens that begin with zeros, no state."""
    arguments = seen.arguments
    plain_only(arguments, "seq_idx", "initial_states", "final_states_out", "return_final_states")
    x = arguments["hidden_states"] if "hidden_states" in arguments else arguments["x"]
    require(x.dim() == 3, "x is not [B, D, T]")
    batch, channels, length = x.shape
    return Observation(
        "conv_prefill",
        seen.result.transpose(1, 2).reshape(-1, channels),
        tokens={"x": x.transpose(1, 2).reshape(-1, channels)},
        shared=_shared(arguments["weight"], arguments.get("bias")),
        starts=torch.arange(batch + 1) * length,
        options={"activation": _activation(arguments.get("activation"))},
    )


def update(seen: Seen) -> Observation:
    """``causal_conv1d_update`` of all of them: the state shifts in place, [.., D, S] with S >= W - 1.

    Columns before the last W - 1 shift as well. That is the contract of a convolution of width S + 1 whose first taps are
    zero, and judged as such.
    """
    arguments = seen.arguments
    plain_only(arguments, "cache_seqlens", "num_accepted_tokens", "num_accept_tokens", "query_start_loc")
    plain_only(arguments, "intermediate_conv_window", "retrieve_next_token")
    x = arguments["hidden_states"] if "hidden_states" in arguments else arguments["x"]
    before, after = arguments["conv_state"], seen.after["conv_state"]
    weight = arguments["weight"]
    output = seen.result
    if x.dim() == 3:
        require(x.shape[2] == 1, "more than one token a row")
        x, output = x.squeeze(2), output.squeeze(2)
    return Observation(
        "conv_update",
        output,
        tokens={"x": x},
        shared=_shared(pad(weight, (before.shape[2] + 1 - weight.shape[1], 0)), arguments.get("bias")),
        slots=_slots(arguments.get("conv_state_indices"), arguments.get("pad_slot_id")),
        states=before,
        after=after,
        options={"activation": _activation(arguments.get("activation"))},
    )
