"""Causal depthwise convolution by explicit taps.

With z the previous W-1 inputs (zeros for a fresh sequence) followed by the sequence's own tokens, every channel has

    y_t = act(bias + sum_j weight[j] * z[t + j]),   j = 0 .. W-1,

and the new state is the last W-1 entries of z: a copy, in which no arithmetic takes part.
"""

import torch
from torch import Tensor


def conv_prefill(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    conv_state: Tensor,
    cu_seqlens: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    activation: str | None,
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Convolve N packed sequences and leave each one's last W-1 inputs in its slot.

    Args:
        x: [T, D], the packed tokens.
        weight: [D, W], W >= 1; tap W-1 meets the newest token.
        bias: [D] or None.
        conv_state: [slots, D, W-1], oldest input first; updated in place, converted to its own dtype.
        cu_seqlens: int [N+1], where each sequence starts in `x`, then the total.
        state_indices: int [N], each sequence's slot; any negative value makes the sequence inactive: its slot is
            neither read nor written and its output rows are zero.
        has_initial_state: bool [N]; false ignores what the slot holds. An empty sequence leaves its slot alone when
            true and zeroes it when false.
        activation: "silu" or None.
        compute_dtype: every sum and the activation are computed in it; the output is rounded once.

    Returns:
        y [T, D] in the dtype of `x`.

    Raises:
        ValueError: an unknown activation.
    """
    _check_activation(activation)
    history = weight.shape[1] - 1
    y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    starts = cu_seqlens.tolist()
    new_states: list[tuple[int, Tensor]] = []
    for n, (slot, resumed) in enumerate(zip(state_indices.tolist(), has_initial_state.tolist(), strict=True)):
        tokens = x[starts[n] : starts[n + 1]]
        if slot < 0 or (resumed and len(tokens) == 0):
            continue
        previous = conv_state[slot].T if resumed else conv_state.new_zeros(history, x.shape[1])
        z = torch.cat([previous.to(compute_dtype), tokens.to(compute_dtype)])
        y[starts[n] : starts[n + 1]] = _taps(z, weight, bias, activation).to(y.dtype)
        stored = torch.cat([previous, tokens.to(conv_state.dtype)])
        new_states.append((slot, stored[len(tokens) :].T))
    for slot, new_state in new_states:
        conv_state[slot] = new_state
    return y


def conv_update(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    conv_state: Tensor,
    state_indices: Tensor,
    activation: str | None,
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Convolve one more token of B sequences, each of which continues the state in its slot.

    Args:
        x: [B, D], one token a row.
        weight, bias, conv_state, activation, compute_dtype: as in `conv_prefill`.
        state_indices: int [B]; a negative slot gives a zero row and touches no state.

    Returns:
        y [B, D] in the dtype of `x`.

    Raises:
        ValueError: an unknown activation.
    """
    _check_activation(activation)
    y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    rows = torch.nonzero(state_indices >= 0).flatten()
    slots, newest = state_indices[rows].long(), x[rows]
    previous = conv_state[slots]
    # [W, rows, D]: what each tap meets.
    z = torch.cat([previous.permute(2, 0, 1).to(compute_dtype), newest[None].to(compute_dtype)])
    y[rows] = _taps(z, weight, bias, activation)[0].to(y.dtype)
    conv_state[slots] = torch.cat([previous, newest[..., None].to(conv_state.dtype)], dim=-1)[..., 1:]
    return y


def _taps(z: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """z [L + W - 1, ..., D] -> y [L, ..., D], in the dtype of z."""
    width = weight.shape[1]
    tokens = z.shape[0] - (width - 1)
    y = z.new_zeros(tokens, *z.shape[1:])
    if bias is not None:
        y += bias.to(z.dtype)
    for j in range(width):
        y += weight[:, j].to(z.dtype) * z[j : j + tokens]
    if activation == "silu":
        y = y / (1 + torch.exp(-y))
    return y


def _check_activation(activation: str | None) -> None:
    if activation not in ("silu", None):
        raise ValueError(f'activation: expected "silu" or None, got {activation!r}')
