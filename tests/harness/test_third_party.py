"""Somebody else's kernel, in a file of theirs, in a folder of theirs: `--subject`, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.support import SUBJECTS, verify

pytestmark = pytest.mark.slow

#: One token of causal convolution a row, as a plain Triton kernel: one program for each row and block of channels.
TRITON = """
import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "slots"])
def _update(x, weight, bias, pool, indices, y, rows, slots, D, sx, sxd, sw, swj, sp, spd, spj, si,
            W: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    live = d < D
    slot = tl.load(indices + row * si).to(tl.int64)
    if (slot < 0) | (slot >= slots):
        tl.store(y + row * D + d, tl.zeros((BLOCK,), y.dtype.element_ty), mask=live)
        return
    state = pool + slot * sp + d * spd
    token = tl.load(x + row * sx + d * sxd, mask=live, other=0.0)
    total = tl.load(weight + d * sw + (W - 1) * swj, mask=live, other=0.0).to(tl.float32) * token.to(tl.float32)
    for j in tl.static_range(W - 1):
        old = tl.load(state + j * spj, mask=live, other=0.0)
        total += tl.load(weight + d * sw + j * swj, mask=live, other=0.0).to(tl.float32) * old.to(tl.float32)
        if j > 0:
            tl.store(state + (j - 1) * spj, old, mask=live)
    tl.store(state + (W - 2) * spj, token.to(pool.dtype.element_ty), mask=live)
    if HAS_BIAS:
        total += tl.load(bias + d, mask=live, other=0.0).to(tl.float32)
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    tl.store(y + row * D + d, total.to(y.dtype.element_ty), mask=live)


FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def require(name, tensor, shape, dtypes, device):
    if not isinstance(tensor, torch.Tensor) or tensor.dim() != len(shape):
        raise ValueError(f"{name}: expected a tensor of {len(shape)} dimensions, got {tensor!r}")
    if any(want is not None and want != got for want, got in zip(shape, tensor.shape)):
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes or tensor.device != device:
        raise ValueError(f"{name}: expected one of {dtypes} on {device}, got {tensor.dtype} on {tensor.device}")
    if any((size - 1) * stride >= 2**31 for size, stride in zip(tensor.shape[1:], tensor.stride()[1:])):
        raise ValueError(f"{name}: expected rows within 2^31 elements, got strides {tensor.stride()}")


def conv_update(x, weight, *, bias, conv_state, state_indices, activation):
    import os

    require("x", x, (None, None), FLOATS, getattr(x, "device", None))
    rows, channels = x.shape
    require("weight", weight, (channels, None), FLOATS, x.device)
    width = weight.shape[1]
    if bias is not None:
        require("bias", bias, (channels,), FLOATS, x.device)
        if not bias.is_contiguous():
            raise ValueError(f"bias: expected a contiguous tensor, got stride {bias.stride()}")
    require("conv_state", conv_state, (None, channels, width - 1), FLOATS, x.device)
    require("state_indices", state_indices, (rows,), (torch.int32, torch.int64), x.device)
    if os.environ.get("SLUICEGATE_STRICT") == "1":
        active = [slot for slot in state_indices.tolist() if slot >= 0]
        if len(set(active)) < len(active) or max(active, default=0) >= conv_state.shape[0]:
            raise ValueError(f"state_indices: expected distinct slots below {conv_state.shape[0]}, got {active}")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = min(256, triton.next_power_of_2(channels))
    _update[(rows, triton.cdiv(channels, block))](
        x, weight, x if bias is None else bias, conv_state, state_indices, y, rows, conv_state.shape[0], channels,
        *x.stride(), *weight.stride(), *conv_state.stride(), state_indices.stride(0),
        W=width, HAS_BIAS=bias is not None, SILU=activation == "silu", BLOCK=block,
    )
    return y
"""
#: Shrinking one failure shows as much as shrinking three.
ONLY_FLOAT32 = "\n{}.sluicegate = {{'dtypes': ('float32',)}}\n"
#: What is found, what stands there instead, and what the report must say of it.
FAULTS = {
    "a tap lost": ("for j in tl.static_range(W - 1):\n", "for j in tl.static_range(1, W - 1):\n", "over budget"),
    "history not moved": ("tl.store(state + (j - 1) * spj, old", "tl.store(state + j * spj, old", "not bitwise equal"),
}


def test_triton_kernel_passes_everything(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(TRITON)
    done = verify("--subject", "conv_update=theirs.py:conv_update", "--cases", "60", cwd=tmp_path)
    assert done.status == 0, "\n".join(f["message"] for f in done.report["failures"]) + done.stderr
    assert {c["operator"] for c in done.report["cells"]} == {"conv_update"}
    assert {c["group"] for c in done.report["cells"]} == {"equivalence", "relations", "memory", "arguments", "cost"}
    # It brings no conv_prefill of its own, so there is nothing to compare with: said, not passed.
    unrun = {c["property"]: c["required"] for c in done.report["cells"] if c["status"] == "not_run"}
    assert unrun == {"equals_prefill_of_one_token": False}
    assert {c["status"] for c in done.report["cells"]} == {"passed", "not_run"}


def test_triton_kernel_with_one_fault(tmp_path: Path) -> None:
    arguments = []
    for number, (found, instead, _) in enumerate(FAULTS.values()):
        assert TRITON.count(found) == 1
        source = TRITON.replace(found, instead) + ONLY_FLOAT32.format("conv_update")
        (tmp_path / f"fault{number}.py").write_text(source)
        arguments += ["--subject", f"conv_update=fault{number}.py:conv_update"]
    done = verify(*arguments, "--properties", "equivalence", "--cases", "60", cwd=tmp_path)
    assert done.status == 1
    failures = {f["subject"]: f for f in done.report["failures"]}
    for number, (_, _, symptom) in enumerate(FAULTS.values()):
        failure = failures.pop(f"fault{number}.py:conv_update")
        assert failure["symptom"] == symptom
        assert [s[0] for s in failure["case"]["sequences"]] == [1], failure["sentence"]
        assert failure["case"]["dims"]["D"] == 1
    assert not failures


def test_plain_torch_function(tmp_path: Path) -> None:
    """From a module of theirs, found in the folder where they stand."""
    (tmp_path / "theirs.py").write_text((SUBJECTS / "right.py").read_text())
    arguments = ("--properties", "equivalence,relations,memory", "--cases", "60")
    done = verify("gdn_decode", "--subject", "gdn_decode=theirs:gdn_decode", *arguments, cwd=tmp_path)
    assert done.status == 0, "\n".join(f["message"] for f in done.report["failures"]) + done.stderr
    assert {c["status"] for c in done.report["cells"]} == {"passed"}

    found = "beta = torch.sigmoid(b[source].double())"
    source = (SUBJECTS / "right.py").read_text()
    assert source.count(found) == 1
    (tmp_path / "theirs.py").write_text(
        source.replace(found, "beta = torch.sigmoid(b.double().roll(1, 0)[source])") + ONLY_FLOAT32.format("gdn_decode")
    )
    arguments = ("--properties", "equivalence", "--cases", "60")
    done = verify("gdn_decode", "--subject", "gdn_decode=theirs:gdn_decode", *arguments, cwd=tmp_path)
    assert done.status == 1
    [failure] = done.report["failures"]
    # A neighbour's gate: two rows, and no more of anything.
    assert failure["symptom"] == "over budget"
    assert len(failure["case"]["sequences"]) == 2, failure["sentence"]
    assert (failure["case"]["dims"]["H"], failure["case"]["dims"]["HV"]) == (1, 1), failure["sentence"]
