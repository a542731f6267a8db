"""CPU tensors where kernels are compiled: the error says what to do, instead of one from deep inside Triton."""

from __future__ import annotations

import pytest
import torch
import triton

from harness import operators, strategies
from harness.draws import draws
from harness.memory import Arena
from harness.operators.base import TokenOperator
from harness.subjects import registered

KERNELS = ("conv_prefill", "conv_update", "gdn_decode", "gdn_prefill", "gated_rmsnorm", "moe_routing", "moe")


@pytest.mark.parametrize("name", KERNELS)
def test_a_cpu_needs_the_interpreter(name: str) -> None:
    operator = operators.get(name)
    assert isinstance(operator, TokenOperator)
    (subject,) = (one for one in registered(name) if one.name == "optimized")
    function = subject.load()
    device = torch.device("cpu")
    (case,) = draws(operator.cases(strategies.CPU, "float32"), 1, seed=5)
    call = operator.pack(operator.batch(case, device), Arena(device))
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = False
        with pytest.raises(ValueError, match=r"expected a CUDA device.* TRITON_INTERPRET=1 before the first import"):
            function(*call.arguments, **call.keywords)
