"""Gated delta rule, a chunk of tokens at a time.

Within a chunk of C tokens with state S (V x K) at its start, the corrections that the tokens write depend on each other
through a unit lower triangular matrix, which is inverted explicitly; all else is matrix products (Yang, Kautz,
Hatamizadeh: Gated Delta Networks, 2024, section 3.3). With G_i the sum of the log decays up to token i,
D_ij = exp(G_i - G_j) for j <= i and 0 above the diagonal, and beta, e^G scaling rows,

    A  = beta (K K^T o D), strictly below the diagonal          T = (I + A)^-1
    U  = T (beta V)               W = T (beta e^G K)            X = U - W S^T
    O  = scale (e^G (Q S^T) + (Q K^T o D) X)
    S <- e^G_last S + X^T (e^(G_last - G) K)

It computes the function of `references.gdn.gdn_recurrence`, for batches that are too long for a loop over tokens: the
loop is over chunks, and the n-th chunks of all sequences and heads are done together. The sums G_i - G_j are added up
from j on and never subtracted, so that a token that forgets everything costs the tokens behind it no digits.

Given an `operand_dtype`, it rounds every operand of every matrix product to that dtype once, as a kernel on matrix units
does: what remains of the error then is what no such kernel can avoid.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from references.gdn import heads_of_values


@dataclass(frozen=True)
class Round:
    """The n-th chunks of those sequences that have one, padded to the longest.

    rows: int64 [A], which of the sequences. tokens: int64 [A, C], their tokens; where `valid` [A, C] is false, any.
    """

    rows: Tensor
    tokens: Tensor
    valid: Tensor

    def take(self, packed: Tensor) -> Tensor:
        """[T, heads, ...] -> [A, heads, C, ...], zero where there is no token."""
        taken = packed[self.tokens]
        valid = self.valid.reshape(*self.valid.shape, *[1] * (packed.dim() - 1))
        return torch.where(valid, taken, torch.zeros_like(taken)).transpose(1, 2)

    def put(self, packed: Tensor, values: Tensor) -> None:
        """Write values [A, heads, C, ...] to the rows of packed [T, heads, ...] that they belong to."""
        packed[self.tokens[self.valid]] = values.transpose(1, 2)[self.valid].to(packed.dtype)


def rounds(starts: list[int], sequences: list[int], chunk_size: int, device: torch.device) -> Iterator[Round]:
    """The chunks of these sequences, number by number, counted from each sequence's own start."""
    longest = max((starts[n + 1] - starts[n] for n in sequences), default=0)
    for begin in range(0, longest, chunk_size):
        rows = [row for row, n in enumerate(sequences) if starts[n] + begin < starts[n + 1]]
        first = torch.tensor([starts[sequences[row]] + begin for row in rows], device=device)
        sizes = [min(chunk_size, starts[n + 1] - starts[n] - begin) for n in (sequences[row] for row in rows)]
        offsets = torch.arange(max(sizes), device=device)
        valid = offsets < torch.tensor(sizes, device=device)[:, None]
        yield Round(torch.tensor(rows, device=device), first[:, None] + offsets * valid, valid)


def decays(g: Tensor) -> tuple[Tensor, Tensor]:
    """Log decays g [..., C] -> (e^G [..., C], D [..., C, C])."""
    size = g.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=g.device).tril(-1)
    exponents = torch.where(below, g[..., :, None], g.new_zeros(())).cumsum(-2)
    return g.cumsum(-1).exp(), exponents.exp().tril()


def inverse(keys: Tensor, beta: Tensor, D: Tensor) -> Tensor:
    """T = (I + A)^-1 [..., C, C] of keys [..., C, K], beta [..., C], D [..., C, C]."""
    A = (beta[..., None] * (keys @ keys.mT) * D).tril(-1)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return torch.linalg.solve_triangular(eye + A, eye.expand_as(A), upper=False, unitriangular=True)


def initial_states(
    state: Tensor, starts: list[int], slots: list[int], flags: list[bool]
) -> tuple[list[int], Tensor, Tensor]:
    """The sequences that leave a state in their slots, these slots [A] int64, and what they start from [A, HV, V, K].

    An empty sequence with an initial state leaves its slot alone; one without leaves zeros.
    """
    chosen = [n for n, slot in enumerate(slots) if slot >= 0 and not (flags[n] and starts[n] == starts[n + 1])]
    owned = torch.tensor([slots[n] for n in chosen], dtype=torch.int64, device=state.device)
    resumed = torch.tensor([flags[n] for n in chosen], dtype=torch.bool, device=state.device)[:, None, None, None]
    return chosen, owned, torch.where(resumed, state[owned], 0.0)


def gdn_chunked(
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
    chunk_size: int = 64,
    compute_dtype: torch.dtype = torch.float64,
    operand_dtype: torch.dtype | None = None,
    normalise: bool = True,
) -> Tensor:
    """Run N packed sequences through the chunk form and leave each one's state in its slot.

    Args:
        q, k, v, g, beta, state, cu_seqlens, state_indices, has_initial_state, scale: as in
            `references.gdn.gdn_recurrence`; `state` is updated in place.
        chunk_size: tokens in a chunk. Changes nothing but the rounding.
        compute_dtype: everything between the inputs and the roundings to the dtypes of `v` and `state`.
        operand_dtype: the dtype to which the operands of matrix products are rounded; None rounds nothing.
        normalise: false takes q and k as they are, for callers that normalise them, or do not, themselves.

    Returns:
        o [T, HV, V] in the dtype of `v`.

    Raises:
        ValueError: HV is not a multiple of H.
    """

    def operand(x: Tensor) -> Tensor:
        return x if operand_dtype is None else x.to(operand_dtype).to(compute_dtype)

    q, k = heads_of_values(q, k, v.shape[1], compute_dtype, normalise=normalise)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    values, g, beta = v.to(compute_dtype), g.to(compute_dtype), beta.to(compute_dtype)
    o = torch.zeros(v.shape, dtype=v.dtype, device=v.device)
    starts = cu_seqlens.tolist()
    chosen, owned, states = initial_states(state, starts, state_indices.tolist(), has_initial_state.tolist())
    states = states.to(compute_dtype)
    for part in rounds(starts, chosen, chunk_size, v.device):
        Q, K, V, b = operand(part.take(q)), part.take(k), part.take(values), part.take(beta)
        S = states[part.rows]
        eG, D = decays(part.take(g))
        keys = operand(K)
        T = operand(inverse(keys, b, D))
        U, W = T @ operand(b[..., None] * V), T @ operand((b * eG)[..., None] * K)
        X = operand(U - operand(W) @ operand(S).mT)
        read = eG[..., None] * (Q @ operand(S).mT) + operand((Q @ keys.mT) * D) @ X
        part.put(o, scale * read)
        to_end = D[..., -1, :, None]
        states[part.rows] = eG[..., -1, None, None] * S + X.mT @ operand(to_end * K)
    state[owned] = states.to(state.dtype)
    return o
