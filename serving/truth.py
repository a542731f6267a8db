"""What a request alone gets from the oracle's model: exactly from the toy, in float64 from a hybrid model."""

from __future__ import annotations

from collections.abc import Sequence

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


class ModelTruth:
    """The model's weights, in float64 and with the oracle's kernels; beside it the model kernel.

    The model kernel, the references in the model's own dtype, shows what error nobody can avoid. Errors go from token to
    token through the states, so the largest of the request counts, not that of the one row, which may be right by chance.
    """

    def __init__(self, model: HybridModel) -> None:
        weights = {name: weight.double() for name, weight in model.weights.items()}
        self.oracle = HybridModel(model.config, weights, KernelSet.named("oracle"))
        named = KernelSet.named("references", compute_dtype=torch.float32)
        self.model_kernel = HybridModel(model.config, model.weights, named)

    def logits(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        oracle = one_pass(self.oracle, tokens).double()
        error = (one_pass(self.model_kernel, tokens).double() - oracle).abs().amax()
        floor = ULPS * torch.finfo(self.model_kernel.dtype).eps / 2 * oracle.abs().amax()
        return oracle.cpu(), (FACTOR * error + floor).expand(len(tokens)).cpu()


def one_pass(model: HybridModel, tokens: Sequence[int], state_dtype: torch.dtype | None = None) -> Tensor:
    """Logits [tokens, vocabulary] of one context in memory of its own: one slot, one page."""
    count, device = len(tokens), model.device
    if state_dtype is None:
        state_dtype = torch.promote_types(model.dtype, torch.float32)
    caches = Caches.allocate(
        model.config, slots=1, pages=1, page_size=count, dtype=model.dtype, state_dtype=state_dtype, device=device
    )
    places = torch.arange(count, device=device)
    builder = model.kernels.step_metadata(1, model.kernels.chunk_size, device)
    batch = StepBatch(
        tokens=torch.tensor(tokens, device=device),
        positions=places,
        metadata=builder.prepare(seq_lens=[count], num_contexts=1, num_cached_tokens=[0], state_slots=[0]),
        num_contexts=1,
        context_lens=[count],
        write_slots=places,
        page_tables=torch.zeros((1, 1), dtype=torch.int32, device=device),
        lengths=torch.tensor([count], dtype=torch.int32, device=device),
        max_length=count,
        logit_rows=places,
    )
    return model(batch, caches)
