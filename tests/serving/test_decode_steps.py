"""A step of decodes alone can be captured in a CUDA graph: the host waits for nothing, and replays see new contents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.guards import HostSync, no_host_sync
from serving.batch import StepBatch
from serving.kernel_set import KernelSet
from serving.model import HybridModel
from serving.weights import random_weights, to
from tests.serving.configurations import MODEL_TYPES, configuration
from tests.serving.stepping import Piece, Request, Stepper

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")


def stepper(
    model_type: str, kernels: str = "optimized", device: torch.device = DEVICE
) -> tuple[Stepper, list[Request]]:
    """Two requests of 3 and 5 tokens in their caches."""
    config = configuration(model_type, 9)
    # Drawn on the CPU, so that every device has the same model.
    weights = to(random_weights(config, 1), device=device)
    stepped = Stepper(HybridModel(config, weights, KernelSet.named(kernels)))
    requests = [stepped.request(2, 12), stepped.request(6, 12)]
    stepped.step([Piece(requests[0], [1, 2, 3]), Piece(requests[1], [4, 5, 6, 7, 8])])
    return stepped, requests


def decodes(stepped: Stepper, requests: list[Request], token: int, padding: int) -> StepBatch:
    batch = stepped.batch([Piece(request, [token], context=False) for request in requests], padding)
    batch.max_length = 12
    batch.logit_rows = torch.arange(len(requests) + padding, device=stepped.model.device)
    return batch


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_host_waits_for_nothing(model_type: str) -> None:
    stepped, requests = stepper(model_type)
    batch = decodes(stepped, requests, 3, padding=1)
    with no_host_sync(DEVICE):
        stepped.model(batch, stepped.caches)


def test_waiting_would_be_noticed() -> None:
    """The references wait all the time."""
    stepped, requests = stepper("qwen3_next", "references", CPU)
    batch = decodes(stepped, requests, 3, padding=1)
    with pytest.raises(HostSync), no_host_sync(CPU):
        stepped.model(batch, stepped.caches)


def tensors(batch: StepBatch) -> list[Tensor]:
    """What a captured step reads: everything else is a number on the host."""
    names = ("tokens", "positions", "write_slots", "page_tables", "lengths", "logit_rows")
    return [*(getattr(batch, name) for name in names), batch.metadata.state_indices]


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == CPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_replays_compute_what_eager_steps_do(model_type: str) -> None:
    """Captured with all rows padding, then replayed with two decodes, then with one of them and a padding row."""
    eager, requests = stepper(model_type)
    graphed, twins = stepper(model_type)
    static = decodes(graphed, [], 0, padding=3)
    static.page_tables = torch.zeros(3, 3, dtype=torch.int32, device=DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graphed.model(static, graphed.caches)  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = graphed.model(static, graphed.caches)
    for token, count in ((3, 2), (4, 2), (5, 1)):
        expected = eager.model(decodes(eager, requests[:count], token, 3 - count), eager.caches)
        for target, source in zip(
            tensors(static), tensors(decodes(graphed, twins[:count], token, 3 - count)), strict=True
        ):
            target.copy_(source)
        graph.replay()
        torch.testing.assert_close(logits[:count], expected[:count], rtol=1e-5, atol=1e-5)
        for request in (*requests[:count], *twins[:count]):
            request.tokens.append(token)


def test_bfloat16() -> None:
    """Weights, activations and pages in bfloat16 and states in float32, beside the same weights in float64."""
    config = configuration("qwen3_5_text", 9)
    rounded = random_weights(config, 1, torch.bfloat16)
    found = []
    for dtype, state in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        model = HybridModel(config, to(rounded, dtype), KernelSet.named("references"))
        stepped = Stepper(model, state_dtype=state)
        request = stepped.request(2, 12)
        logits = stepped.step([Piece(request, [1, 2, 3, 4])]) + stepped.step([Piece(request, [5], context=False)], 1)
        found.append(torch.cat(logits))
    assert found[1].dtype == torch.float32
    error = ((found[1] - found[0]).abs().max() / found[0].abs().max()).item()
    print(f"bfloat16 error {error:.1e}")
    assert error < 0.05
