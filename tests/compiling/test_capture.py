"""What is taken down is what Triton would compile: same signature, same constants, same attributes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

#: In a process that compiles: the tests' own one interprets kernels where there is no GPU.
PROGRAM = """
import json, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from harness.compiling.capture import launches_of
from harness.compiling.device import ARCHITECTURES, present
from harness.subjects import load_target

function = load_target(sys.argv[1] + ":right")
kernel = load_target(sys.argv[1] + ":_copy_kernel.fn").__globals__["_copy_kernel"]
arch = ARCHITECTURES["sm_90"]
out = {}
for name, columns, offset in (("aligned", 64, 0), ("odd", 37, 0), ("unaligned", 64, 1)):
    x = torch.zeros(4 * columns + offset, dtype=torch.bfloat16)[offset:].view(4, columns)
    (launch,) = launches_of(function, (x, x), {}, arch)
    # Triton's own binder, on the real tensor of the same address.
    backend = make_backend(GPUTarget("cuda", arch.number, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    y = torch.empty_like(x)
    bound, specialization, _ = binder(x, y, x.numel(), BLOCK=64)
    options, signature, constants, attributes = kernel._pack_args(backend, {"BLOCK": 64}, bound, specialization, {})
    source = launch.source
    out[name] = {
        "signature": [launch.signature, signature],
        "constants": [str(source.constants), str(constants)],
        "attributes": [str(source.attrs), str(attributes)],
        "target": str(launch.target),
        "warps": launch.options.num_warps,
        "aligned": x.data_ptr() % 16 == 0,
    }
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def taken() -> dict[str, dict[str, object]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(HERE / "planted.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    data: dict[str, dict[str, object]] = json.loads(run.stdout)
    return data


@pytest.mark.parametrize("name", ["aligned", "odd", "unaligned"])
def test_specialisation_is_tritons(taken: dict[str, dict[str, object]], name: str) -> None:
    for what in ("signature", "constants", "attributes"):
        mine, tritons = taken[name][what]  # type: ignore[misc]
        assert mine == tritons
    assert taken[name]["aligned"] == (name != "unaligned")
    assert "arch=90" in str(taken[name]["target"])
    assert taken[name]["warps"] == 4


def test_the_three_differ(taken: dict[str, dict[str, object]]) -> None:
    """Or else the comparison above would hold for a specialisation that is always the same."""
    assert len({str(one["attributes"]) for one in taken.values()}) == 3
