"""How the compiler lays out the sum over a row must not depend on where x and z lie: that is what keeps a view's bits a copy's.

Compiled for a GPU that is not there, from the calls that would be made there, in a process without the interpreter.
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
from optimized.gated_norm import gated_rmsnorm

TOKENS, HEADS = 5, 2

def view(width, dtype, head_pad=0, row_pad=0, offset=0, step=1):
    head = width * step + head_pad
    row = HEADS * head + row_pad
    storage = torch.zeros(TOKENS * row + offset, dtype=dtype)
    return storage.as_strided((TOKENS, HEADS, width), (row, head, step), offset)

def compiled(x, z, width, arch):
    [launch] = launches_of(gated_rmsnorm, (x, z, torch.ones(width)), {}, architecture(arch))
    kernel = triton.compile(launch.source, target=launch.target, options=launch.options.__dict__)
    text = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (#.*)$", text, re.MULTILINE))
    # Named by position in the file: the layout itself is what counts.
    [name] = re.findall(r'"tt.reduce"[\s\S]*?\}\) : \(tensor<[^,]*, (#\w+)>\)', text)
    return layouts[name], len(re.findall(r"ld\.global\S*\.v4", kernel.asm["ptx"]))

found = []
for dtype, width, arch in json.loads(sys.argv[1]):
    dtype = getattr(torch, dtype)
    dense = view(width, dtype)
    others = [
        (view(width, dtype, head_pad=16, row_pad=32), dense),
        (dense, view(width, dtype, offset=1)),
        (view(width, dtype, head_pad=32 - width % 32, row_pad=1), view(width, dtype, head_pad=32 - width % 32)),
        (view(width, dtype, step=2), dense),
    ]
    found.append([compiled(x, z, width, arch) for x, z in ((dense, dense), *others)])
print(json.dumps(found))
"""

CASES = [
    ("bfloat16", 128, "sm_90"),
    ("float32", 128, "sm_90"),
    ("bfloat16", 20, "sm_90"),
    ("bfloat16", 130, "sm_90"),
    ("bfloat16", 128, "sm_80"),
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
    for case, (dense, *views) in zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert {layout for layout, _ in views} == {dense[0]}, case
        if case[1] == 128:
            # Two loads of 16 bytes a thread from x and two from z, as wide from views that allow it, and from them alone.
            aligned, odd, padded, spread = (wide for _, wide in views)
            assert dense[1] == aligned == 4, case
            assert odd < 4, case
            assert padded < 4, case
            assert spread < 4, case
