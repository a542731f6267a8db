"""Numbers by which libraries know the ways to route.

FlashInfer's (`flashinfer/tllm_enums.py`, 0.7.2) and TensorRT-LLM's
(`tensorrt_llm/_torch/modules/fused_moe/routing.py`, 1.3) are one enumeration up to 4 and differ after it: MiniMax2 is 5
there, and 5 here means the logits themselves. So a number of one is never handed to the other.
"""

from __future__ import annotations

FLASHINFER = {
    "default": 0,
    "renormalize": 1,
    "deepseek_v3": 2,
    "llama4": 3,
    "renormalize_naive": 4,
    "top_k": 5,
    "sigmoid_renorm": 6,
    "minimax2": 7,
    "sigmoid": 8,
    "top_k_sigmoid": 9,
}
#: 6 is Unspecified and 7 AdaptiveK there, which no operator here has.
TENSORRT_LLM = {
    "default": 0,
    "renormalize": 1,
    "deepseek_v3": 2,
    "llama4": 3,
    "renormalize_naive": 4,
    "minimax2": 5,
}
_NAMES = {number: name for name, number in TENSORRT_LLM.items()}


def flashinfer_number(method: str) -> int:
    """FlashInfer's number of one of this project's methods; ValueError for others."""
    if method not in FLASHINFER:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(FLASHINFER)}; FlashInfer knows no other")
    return FLASHINFER[method]


def from_tensorrt_llm(number: int) -> int:
    """What FlashInfer calls the method that TensorRT-LLM has this number for; ValueError where it has no such method."""
    if number not in _NAMES:
        raise ValueError(
            f"routing method: got TensorRT-LLM's number {number}, expected one of {sorted(_NAMES)};"
            " route on the host and call the entry that takes chosen experts"
        )
    return FLASHINFER[_NAMES[number]]
