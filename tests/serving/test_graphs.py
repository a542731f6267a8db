"""Replays read what was loaded and nothing else; making a graph touches no request."""

from __future__ import annotations

import pytest
import torch

from serving.batch import StepBatch
from serving.caches import Caches
from serving.graphs import INPUTS, METADATA, DecodeGraphs
from serving.request import Request
from tests.serving.engines import TOY, engine, request


class Spy:
    """A model that keeps copies of what it was given."""

    def __init__(self) -> None:
        self.seen: list[dict[str, list[int]]] = []

    def __call__(self, batch: StepBatch, caches: Caches) -> torch.Tensor:
        fields = {name: getattr(batch, name) for name in INPUTS}
        fields |= {name: getattr(batch.metadata, name) for name in METADATA}
        self.seen.append({name: field.tolist() for name, field in fields.items()})
        return TOY(batch, caches)


def decode_batches(count: int) -> tuple[list[StepBatch], Caches]:
    """Steps of two decodes, as an engine makes them."""
    served, batches = engine(graph_sizes=(2,)), []
    run = served.graphs.run

    def kept(batch: StepBatch) -> tuple[torch.Tensor, StepBatch]:
        if not batch.num_contexts:
            batches.append(batch)
        return run(batch)

    served.graphs.run = kept  # type: ignore[method-assign]
    for name in ("a", "b"):
        served.submit(request(name, 3, new=count + 1))
    served.run()
    return batches, served.caches


def test_a_replay_sees_all_of_its_step() -> None:
    batches, caches = decode_batches(3)
    eager, replayed = Spy(), Spy()
    graphs = DecodeGraphs(replayed, caches, "emulated", (2,), 32)
    for batch in batches:
        eager(batch, caches)
        graphs.run(batch)
    warm_up, *steps = replayed.seen
    assert steps == eager.seen
    assert warm_up["state_indices"] == warm_up["write_slots"] == [-1, -1]
    assert warm_up["lengths"] == [0, 0]
    assert (graphs.captured, graphs.replays) == ([2], 3)


def test_making_a_graph_touches_no_slot_and_no_page() -> None:
    batches, caches = decode_batches(1)
    before = [pool.clone() for pool in (*caches.conv, *caches.delta, *caches.keys, *caches.values)]
    DecodeGraphs(TOY, caches, "emulated", (2,), 32)._capture(batches[0])
    after = [*caches.conv, *caches.delta, *caches.keys, *caches.values]
    assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(after, before, strict=True))


def test_contexts_and_other_sizes_run_eagerly() -> None:
    served = engine(graph_sizes=(2,), graphs="emulated", max_batch_size=3)
    for name in ("a", "b", "c"):
        served.submit(request(name, 2, new=3))
    reports = [served.step() for _ in range(3)]
    assert [(len(r.rows), r.padding, r.replayed) for r in reports] == [(3, 0, False)] * 3
    assert served.unfinished == []
    served.submit(request("d", 1, new=2))
    reports = [served.step() for _ in range(2)]
    assert [(len(r.rows), r.padding, r.replayed) for r in reports] == [(1, 0, False), (1, 1, True)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_graph_answers_as_eager_steps_do() -> None:
    """Within the budget: a graph's attention is ready for longer requests, and sums in another order."""
    from properties.test_engine import TINY
    from serving.engine import Engine
    from serving.kernel_set import KernelSet
    from serving.model import HybridModel
    from serving.truth import ModelTruth
    from serving.weights import random_weights
    from tests.serving.engines import settings

    weights = random_weights(TINY, 0, torch.float32, torch.device("cuda"))
    model = HybridModel(TINY, weights, KernelSet.named("optimized"))
    asked = [Request(str(n), tuple((n + 5 * i) % 24 for i in range(3 + n)), 8) for n in range(4)]
    truth = ModelTruth(model)
    for graphs in ("off", "cuda"):
        served = Engine(model, settings(graph_sizes=(1, 2, 4), graphs=graphs, state_dtype=torch.float32))
        answers = served.run(asked)
        assert bool(served.graphs.captured) == (graphs == "cuda")
        for one in asked:
            logits, allowed = truth.logits([*one.prompt, *answers[one.id]])
            first = len(one.prompt) - 1
            got = torch.stack(served.requests[one.id].logits).double()
            assert ((got - logits[first:-1]).abs().amax(1) <= allowed[first:-1]).all()
