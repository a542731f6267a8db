"""`late_device` compares all that a step is given; on a GPU its device is late indeed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import operators
from harness.context import Context
from harness.draws import draws
from harness.failure import Failure
from harness.faults import injection, model
from harness.strategies import CPU
from harness.subjects import load_target
from properties.test_engine import UNSAMPLED, late_body, recorded, unsampled
from serving.engine import Engine
from serving.engine_case import Action, EngineCase, Size
from serving.oracle import METADATA
from serving.recorder import Recorder
from serving.toy import HOST, INPUTS, REFERENCES

#: Nine tokens, two a step: four steps before the one that has a token chosen, then a decode.
CASE = EngineCase("engine", (Action("submit", 9, new=2),), Size(max_tokens=2))
#: Twelve steps before the one that has a token chosen.
LONG = CASE.with_(actions=(Action("submit", 25, new=2),))
OPERATOR = operators.get("engine")


def test_our_engine_brings_everything() -> None:
    late_body(Context(OPERATOR, Engine, HOST), CASE)


@pytest.mark.parametrize("name", [*INPUTS, *METADATA])
def test_one_number_that_is_wrong_is_seen(name: str) -> None:
    def careless(model: Any, size: Any) -> Engine:
        """An engine that gets one number of its second step wrong, unless it is the one that says what is right."""
        engine = Engine(model, size)
        if model.kernels is not REFERENCES:
            made, steps = engine._inputs.batch, []

            def batch(*arguments: Any) -> Any:
                steps.append(made(*arguments))
                if len(steps) == 2:
                    owner = steps[-1].metadata if name in METADATA else steps[-1]
                    wrong = getattr(owner, name).clone()
                    wrong.view(-1)[:1] = ~wrong.view(-1)[:1] if wrong.dtype == torch.bool else wrong.view(-1)[:1] - 1
                    steps[-1] = replace(
                        steps[-1],
                        **({"metadata": replace(owner, **{name: wrong})} if name in METADATA else {name: wrong}),
                    )
                return steps[-1]

            engine._inputs.batch = batch  # type: ignore[method-assign]
        return engine

    # Of a piece without its context's last token nothing is chosen, so that nothing of its logits can be wrong.
    case = CASE if name != "logit_rows" else CASE.with_(size=Size(max_tokens=5))
    with pytest.raises(Failure, match=rf"step 1, .*: {name} is") as caught:
        late_body(Context(OPERATOR, careless, HOST), case)
    assert caught.value.symptom == "wrong inputs"


def test_an_engine_that_takes_other_steps_is_seen() -> None:
    def hasty(model: Any, size: Any) -> Engine:
        return Engine(model, size if model.kernels is REFERENCES else replace(size, max_tokens=3))

    with pytest.raises(Failure, match="called 4 times on a device that is late, expected 6"):
        late_body(Context(OPERATOR, hasty, HOST), CASE)


def test_an_engine_that_never_ends_is_seen() -> None:
    def idle(model: Any, size: Any) -> Engine:
        engine = Engine(model, size)
        engine.step = lambda: None  # type: ignore[assignment,method-assign,return-value]
        return engine

    with pytest.raises(Failure, match="request 0 unfinished after 31 steps"):
        late_body(Context(OPERATOR, idle, HOST), CASE)


def test_nothing_makes_the_host_wait_at_first() -> None:
    """Each case begins with three steps at least that have no token chosen."""
    context = Context(OPERATOR, Engine, HOST)
    for case in draws(unsampled(CPU, "float32"), 40, seed=1):
        calls = recorded(context, case, Recorder(REFERENCES, HOST))
        assert [call["logit_rows"] for call in calls[:UNSAMPLED]] == [[]] * UNSAMPLED


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_memory_that_is_written_while_the_device_still_reads_it_is_seen(tmp_path: Path) -> None:
    (fault,) = model.select(model.load(), ids=["engine-staging-overwritten-in-flight"])
    gpu = torch.device("cuda")
    late_body(Context(OPERATOR, Engine, gpu), LONG)
    with injection.injected(fault, tmp_path) as target, pytest.raises(Failure, match="on a device that is late"):
        late_body(Context(OPERATOR, load_target(target), gpu), LONG)
