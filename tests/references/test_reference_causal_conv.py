"""The convolution reference against torch's grouped conv1d, and against itself cut into pieces."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from references.causal_conv import conv_prefill, conv_update

INTEGER_OF = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}
dtypes = st.sampled_from(list(INTEGER_OF))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(INTEGER_OF[tensor.dtype])


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert torch.equal(bits(got), bits(want))


@dataclass
class Case:
    """A packed batch: per sequence (length, resumed, active), and the layer's parameters."""

    sequences: list[tuple[int, bool, bool]]
    channels: int
    width: int
    bias: bool
    activation: str | None
    seed: int

    def build(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict]:
        """(x, weight, keyword arguments). Every slot that no resumed sequence owns holds NaN."""
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

        lengths = [length for length, _, _ in self.sequences]
        slots = torch.randperm(len(lengths) + 3, generator=random)[: len(lengths)]
        pool = torch.full((len(lengths) + 3, self.channels, self.width - 1), float("nan"), dtype=dtype)
        for slot, (_, resumed, active) in zip(slots.tolist(), self.sequences, strict=True):
            if resumed and active:
                pool[slot] = normal(self.channels, self.width - 1)
        inactive = torch.tensor([not active for _, _, active in self.sequences], dtype=torch.bool)
        return (
            normal(sum(lengths), self.channels),
            normal(self.channels, self.width),
            {
                "bias": normal(self.channels) if self.bias else None,
                "conv_state": pool,
                "cu_seqlens": torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
                "state_indices": slots.int().masked_fill(inactive, -1 - self.seed % 5),
                "has_initial_state": torch.tensor([resumed for _, resumed, _ in self.sequences], dtype=torch.bool),
                "activation": self.activation,
            },
        )


cases = st.builds(
    Case,
    sequences=st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 5).map(bool)), max_size=5),
    channels=st.integers(1, 19),
    width=st.integers(1, 5),
    bias=st.booleans(),
    activation=st.sampled_from([None, "silu"]),
    seed=st.integers(0, 2**16),
)
single_sequences = st.builds(
    Case,
    sequences=st.tuples(st.integers(0, 12), st.booleans(), st.just(True)).map(lambda sequence: [sequence]),
    channels=st.integers(1, 19),
    width=st.integers(1, 5),
    bias=st.booleans(),
    activation=st.sampled_from([None, "silu"]),
    seed=st.integers(0, 2**16),
)


@settings(deadline=None)
@given(cases)
def test_prefill_equals_torch_conv1d(case: Case) -> None:
    x, weight, arguments = case.build(torch.float64)
    before = arguments["conv_state"].clone()
    want_y, want_state = torch.zeros_like(x), before.clone()
    for n, (_, resumed, active) in enumerate(case.sequences):
        if not active:
            continue
        slot = int(arguments["state_indices"][n])
        start, end = arguments["cu_seqlens"][n : n + 2].tolist()
        previous = before[slot] if resumed else torch.zeros(case.channels, case.width - 1, dtype=torch.float64)
        z = torch.cat([previous, x[start:end].T], dim=1)
        if end > start:
            y = F.conv1d(z[None], weight[:, None, :], arguments["bias"], groups=case.channels)[0].T
            want_y[start:end] = F.silu(y) if case.activation == "silu" else y
        want_state[slot] = z[:, z.shape[1] - case.width + 1 :]

    got_y = conv_prefill(x, weight, **arguments)
    torch.testing.assert_close(got_y, want_y, rtol=1e-12, atol=1e-12)
    assert_same_bits(arguments["conv_state"], want_state)


@settings(deadline=None)
@given(single_sequences, dtypes, st.data())
def test_split_anywhere_and_resume_gives_the_same_bits(case: Case, dtype: torch.dtype, data: st.DataObject) -> None:
    x, weight, whole = case.build(dtype)
    parts = {**whole, "conv_state": whole["conv_state"].clone()}
    want = conv_prefill(x, weight, **whole)
    cut = data.draw(st.integers(0, len(x)))
    first = conv_prefill(x[:cut], weight, **{**parts, "cu_seqlens": torch.tensor([0, cut])})
    rest = {**parts, "cu_seqlens": torch.tensor([0, len(x) - cut]), "has_initial_state": torch.tensor([True])}
    second = conv_prefill(x[cut:], weight, **rest)
    assert_same_bits(torch.cat([first, second]), want)
    assert_same_bits(parts["conv_state"], whole["conv_state"])


@settings(deadline=None)
@given(single_sequences, dtypes)
def test_updates_one_by_one_give_the_bits_of_one_prefill(case: Case, dtype: torch.dtype) -> None:
    x, weight, whole = case.build(dtype)
    steps = {key: whole[key] for key in ("bias", "state_indices", "activation")}
    pool = whole["conv_state"].clone()
    if not case.sequences[0][1]:
        pool[int(whole["state_indices"][0])] = 0
    want = conv_prefill(x, weight, **whole)
    got = [conv_update(x[t : t + 1], weight, conv_state=pool, **steps) for t in range(len(x))]
    assert_same_bits(torch.cat([x[:0], *got]), want)
    assert_same_bits(pool, whole["conv_state"])


@settings(deadline=None)
@given(cases, dtypes)
def test_update_equals_prefill_of_one_resumed_token_each(case: Case, dtype: torch.dtype) -> None:
    case.sequences = [(1, True, active) for _, _, active in case.sequences]
    x, weight, arguments = case.build(dtype)
    pool = arguments["conv_state"].clone()
    want = conv_prefill(x, weight, **arguments)
    kept = {key: arguments[key] for key in ("bias", "state_indices", "activation")}
    assert_same_bits(conv_update(x, weight, conv_state=pool, **kept), want)
    assert_same_bits(pool, arguments["conv_state"])


@settings(deadline=None)
@given(cases, st.sampled_from([torch.float32, torch.bfloat16]))
def test_low_precision_inputs_round_once(case: Case, dtype: torch.dtype) -> None:
    """Inputs and pool in a working dtype equal the float64 call on the same numbers, with one rounding at the end."""
    x, weight, arguments = case.build(dtype)
    wide = {
        key: value.double() if key in ("bias", "conv_state") and value is not None else value
        for key, value in arguments.items()
    }
    got = conv_prefill(x, weight, **arguments)
    assert_same_bits(got, conv_prefill(x.double(), weight.double(), **wide).to(dtype))
    assert torch.equal(arguments["conv_state"].nan_to_num(7.0), wide["conv_state"].to(dtype).nan_to_num(7.0))


def test_pool_of_another_dtype_keeps_its_old_columns_and_rounds_the_new() -> None:
    pool = torch.tensor([[[1 / 3, 2 / 3, 1.0]]], dtype=torch.float32)
    x = torch.tensor([[0.1]], dtype=torch.float64)
    conv_update(
        x, torch.ones(1, 4, dtype=torch.float64), bias=None, conv_state=pool,
        state_indices=torch.tensor([0]), activation=None,
    )  # fmt: skip
    assert pool[0, 0].tolist() == torch.tensor([2 / 3, 1.0, 0.1], dtype=torch.float32).tolist()


def test_the_pool_rounds_what_it_stores_and_nothing_else() -> None:
    """Tokens of one call meet each other as they are; only what is left in the slot has the dtype of the pool."""
    x = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    pool = torch.zeros(1, 1, 2, dtype=torch.bfloat16)
    y = conv_prefill(
        x, torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64), bias=None, conv_state=pool,
        cu_seqlens=torch.tensor([0, 3]), state_indices=torch.tensor([0]), has_initial_state=torch.tensor([False]),
        activation=None,
    )  # fmt: skip
    assert y.flatten().tolist() == [0.1, 0.2 + 0.1, 0.3 + 0.2]
    assert torch.equal(pool.flatten(), torch.tensor([0.2, 0.3]).to(torch.bfloat16))


def test_worked_example_in_order_of_taps() -> None:
    """Taps 1, 10, 100, oldest first: each digit of the output names the token that it came from."""
    y = conv_prefill(
        torch.tensor([[1.0], [2.0], [3.0], [4.0]]),
        torch.tensor([[1.0, 10.0, 100.0]]),
        bias=None,
        conv_state=(pool := torch.tensor([[[8.0, 9.0]], [[float("nan")] * 2]])),
        cu_seqlens=torch.tensor([0, 1, 4]),
        state_indices=torch.tensor([0, 1]),
        has_initial_state=torch.tensor([True, False]),
        activation=None,
    )
    assert y.flatten().tolist() == [198.0, 200.0, 320.0, 432.0]
    assert pool.flatten().tolist() == [9.0, 1.0, 3.0, 4.0]


def test_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="activation"):
        conv_update(
            torch.ones(1, 1), torch.ones(1, 2), bias=None, conv_state=torch.ones(1, 1, 1),
            state_indices=torch.tensor([0]), activation="gelu",
        )  # fmt: skip
