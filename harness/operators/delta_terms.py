"""What the chunked gated delta rule adds up, for the budget: sizes of terms, and how operand rounding spreads.

Both walk through a batch with the true state in float64 (`references.gdn_chunked` has the equations and the letters), so
that neither grows faster than what it describes: sums of |terms| that feed on sums of |terms| would explode with length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness import budget
from harness.batch import Batch, Result
from references.gdn import heads_of_values
from references.gdn_chunked import Round, decays, inverse, rounds

#: A size of terms that the budget turns into the smallest normal float32.
FLUSHED = budget.TINY[torch.float32] / (budget.COMPUTE_ULPS * budget.UNIT_ROUNDOFF[torch.float32])
#: The usual chunk. A shorter one adds up less at a time.
CHUNK = 64


@dataclass(frozen=True)
class Chunk:
    """The n-th chunks of A sequences, all heads, float64: Q, K [A, HV, C, K], V, X [A, HV, C, V], beta, G, eG [A, HV, C],
    D, T [A, HV, C, C], S [A, HV, V, K] at its start."""

    Q: Tensor
    K: Tensor
    V: Tensor
    beta: Tensor
    G: Tensor
    eG: Tensor
    D: Tensor
    T: Tensor
    W: Tensor
    X: Tensor
    S: Tensor

    @property
    def to_end(self) -> Tensor:
        """How much of what each token writes is left at the chunk's end [A, HV, C]."""
        return self.D[..., -1, :]

    @property
    def end_state(self) -> Tensor:
        return self.eG[..., -1, None, None] * self.S + self.X.mT @ (self.to_end[..., None] * self.K)


Step = Callable[[Chunk, Tensor], tuple[Tensor, Tensor]]


def magnitude(batch: Batch, scale: float) -> Result:
    """Sums of |terms|: of the state, every write k (x) delta ever made, decayed; of an output, their products with q.

    delta = beta v - beta S k is itself a difference, so both parts count. A decay exp(G_i - G_j) inherits the error of the
    exponent, in which up to a chunk of log decays was added up: such terms count 1 + |G_i| times, as in `GdnDecode`. And a
    GPU may flush a factor below the smallest normal number to zero, whatever it is multiplied with.
    """

    def step(chunk: Chunk, M: Tensor) -> tuple[Tensor, Tensor]:
        weight = 1 + chunk.G.abs()
        eG = chunk.eG * weight + FLUSHED
        D = (chunk.D * weight[..., None] + FLUSHED).tril(-1) + torch.eye(chunk.D.shape[-1], device=M.device)
        direct = chunk.beta[..., None] * chunk.V
        written = direct.abs() + weight[..., None] * (direct - chunk.X).abs()
        Q, K = chunk.Q.abs(), chunk.K.abs()
        read = eG[..., None] * (Q @ M.mT) + ((Q @ K.mT) * D) @ written
        return scale * read, eG[..., -1, None, None] * M + written.mT @ (D[..., -1, :, None] * K)

    return _accumulated(batch, torch.abs, step)


def operand_noise(batch: Batch, scale: float, dtype: torch.dtype) -> Result:
    """Root of the sum of squares of what one unit roundoff of each operand of each matrix product does to a result.

    The roundings are independent, so their effects add up in squares: of the state's elements, the inverse, its
    products, the masked scores and the corrections, where they enter a product, and of the corrections again wherever
    they are read. To first order; what the rule corrects later of an error in the state is not taken off.
    """
    unit, smallest = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal

    def rounded(x: Tensor) -> Tensor:
        """Squares; below the smallest normal number the spacing no longer shrinks. A zero has no error."""
        return torch.where(x == 0, 0.0, x.square().clamp(min=smallest**2))

    def step(chunk: Chunk, N: Tensor) -> tuple[Tensor, Tensor]:
        S, Q, K, T, X = (rounded(x) for x in (chunk.S, chunk.Q, chunk.K, chunk.T, chunk.X))
        W = rounded(chunk.W) + T @ rounded((chunk.beta * chunk.eG)[..., None] * chunk.K)
        of_X = X + T @ rounded(chunk.beta[..., None] * chunk.V) + W @ S.mT
        scores = (chunk.Q @ chunk.K.mT) * chunk.D
        # Whether they carry the scale when they are rounded matters where they are subnormal.
        of_scores = rounded(scale * scores) + scale**2 * chunk.D.square() * (Q @ K.mT)
        read = chunk.eG.square()[..., None] * (Q @ (S + N).mT) + scores.square() @ of_X
        to_end = chunk.to_end.square()[..., None] * K
        return scale**2 * read + of_scores @ X, chunk.eG[..., -1, None, None].square() * N + (of_X + X).mT @ to_end

    squares = _accumulated(batch, torch.zeros_like, step)
    return Result(
        tuple(unit * o.sqrt() for o in squares.outputs),
        tuple(None if s is None else unit * s.sqrt() for s in squares.states),
    )


def _accumulated(batch: Batch, first: Callable[[Tensor], Tensor], step: Step) -> Result:
    """Carry what ``first`` makes of the initial states through ``step`` (chunk, carried) -> (outputs, carried)."""
    wide = batch.plain(torch.float64)
    active = wide.active
    outputs = torch.zeros_like(wide.packed("v"))
    states: list[Tensor | None] = [None] * wide.size
    if active:
        shape = (wide.packed("v").shape[1], wide.packed("v").shape[2], wide.packed("k").shape[2])
        held = [outputs.new_zeros(shape) if s is None else s for s in (wide.states[i] for i in active)]
        true = torch.stack(held)
        carried = first(true)
        for part, chunk in _chunks(wide, active, true):
            read, carried[part.rows] = step(chunk, carried[part.rows])
            part.put(outputs, read)
        for row, i in enumerate(active):
            states[i] = carried[row]
    return Result(tuple(outputs.split(wide.lengths)), tuple(states))


def _chunks(wide: Batch, active: list[int], states: Tensor) -> Iterator[tuple[Round, Chunk]]:
    """The chunks of the active sequences; ``states`` [A, HV, V, K] goes along with them."""
    v, g, beta = (wide.packed(name) for name in ("v", "g", "beta"))
    inside = not wide.case.options.get("normalised_outside", False)
    q, k = heads_of_values(wide.packed("q"), wide.packed("k"), v.shape[1], torch.float64, normalise=inside)
    starts = [0, *itertools.accumulate(wide.lengths)]
    for part in rounds(starts, active, CHUNK, wide.device):
        Q, K, V, b, log = (part.take(x) for x in (q, k, v, beta, g))
        eG, D = decays(log)
        S, T = states[part.rows], inverse(K, b, D)
        W = T @ ((b * eG)[..., None] * K)
        X = T @ (b[..., None] * V) - W @ S.mT
        chunk = Chunk(Q, K, V, b, log.cumsum(-1), eG, D, T, W, X, S)
        yield part, chunk
        states[part.rows] = chunk.end_state
