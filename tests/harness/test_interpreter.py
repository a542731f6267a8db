"""bfloat16 under the interpreter: exact after the repair, and known to be wrong without it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from harness import interpreter
from tests.harness.support import ROOT

interpreted = pytest.mark.skipif(
    not interpreter.requested(),
    reason="Triton compiles for an NVIDIA GPU here; ci runs the interpreter's tests on a CPU",
)


def torch_bits(values: torch.Tensor) -> np.ndarray:
    return values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def nan_like(bits: np.ndarray) -> np.ndarray:
    return (bits & 0x7FFF) > 0x7F80


def test_every_pattern_widens_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    wide = interpreter.bfloat16_values(bits)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(wide.view(np.uint32), expected.view(np.uint32))


def test_every_pattern_survives_the_round_trip() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    back = interpreter.bfloat16_bits(interpreter.bfloat16_values(bits))
    numbers = ~nan_like(bits)
    assert np.array_equal(back[numbers], bits[numbers])
    assert bool(nan_like(back[~numbers]).all())


@pytest.mark.parametrize("kind", ["normal", "wide range", "subnormal", "ties", "special"])
def test_rounding_is_that_of_torch(kind: str) -> None:
    rng = np.random.default_rng(0)
    patterns = {
        "normal": rng.standard_normal(200_000, dtype=np.float32).view(np.uint32),
        "wide range": rng.integers(0, 2**32, 400_000, dtype=np.uint32),
        "subnormal": rng.integers(0, 2**23, 100_000, dtype=np.uint32),
        # Exactly between two neighbours, for every upper half: nearest even decides.
        "ties": (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000,
        "special": np.array(
            [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 1],
            dtype=np.uint32,
        ),
    }
    values = patterns[kind].view(np.float32)
    got, expected = interpreter.bfloat16_bits(values), torch_bits(torch.from_numpy(values.copy()))
    numbers = ~np.isnan(values)
    assert np.array_equal(got[numbers], expected[numbers])
    assert bool(nan_like(got[~numbers]).all())


@triton.jit
def _product(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left, right = tl.load(a + i[:, None] * K + k[None, :]), tl.load(b + k[:, None] * N + j[None, :])
    tl.store(out + i[:, None] * N + j[None, :], tl.dot(left, right, input_precision="ieee"))


@interpreted
@pytest.mark.parametrize("rows", [16, 32, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_product_is_the_true_sum_rounded_once(dtype: torch.dtype, rows: int) -> None:
    """BLAS adds up float32 in an order that depends on where a row lies and how many there are; bits were not a row's own."""
    assert interpreter.repair() is None
    draw = torch.Generator().manual_seed(rows)
    # Whole multiples of 2^-16: float64 holds every sum of their products exactly, and float32 does not.
    a, b = (
        (torch.randn(shape, generator=draw) * 2**16).round().div(2**16).to(dtype) for shape in ((rows, 128), (128, 32))
    )
    out = torch.empty(rows, 32)
    _product[(1,)](a, b, out, rows, 32, 128)
    assert torch.equal(out, (a.double() @ b.double()).float())


@interpreted
def test_probe_trusts_the_repaired_interpreter() -> None:
    assert interpreter.repair() is None
    assert interpreter.probe() == {}


def probe_in_a_process(before: str, **environment: str) -> dict[str, str]:
    script = f"{before}\nimport json\nfrom harness import interpreter\nprint(json.dumps(interpreter.probe()))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    import json

    return json.loads(done.stdout.splitlines()[-1])


@interpreted
def test_probe_distrusts_the_interpreter_as_shipped() -> None:
    found = probe_in_a_process("from harness import interpreter\ninterpreter.repair = lambda: None")
    assert set(found) == {"bfloat16"}
    assert "inexact" in found["bfloat16"]


@interpreted
def test_probe_notices_a_repair_that_was_undone() -> None:
    found = probe_in_a_process(
        "from harness import interpreter\n"
        "import triton.runtime.interpreter as upstream\n"
        "shipped = upstream._convert_float\n"
        "interpreter.repair()\n"
        "upstream._convert_float = shipped"
    )
    assert set(found) == {"bfloat16"}


@interpreted
def test_probe_looks_at_arithmetic_too() -> None:
    """Stores and loads may be exact where sums are done on the raw patterns."""
    found = probe_in_a_process(
        "from harness import interpreter\n"
        "from triton.runtime.interpreter import InterpreterBuilder\n"
        "shipped = InterpreterBuilder.binary_op\n"
        "interpreter.repair()\n"
        "InterpreterBuilder.binary_op = shipped"
    )
    assert set(found) == {"bfloat16"}


@interpreted
def test_probe_says_why_an_unknown_interpreter_is_not_repaired() -> None:
    found = probe_in_a_process("import triton.runtime.interpreter as upstream\ndel upstream._convert_float")
    # Without its conversion nothing runs at all in that version; the reason must reach the report.
    assert all("another shape" in reason for reason in found.values())
    assert "bfloat16" in found


@interpreted
def test_probe_notices_that_triton_came_first() -> None:
    found = probe_in_a_process(
        "import os\nos.environ['TRITON_INTERPRET'] = '0'\nimport triton\ntriton.knobs.runtime.interpret = False\n"
        "os.environ['TRITON_INTERPRET'] = '1'"
    )
    assert set(found) == {"float32", "float16", "bfloat16"}
    assert all("before TRITON_INTERPRET=1" in reason for reason in found.values())


def test_nothing_to_say_where_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    interpreter.probe.cache_clear()
    assert interpreter.probe() == {}
    interpreter.probe.cache_clear()
