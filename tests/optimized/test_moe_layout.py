"""Row by row, the order of a sum must not depend on where tokens and weights lie, nor on who routes: so a view has a copy's bits.

Compiled for a GPU that is not there, from the calls that would be made there, in a process without the interpreter. Products
of tiles go through matrix units, whose sums do not depend on how the operands were loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = r"""
import json, re, sys
import torch, triton
from harness.compiling.capture import launches_of
from harness.compiling.device import architecture
from optimized import moe

TOKENS, EXPERTS, TOP_K = 3, 6, 3

def view(width, dtype, pad=0, offset=0, step=1):
    row = width * step + pad
    storage = torch.zeros(TOKENS * row + offset, dtype=dtype)
    return storage.as_strided((TOKENS, width), (row, step), offset)

def sums(function, arguments, keywords, arch):
    found = {}
    for launch in launches_of(function, arguments, keywords, architecture(arch)):
        kernel = triton.compile(launch.source, target=launch.target, options=launch.options.__dict__)
        text = kernel.asm["ttgir"]
        layouts = dict(re.findall(r"^(#\w+) = (#.*)$", text, re.MULTILINE))
        # Weights' sums over places have one row; those of products are tensors of float32 with several.
        reduced = re.findall(r'"tt.reduce"[\s\S]*?\}\) : \(tensor<(\d+x[\dx]+)xf32, (#\w+)>\)', text)
        found[launch.kernel] = [(shape, layouts[name]) for shape, name in reduced if not shape.startswith("1x")]
    return found

answers = []
for dtype, hidden, size, arch in json.loads(sys.argv[1]):
    dtype = getattr(torch, dtype)
    weights = torch.zeros(EXPERTS, 2 * size, hidden, dtype=dtype), torch.zeros(EXPERTS, hidden, size, dtype=dtype)
    routing = {"top_k": TOP_K, "method": "renormalize"}
    logits = view(EXPERTS, dtype)
    dense = sums(moe.moe, (view(hidden, dtype), logits, *weights), routing, arch)
    others = [
        sums(moe.moe, (view(hidden, dtype, **of_x), view(EXPERTS, dtype, **of_logits), *weights), routing, arch)
        for of_x, of_logits in (
            ({"pad": 1}, {}),
            ({"offset": 1}, {"pad": 3, "offset": 1}),
            ({"pad": 16, "offset": 8}, {"pad": 10}),
            ({"step": 2}, {"step": 2}),
        )
    ]
    for pad, offset in ((0, 1), (1, 0), (3, 8)):
        # Experts at odd distances, or all of them at an odd address.
        moved = []
        for weight in weights:
            experts, *inner = weight.shape
            pitch = inner[0] * inner[1] + pad
            storage = torch.zeros(experts * pitch + offset, dtype=dtype)
            moved.append(storage.as_strided(weight.shape, (pitch, inner[1], 1), offset))
        others.append(sums(moe.moe, (view(hidden, dtype), logits, *moved), routing, arch))
    ids = torch.zeros(TOKENS, TOP_K, dtype=torch.int32)
    others.append(sums(moe.moe_experts, (view(hidden, dtype), ids, ids.float(), *weights), {}, arch))
    answers.append([dense, *others])
print(json.dumps(answers))
"""

CASES = [
    ("bfloat16", 2048, 512, "sm_90"),
    ("float32", 2048, 512, "sm_90"),
    ("bfloat16", 40, 20, "sm_90"),
    ("bfloat16", 64, 16, "sm_80"),
]


@pytest.mark.slow
def test_every_view_has_the_layout_of_a_copy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for case, (dense, *others) in zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        # gate and up in one kernel, down in the other
        assert {kernel: len(found) for kernel, found in dense.items()} == {
            "few_gate_up_kernel": 2,
            "few_down_kernel": 1,
        }, case
        for other in others:
            assert other == dense, case
