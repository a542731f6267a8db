"""What a request alone gets from the oracle's model: exactly from the toy, in float64 from a hybrid model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serving import toy
from serving.batch import StepBatch
from serving.caches import Caches
from serving.kernel_set import KernelSet
from serving.model import HybridModel

#: An engine's logits may be off by so many times the largest error of the model kernel on the same tokens, plus so many unit
#: roundoffs of the largest logit. Measured by tests/serving/test_truth.py: right engines use less than half of it.
FACTOR = 4.0
ULPS = 16.0


class ToyTruth:
    """Exact: no error is allowed."""

    def logits(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        return toy.alone(tokens).double(), torch.zeros(len(tokens), dtype=torch.float64)


@dataclass(frozen=True)
class Told:
    """What was found out before about one request."""

    rows: Tensor
    allowances: Tensor

    def logits(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.rows, self.allowances


class ModelTruth:
    """The model's weights, in float64 and with the oracle's kernels; beside it the model kernel.

    The model kernel, the same mathematics in float32 with the model's own dtype between operators, shows what error nobody can
    avoid. Errors go from token to token through the states, so the largest of the request counts, not that of the one row, which
    may be right by chance.
    """

    def __init__(self, model: HybridModel) -> None:
        weights = {name: weight.double() for name, weight in model.weights.items()}
        self.oracle = HybridModel(model.config, weights, KernelSet.named("oracle"))
        named = KernelSet.named("oracle", compute_dtype=torch.float32)
        self.model_kernel = HybridModel(model.config, model.weights, named)

    def logits(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        return next(self.told([tokens])).logits(tokens)

    def told(self, histories: Sequence[Sequence[int]]) -> Iterator[Told]:
        """The same for each of these, computed side by side: no sequence sees another in the references."""
        oracles, models = (passes(model, histories) for model in (self.oracle, self.model_kernel))
        for tokens, oracle, near in zip(histories, oracles, models, strict=True):
            allowed = allowance(near, oracle, self.model_kernel.dtype)
            yield Told(oracle.cpu(), allowed.expand(len(tokens)).cpu())


def allowance(near: Tensor, oracle: Tensor, dtype: torch.dtype) -> Tensor:
    """How far an engine of this dtype may be from the oracle's numbers where the model kernel has these."""
    error = (near.double() - oracle).abs().amax()
    floor = ULPS * torch.finfo(dtype).eps / 2 * oracle.abs().amax()
    return FACTOR * error + floor


def one_pass(model: HybridModel, tokens: Sequence[int], state_dtype: torch.dtype | None = None) -> Tensor:
    """Logits [tokens, vocabulary] of one context in memory of its own."""
    return passes(model, [tokens], state_dtype)[0]


def passes(
    model: HybridModel, histories: Sequence[Sequence[int]], state_dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Logits [tokens, vocabulary] of each context, in one step: a slot and a page for each."""
    lengths, device = [len(tokens) for tokens in histories], model.device
    longest, count = max(lengths), len(lengths)
    if state_dtype is None:
        state_dtype = torch.promote_types(model.dtype, torch.float32)
    caches = Caches.allocate(
        model.config,
        slots=count,
        pages=count,
        page_size=longest,
        dtype=model.dtype,
        state_dtype=state_dtype,
        device=device,
    )
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    owners = torch.repeat_interleave(torch.arange(count), torch.tensor(lengths)).to(device)
    builder = model.kernels.step_metadata(count, model.kernels.chunk_size, device)
    batch = StepBatch(
        tokens=torch.tensor([token for tokens in histories for token in tokens], device=device),
        positions=positions,
        metadata=builder.prepare(
            seq_lens=lengths, num_contexts=count, num_cached_tokens=[0] * count, state_slots=list(range(count))
        ),
        num_contexts=count,
        context_lens=lengths,
        write_slots=owners * longest + positions,
        page_tables=torch.arange(count, dtype=torch.int32, device=device)[:, None],
        lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
        max_length=longest,
        logit_rows=torch.arange(sum(lengths), device=device),
    )
    return model(batch, caches).split(lengths)
