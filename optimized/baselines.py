"""The same operators done the way engines did them before they were optimized, in plain torch.

What the optimized kernels are measured against, and compared with where both promise the same bits.  They keep the
contracts of the operators (inactive rows, fresh sequences, empty sequences) and the habits of their time: counts read
back from the device, tensors rebuilt from Python lists, a boolean mask to reset states, a transpose to channel-major,
packed copies of views, gather and scatter of whole states around the arithmetic.  Everything is computed in float32 and
rounded once to the output's dtype.  Arguments are trusted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .step_metadata import StepMetadata

Tensor = torch.Tensor


def chunk_metadata(
    cu_seqlens: Tensor, chunk_size: int, *, total_seqlens: int | None = None, extra_chunks: int | None = None
) -> tuple[Tensor, Tensor]:
    """Contract of ``optimized.chunk_metadata``: a walk along the sequences with several host syncs for each.

    The hints are accepted and ignored: there were none.
    """
    num_sequences = cu_seqlens.shape[0] - 1
    total = int(cu_seqlens[-1].item())
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    opens = (starts % chunk_size > 0) & (ends > starts)
    extra = int(opens.sum().item())
    num_chunks = -(-total // chunk_size) + extra
    chunk_indices = torch.arange(num_chunks, dtype=torch.int32, device=cu_seqlens.device)
    chunk_offsets = torch.zeros(num_chunks, dtype=torch.int32, device=cu_seqlens.device)
    opened = 0
    for n in range(num_sequences):
        start, end = int(starts[n].item()), int(ends[n].item())
        if end == start:
            continue
        opened += int(opens[n].item())
        first = start // chunk_size + opened
        last = (end - 1) // chunk_size + opened
        chunk_indices[first : last + 1] -= opened
        chunk_offsets[first] = start % chunk_size
    return chunk_indices, chunk_offsets


class StepMetadataBuilder:
    """Keeps no buffers: every ``prepare`` allocates, so no address holds from step to step."""

    def __init__(self, max_batch_size: int, chunk_size: int, device: torch.device | str) -> None:
        self.max_batch_size = max_batch_size
        self.chunk_size = chunk_size
        self.device = torch.device(device)

    def prepare(
        self,
        *,
        seq_lens: Sequence[int],
        num_contexts: int,
        num_cached_tokens: Sequence[int],
        state_slots: Sequence[int],
    ) -> StepMetadata:
        """Contract of ``optimized.step_metadata``, but for the addresses; one blocking copy for each field."""
        lengths = torch.tensor(seq_lens, dtype=torch.int32, device=self.device)
        query_start_loc = torch.zeros(len(seq_lens) + 1, dtype=torch.int32, device=self.device)
        query_start_loc[1:] = torch.cumsum(lengths, 0)
        continues = [cached > 0 for cached in num_cached_tokens]
        has_initial_state = torch.tensor(continues, dtype=torch.bool, device=self.device)
        rows = torch.arange(num_contexts, dtype=torch.int32, device=self.device)
        chunk_indices = chunk_offsets = None
        if bool(has_initial_state[:num_contexts].any().item()):
            chunk_indices, chunk_offsets = chunk_metadata(query_start_loc[: num_contexts + 1], self.chunk_size)
        return StepMetadata(
            query_start_loc=query_start_loc,
            has_initial_state=has_initial_state,
            state_indices=torch.tensor(state_slots, dtype=torch.int32, device=self.device),
            seq_idx=torch.repeat_interleave(rows, lengths[:num_contexts]),
            chunk_indices=chunk_indices,
            chunk_offsets=chunk_offsets,
        )


def step_metadata(max_batch_size: int, chunk_size: int, device: torch.device | str) -> StepMetadataBuilder:
    """A builder that rebuilds everything from Python lists in every step."""
    return StepMetadataBuilder(max_batch_size, chunk_size, device)


def conv_prefill(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    conv_state: Tensor,
    cu_seqlens: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    activation: str | None = "silu",
) -> Tensor:
    """x[T, D] -> y[T, D]: reset by mask, transpose, one depthwise convolution a sequence, transpose back.

    Tokens beyond ``cu_seqlens[-1]`` and those of inactive sequences give zero rows.
    """
    width = weight.shape[1]
    active = state_indices >= 0
    conv_state[state_indices[active & ~has_initial_state].long()] = 0
    channels = x.t().contiguous()
    y = torch.zeros_like(channels)
    taps = weight.float().unsqueeze(1)
    offset = None if bias is None else bias.float()
    starts = cu_seqlens.tolist()
    for n, slot in enumerate(state_indices.tolist()):
        start, end = starts[n], starts[n + 1]
        if slot < 0 or start == end:
            continue
        history = torch.cat((conv_state[slot].float(), channels[:, start:end].float()), dim=1)
        # cuDNN would be free to take tf32; torch's own depthwise kernel computes in float32.
        with torch.backends.cudnn.flags(enabled=False):
            out = F.conv1d(history.unsqueeze(0), taps, offset, groups=x.shape[1]).squeeze(0)
        y[:, start:end] = _activate(out, activation).to(x.dtype)
        conv_state[slot] = history[:, history.shape[1] - (width - 1) :].to(conv_state.dtype)
    return y.t().contiguous()


def conv_update(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    conv_state: Tensor,
    state_indices: Tensor,
    activation: str | None = "silu",
    all_active: bool = False,
) -> Tensor:
    """x[B, D] -> y[B, D], one token a row: gather the states, roll them, weighted sum, scatter them back.

    ``all_active`` promises that no row is inactive: it leaves out the mask, whose size the host must wait for, so that
    the baseline can be captured in a CUDA graph and is measured at its best.
    """
    rows = None if all_active else torch.nonzero(state_indices >= 0).squeeze(1)
    slots = (state_indices if rows is None else state_indices[rows]).long()
    token = (x if rows is None else x[rows]).float()
    window = conv_state[slots].float()
    # The oldest input has no place in the new state, and still one tap to go through.
    oldest = window[:, :, 0] * weight[:, 0].float()
    window = torch.roll(window, -1, dims=2)
    window[:, :, -1] = token
    out = oldest + (window * weight[:, 1:].float()).sum(2)
    if bias is not None:
        out = out + bias.float()
    conv_state[slots] = window.to(conv_state.dtype)
    return _place_rows(_activate(out, activation).to(x.dtype), rows, x.shape[0])


def gdn_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    state_indices: Tensor,
    scale: float | None = None,
    all_active: bool = False,
) -> Tensor:
    """q, k [B, H, K], v [B, HV, V] -> o [B, HV, V]: packed copies, gates apart, gathered states, batched products.

    ``all_active`` as in ``conv_update``.
    """
    batch, heads, key_dim = q.shape
    repeats = v.shape[1] // heads
    rows = None if all_active else torch.nonzero(state_indices >= 0).squeeze(1)
    slots = (state_indices if rows is None else state_indices[rows]).long()
    out_dtype = v.dtype
    q, k, v, a, b = ((t if rows is None else t[rows]).contiguous().float() for t in (q, k, v, a, b))

    decay = torch.exp(-torch.exp(A_log.float()) * F.softplus(a + dt_bias.float(), beta=1.0, threshold=20.0))
    beta = torch.sigmoid(b)
    q = _l2norm(q) * (key_dim**-0.5 if scale is None else scale)
    q = q.repeat_interleave(repeats, dim=1)
    k = _l2norm(k).repeat_interleave(repeats, dim=1)

    memory = state[slots].float() * decay[:, :, None, None]
    delta = (v - torch.einsum("bhvk,bhk->bhv", memory, k)) * beta[:, :, None]
    memory = memory + torch.einsum("bhv,bhk->bhvk", delta, k)
    out = torch.einsum("bhvk,bhk->bhv", memory, q)
    state[slots] = memory.to(state.dtype)
    return _place_rows(out.to(out_dtype), rows, batch)


def gated_rmsnorm(x: Tensor, z: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """x, z [T, HV, V] -> y [T, HV, V]: packed copies in float32, and one pass over memory for each step."""
    wide, gate = x.contiguous().float(), z.contiguous().float()
    variance = wide.pow(2).mean(-1, keepdim=True)
    normalised = wide * torch.rsqrt(variance + eps)
    return (normalised * weight.float() * F.silu(gate)).to(x.dtype)


def gdn_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    cu_seqlens: Tensor,
    state_indices: Tensor,
    has_initial_state: Tensor,
    scale: float | None = None,
) -> Tensor:
    """q, k [T, H, K], v [T, HV, V] -> o [T, HV, V]: reset by mask, gather the states in float32, kernel, cast, scatter.

    The kernel is that of ``optimized.gdn_prefill``: what differs is all that was moved around it, and the host that waits
    for the sizes of the masks.
    """
    from optimized.gdn_prefill import gdn_prefill as kernel

    active = state_indices >= 0
    slots = state_indices[active].long()
    state[state_indices[active & ~has_initial_state].long()] = 0
    gathered = state.new_zeros((state_indices.shape[0], *state.shape[1:]), dtype=torch.float32)
    gathered[active] = state[slots].float()
    rows = torch.arange(state_indices.shape[0], dtype=torch.int32, device=state.device).masked_fill(~active, -1)
    out = kernel(
        q,
        k,
        v,
        g=g,
        beta=beta,
        state=gathered,
        cu_seqlens=cu_seqlens,
        state_indices=rows,
        has_initial_state=torch.ones_like(has_initial_state),
        scale=scale,
    )
    state[slots] = gathered[active].to(state.dtype)
    return out


#: Around this kernel the moving is done: the two must agree in every bit.
gdn_prefill.wraps = "optimized.gdn_prefill:gdn_prefill"  # type: ignore[attr-defined]


# torch's functions promise no bits: on a CPU they depend on where in a vector register an element lies.
for _name in ("conv_prefill", "conv_update", "gdn_decode", "gated_rmsnorm"):
    globals()[_name].sluicegate = {"bitwise": False}


def _activate(x: Tensor, activation: str | None) -> Tensor:
    return F.silu(x) if activation == "silu" else x


def _l2norm(x: Tensor) -> Tensor:
    """x / sqrt(sum x^2 + 1e-6) over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _place_rows(values: Tensor, rows: Tensor | None, batch: int) -> Tensor:
    """``values`` at ``rows`` of a zero tensor of ``batch`` rows; None: they are all the rows there are."""
    if rows is None:
        return values
    out = values.new_zeros((batch, *values.shape[1:]))
    out[rows] = values
    return out
