"""`late_device` compares all that a step is given; on a GPU its device is late indeed."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from harness import operators
from harness.context import Context
from harness.failure import Failure
from properties.test_engine import LATE, late_body
from serving.engine import Engine
from serving.engine_case import Action, EngineCase, Size
from serving.graphs import INPUTS
from serving.recorder import Recorder
from serving.toy import HOST, Toy

#: Nine tokens, two a step: four steps before the one that has a token chosen, then a decode.
CASE = EngineCase("engine", (Action("submit", 9, new=2),), Size(max_tokens=2))
OPERATOR = operators.get("engine")


def test_our_engine_brings_everything() -> None:
    late_body(Context(OPERATOR, Engine, HOST), CASE)


@pytest.mark.parametrize("name", INPUTS)
def test_one_number_that_is_wrong_is_seen(name: str) -> None:
    def careless(model: Any, settings: Any) -> Engine:
        """An engine that gets one number of its second step wrong, unless it is the one that says what is right."""
        engine = Engine(model, settings)
        if model.kernels is not Toy.kernels:
            made, steps = engine._inputs.batch, []

            def batch(*arguments: Any) -> Any:
                steps.append(made(*arguments))
                if len(steps) == 2:
                    getattr(steps[-1], name).view(-1)[:1] -= 1
                return steps[-1]

            engine._inputs.batch = batch  # type: ignore[method-assign]
        return engine

    # Of a piece without its context's last token nothing is chosen, so that nothing of its logits can be wrong.
    case = CASE if name != "logit_rows" else CASE.with_(size=Size(max_tokens=5))
    with pytest.raises(Failure, match=rf"step 1, .*: {name} is") as caught:
        late_body(Context(OPERATOR, careless, HOST), case)
    assert caught.value.symptom == "wrong metadata"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_host_runs_ahead_of_a_late_device() -> None:
    """All pieces of a context are on their way before the device has come to the second."""
    from serving.kernel_set import KernelSet

    def timed(cycles: int) -> tuple[float, float]:
        gpu = torch.device("cuda")
        recorder = Recorder(KernelSet.named("optimized").replaced(chunk_size=4), gpu, cycles)
        engine = Engine(recorder, CASE.size.settings(0))
        for request in CASE.requests(Toy.config.vocab_size):
            engine.submit(request)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(4):
            engine.step()
        host = time.perf_counter() - start
        torch.cuda.synchronize()
        return host, time.perf_counter() - start

    timed(0)
    host, device = timed(LATE)
    # Four waits of some 10 ms each; a host that waited for one of them would have taken a quarter of the time at least.
    assert host < device / 4
