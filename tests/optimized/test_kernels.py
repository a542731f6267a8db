"""The Triton kernels against the float64 references on a few ragged batches, and the bitwise promises between them.

On a CUDA device where there is one, under Triton's interpreter otherwise. The wide search is the property suites' job.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import references.causal_conv
import references.gated_norm
import references.gdn
from harness import interpreter
from optimized import causal_conv, gated_norm, gdn_decode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Relative error of a whole tensor: a rounding of the output, with a little room.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
# On the device at once: moving a strided tensor there makes it dense.
zeros = functools.partial(torch.zeros, device=DEVICE)
RAGGED = [0, 1, 2, 3, 5, 70, 0, 33]


@pytest.fixture(autouse=True)
def _exact_interpreter() -> None:
    """bfloat16 is rounded as hardware rounds it; see `harness.interpreter`."""
    interpreter.repair()


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def starts_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)


def ints(values: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def flags(values: list[bool]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool, device=DEVICE)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    kind = torch.int32 if left.dtype == torch.float32 else torch.int16
    return torch.equal(left.contiguous().view(kind), right.contiguous().view(kind))


# -- convolution ------------------------------------------------------------------------------------------------------


def conv_batch(dtype: torch.dtype, width: int, lengths: list[int] = RAGGED, channels: int = 37) -> dict[str, Any]:
    """x with a row pitch, slots out of order in a padded pool, every second sequence fresh over a slot full of NaN."""
    count = len(lengths)
    tokens = sum(lengths)
    pool = randn(count + 3, channels + 1, width - 1, dtype=dtype)[:, :channels]
    slots = [(3 * n + 1) % (count + 3) for n in range(count)] if (count + 3) % 3 else list(reversed(range(count)))
    resumed = [n % 2 == 1 for n in range(count)]
    for slot, keep in zip(slots, resumed, strict=True):
        if not keep:
            pool[slot] = float("nan")
    return {
        "x": randn(tokens, channels + 5, dtype=dtype)[:, 3 : 3 + channels],
        "weight": randn(channels, width, dtype=dtype, seed=1),
        "bias": randn(channels, seed=2),
        "conv_state": pool,
        "cu_seqlens": starts_of(lengths),
        "state_indices": ints(slots),
        "has_initial_state": flags(resumed),
        "activation": "silu",
    }


def run_conv(batch: dict[str, Any], **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    call = {**batch, **changes}
    pool = call.pop("conv_state").clone()
    x, weight = call.pop("x"), call.pop("weight")
    return causal_conv.conv_prefill(x, weight, conv_state=pool, **call), pool


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv_prefill_equals_the_reference(dtype: torch.dtype, width: int) -> None:
    batch = conv_batch(dtype, width)
    batch["state_indices"][3] = -5
    y, pool = run_conv(batch)
    want_pool = batch["conv_state"].double()
    x, weight = batch.pop("x").double(), batch.pop("weight").double()
    want = references.causal_conv.conv_prefill(x, weight, **{**batch, "conv_state": want_pool})
    assert error(y, want) < TOLERANCE[dtype]
    start, end = batch["cu_seqlens"][3:5].tolist()
    assert bool((y[start:end] == 0).all())
    # A copy: exact, except that NaN in slots that nobody touched has no one value.
    torch.testing.assert_close(pool.double(), want_pool, rtol=0, atol=0, equal_nan=True)


def test_conv_prefill_zeroes_tokens_of_no_sequence() -> None:
    batch = conv_batch(torch.float32, 4, [3, 4])
    y, _ = run_conv(batch, x=randn(70, 37))
    assert bool((y[7:] == 0).all())
    assert not bool((y[:7] == 0).any())


def test_conv_prefill_with_many_sequences_searches_in_rounds() -> None:
    batch = conv_batch(torch.float32, 3, [1] * 300, channels=2)
    y, pool = run_conv(batch)
    want_pool = batch["conv_state"].double()
    x, weight = batch.pop("x").double(), batch.pop("weight").double()
    want = references.causal_conv.conv_prefill(x, weight, **{**batch, "conv_state": want_pool})
    assert error(y, want) < 1e-6
    torch.testing.assert_close(pool.double(), want_pool, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_conv_bits_do_not_depend_on_how_tokens_arrive(dtype: torch.dtype) -> None:
    """One prefill = prefill in pieces = token by token, in y and in the state."""
    batch = conv_batch(dtype, 4, [11])
    batch.update(state_indices=ints([2]), has_initial_state=flags([True]), conv_state=randn(4, 37, 3, dtype=dtype))
    y, pool = run_conv(batch)

    pieces, at = [], batch["conv_state"].clone()
    for start, end in itertools.pairwise([0, 1, 3, 3, 11]):
        part, at = run_conv(batch, x=batch["x"][start:end], conv_state=at, cu_seqlens=starts_of([end - start]))
        pieces.append(part)
    assert same_bits(torch.cat(pieces), y)
    assert same_bits(at, pool)

    common = {key: batch[key] for key in ("bias", "state_indices", "activation")}
    one_pool = batch["conv_state"].clone()
    rows = [
        causal_conv.conv_update(batch["x"][t : t + 1], batch["weight"], conv_state=one_pool, **common)
        for t in range(11)
    ]
    assert same_bits(torch.cat(rows), y)
    assert same_bits(one_pool, pool)


def test_conv_update_equals_the_reference_and_honours_an_index_stride() -> None:
    x, weight, pool = randn(5, 37), randn(37, 4), randn(9, 37, 3)
    slots = ints([7, 0, -2, 0, 3, 0, 0, 0, 8, 0], torch.int64).view(5, 2)[:, 0]
    want_pool = pool.double()
    y = causal_conv.conv_update(x, weight, conv_state=pool, state_indices=slots, activation=None)
    want = references.causal_conv.conv_update(
        x.double(), weight.double(), bias=None, conv_state=want_pool, state_indices=slots, activation=None
    )
    assert error(y, want) < 1e-6
    torch.testing.assert_close(pool.double(), want_pool, rtol=0, atol=0)


# -- decode -----------------------------------------------------------------------------------------------------------


def decode_batch(
    dtype: torch.dtype, state_dtype: torch.dtype, batch: int, heads: tuple[int, int], dims: tuple[int, int]
) -> dict[str, Any]:
    """q, k, v and a, b are column slices at odd offsets of two projections; gates reach their ends."""
    (H, HV), (K, V) = heads, dims
    q, k, v = randn(batch, 2 * H * K + HV * V + 3, dtype=dtype)[:, 1:-2].split([H * K, H * K, HV * V], dim=1)
    a, b = (5 * randn(batch, 2 * HV + 1, dtype=dtype, seed=1))[:, 1:].chunk(2, dim=1)
    a[0, 0], b[0, 0], a[-1, -1], b[-1, -1] = -200, -200, 50, 200
    return {
        "q": q.view(batch, H, K),
        "k": k.view(batch, H, K),
        "v": v.view(batch, HV, V),
        "a": a,
        "b": b,
        "A_log": randn(HV),
        "dt_bias": randn(HV, dtype=dtype),
        "state": randn(batch + 3, HV, V, K, dtype=state_dtype),
        "state_indices": ints([(2 * n + 1) % (batch + 3) for n in range(batch)] if batch % 2 == 0 else [*range(batch)]),
    }


def run_decode(
    batch: dict[str, Any], function: Callable[..., torch.Tensor] = gdn_decode.gdn_decode, **changes: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    call = {**batch, **changes}
    state = call.pop("state").clone()
    q, k, v = call.pop("q"), call.pop("k"), call.pop("v")
    return function(q, k, v, state=state, **call), state


@pytest.mark.parametrize(("heads", "dims"), [((2, 4), (32, 48)), ((1, 1), (128, 100)), ((2, 6), (7, 16))])
@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
    ids=str,
)
def test_gdn_decode_equals_the_reference(
    dtype: torch.dtype, state_dtype: torch.dtype, heads: tuple[int, int], dims: tuple[int, int]
) -> None:
    batch = decode_batch(dtype, state_dtype, 3, heads, dims)
    batch["state_indices"][1] = -1
    o, state = run_decode(batch)
    wide = {name: batch[name].double() for name in ("q", "k", "v", "state")}
    want, want_state = run_decode({**batch, **wide}, references.gdn.gdn_decode)
    assert error(o, want) < max(TOLERANCE[dtype], 2e-6)
    assert error(state, want_state) < TOLERANCE[state_dtype]
    assert bool((o[1] == 0).all())


def test_gdn_decode_rows_do_not_depend_on_their_batch() -> None:
    batch = decode_batch(torch.bfloat16, torch.float32, 4, (2, 4), (32, 48))
    o, state = run_decode(batch)
    per_row = ("q", "k", "v", "a", "b", "state_indices")
    at, rows = batch["state"], []
    for n in range(4):
        alone, at = run_decode(batch, state=at, **{name: batch[name][n : n + 1] for name in per_row})
        rows.append(alone)
    assert same_bits(torch.cat(rows), o)
    assert same_bits(at, state)
    dense, dense_state = run_decode(batch, **{name: batch[name].contiguous() for name in per_row})
    assert same_bits(dense, o)
    assert same_bits(dense_state, state)


# -- gated norm -------------------------------------------------------------------------------------------------------


def norm_batch(dtype: torch.dtype, tokens: int, heads: int, width: int) -> dict[str, Any]:
    """x has gaps between its tokens; z is a column slice at an odd offset; gates reach their ends, and one row is zero."""
    x = randn(tokens, heads * width + 3, dtype=dtype)[:, 3:].view(tokens, heads, width)
    z = 3 * randn(tokens, 2 * heads * width + 1, dtype=dtype, seed=1)[:, heads * width + 1 :].view(tokens, heads, width)
    x[0, -1], z[0, 0, 0], z[-1, -1, -1] = 0, -1e4, 1e3
    return {"x": x, "z": z, "weight": randn(width, seed=2)}


def run_norm(batch: dict[str, Any], **changes: Any) -> torch.Tensor:
    call = {**batch, **changes}
    x, z, weight = call.pop("x"), call.pop("z"), call.pop("weight")
    return gated_norm.gated_rmsnorm(x, z, weight, **call)


@pytest.mark.parametrize(("heads", "width"), [(3, 1), (2, 20), (3, 128), (2, 130), (1, 1024)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_rmsnorm_equals_the_reference(dtype: torch.dtype, heads: int, width: int) -> None:
    batch = norm_batch(dtype, 19, heads, width)
    want = references.gated_norm.gated_rmsnorm(*(t.double() for t in batch.values()))
    y = run_norm(batch)
    assert (y.dtype, y.is_contiguous()) == (dtype, True)
    assert error(y, want) < TOLERANCE[dtype]
    assert bool((y[0, -1] == 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_rmsnorm_bits_depend_on_the_row_alone(dtype: torch.dtype) -> None:
    """Alone or in a batch, in views of any alignment or in copies, with a last dimension that is no unit stride."""
    batch = norm_batch(dtype, 19, 3, 64)
    y = run_norm(batch)
    alone = [run_norm(batch, x=batch["x"][t : t + 1], z=batch["z"][t : t + 1]) for t in range(19)]
    assert same_bits(torch.cat(alone), y)
    assert same_bits(run_norm(batch, x=batch["x"].contiguous(), z=batch["z"].contiguous()), y)
    heads = [run_norm(batch, x=batch["x"][:, h : h + 1], z=batch["z"][:, h : h + 1]) for h in range(3)]
    assert same_bits(torch.cat(heads, dim=1), y)
    spread = zeros(19, 3, 128, dtype=dtype)[:, :, ::2]
    assert same_bits(run_norm(batch, x=spread.copy_(batch["x"])), y)


@pytest.mark.parametrize("shape", [(0, 3, 8), (4, 0, 8)])
def test_gated_rmsnorm_of_nothing(shape: tuple[int, int, int]) -> None:
    assert gated_norm.gated_rmsnorm(zeros(shape), zeros(shape), zeros(8)).shape == shape


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", zeros(114, 36)),
        ("x", zeros(114, 37, dtype=torch.float64)),
        ("weight", zeros(37, 5)),
        ("bias", zeros(74)[::2]),
        ("conv_state", zeros(11, 37, 2)),
        ("cu_seqlens", zeros(8, dtype=torch.int32)),
        ("state_indices", zeros(8)),
        ("has_initial_state", zeros(8, dtype=torch.int32)),
        ("activation", "gelu"),
    ],
)
def test_conv_refuses_before_it_writes(name: str, value: Any) -> None:
    batch = conv_batch(torch.float32, 4)
    pool = batch["conv_state"].clone()
    call = {**batch, name: value}
    with pytest.raises(ValueError, match="got"):
        causal_conv.conv_prefill(call.pop("x"), call.pop("weight"), **call)
    torch.testing.assert_close(batch["conv_state"], pool, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("q", zeros(3, 2, 31)),
        ("v", zeros(3, 3, 48)),
        ("a", zeros(3, 5)),
        ("A_log", zeros(8)[::2]),
        ("state", zeros(6, 4, 32, 48)),
        ("state_indices", zeros(3)),
        ("scale", "1"),
    ],
)
def test_decode_refuses_before_it_writes(name: str, value: Any) -> None:
    batch = decode_batch(torch.float32, torch.float32, 3, (2, 4), (32, 48))
    state = batch["state"].clone()
    call = {**batch, name: value}
    with pytest.raises(ValueError, match="got"):
        gdn_decode.gdn_decode(call.pop("q"), call.pop("k"), call.pop("v"), **call)
    assert same_bits(batch["state"], state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", zeros(3, 8)),
        ("x", zeros(3, 2, 8, dtype=torch.float64)),
        ("z", zeros(3, 1, 8)),
        ("z", zeros(3, 2, 8, dtype=torch.float16)),
        ("weight", zeros(7)),
        ("weight", zeros(16)[::2]),
        ("weight", zeros(8, dtype=torch.int32)),
        ("eps", 0.0),
        ("eps", float("nan")),
        ("eps", "1e-6"),
        ("eps", True),
    ],
)
def test_gated_rmsnorm_refuses_and_names_the_argument(name: str, value: Any) -> None:
    named = r"^(x|z|weight): got" if name == "x" else rf"^{name}: got"
    with pytest.raises(ValueError, match=named):
        run_norm(norm_batch(torch.float32, 3, 2, 8), **{name: value})


@pytest.mark.parametrize("width", [0, 1025])
def test_gated_rmsnorm_refuses_a_width_that_no_tile_has(width: int) -> None:
    with pytest.raises(ValueError, match=rf"^x: got V = {width}, expected 1 to 1024"):
        gated_norm.gated_rmsnorm(zeros(2, 1, width), zeros(2, 1, width), zeros(width))


def test_gated_rmsnorm_refuses_more_rows_than_it_can_number() -> None:
    rows = zeros(1, 1, 1).expand(2**20, 2**11, 1)
    with pytest.raises(ValueError, match=r"^x: got 1048576 x 2048 rows"):
        gated_norm.gated_rmsnorm(rows, rows, zeros(1))


def test_strict_mode_reads_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_STRICT", "1")
    batch = conv_batch(torch.float32, 4)
    with pytest.raises(ValueError, match="cu_seqlens"):
        run_conv(batch, cu_seqlens=starts_of(RAGGED).flip(0))
    with pytest.raises(ValueError, match="cu_seqlens"):
        run_conv(batch, cu_seqlens=starts_of([*RAGGED[:-1], 999]))
    with pytest.raises(ValueError, match="state_indices"):
        run_conv(batch, state_indices=ints([1] * len(RAGGED)))
    with pytest.raises(ValueError, match="max_seqlen"):
        run_conv(batch, max_seqlen=69)
    decode = decode_batch(torch.float32, torch.float32, 3, (2, 4), (32, 48))
    with pytest.raises(ValueError, match="state_indices"):
        run_decode(decode, state_indices=ints([0, 1, 6]))
