"""The chunk form against the recurrence, and what rounding its operands costs."""

import itertools

import pytest
import torch
from torch import Tensor

from references.gdn import gdn_recurrence
from references.gdn_chunked import gdn_chunked

LENGTHS = [129, 0, 64, 1, 200, 15, 2, 0, 63, 127, 16, 65, 17, 128]
EXACT = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}


def rates(kind: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """-g [T, HV]: ``varied`` has tokens that forget everything between others that forget hardly anything."""
    draw = torch.rand(shape, generator=random, dtype=torch.float64)
    if kind == "varied":
        return torch.where(draw < 0.05, 1000 * torch.rand(shape, generator=random, dtype=torch.float64), 0.01 * draw)
    return {"none": 0.0, "slow": 0.01, "fast": 10.0, "underflow": 900.0}[kind] * draw


def batch(
    lengths: list[int], heads: int, ratio: int, key_dim: int, value_dim: int, decay: str, seed: int = 0
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
    """A packed float64 batch of fresh, resumed and inactive sequences in turn; slots that must not be read hold NaN."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    tokens, count, value_heads = sum(lengths), len(lengths), heads * ratio
    slots = torch.randperm(count + 2, generator=random)[:count]
    resumed = torch.arange(count) % 3 != 0
    inactive = torch.arange(count) % 5 == 4
    pool = torch.full((count + 2, value_heads, value_dim, key_dim), float("nan"), dtype=torch.float64)
    held = slots[resumed & ~inactive]
    pool[held] = normal(len(held), value_heads, value_dim, key_dim)
    inputs = normal(tokens, heads, key_dim), normal(tokens, heads, key_dim), normal(tokens, value_heads, value_dim)
    return inputs, {
        "g": -rates(decay, (tokens, value_heads), random),
        "beta": torch.rand(tokens, value_heads, generator=random, dtype=torch.float64),
        "state": pool,
        "cu_seqlens": torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        "state_indices": slots.int().masked_fill(inactive, -3),
        "has_initial_state": resumed,
    }


@pytest.mark.parametrize("chunk_size", [16, 32, 64])
@pytest.mark.parametrize("decay", ["none", "slow", "fast", "underflow", "varied"])
@pytest.mark.parametrize(
    ("heads", "ratio", "key_dim", "value_dim"), [(1, 1, 8, 5), (2, 2, 6, 16), (1, 3, 16, 4), (2, 4, 3, 7)]
)
def test_equals_the_recurrence(
    chunk_size: int, decay: str, heads: int, ratio: int, key_dim: int, value_dim: int
) -> None:
    inputs, keywords = batch(LENGTHS, heads, ratio, key_dim, value_dim, decay)
    scale = 0.3 if heads == 2 else None
    wanted = {**keywords, "state": keywords["state"].clone()}
    want = gdn_recurrence(*inputs, **wanted, scale=scale)
    got = gdn_chunked(*inputs, **keywords, scale=scale, chunk_size=chunk_size)
    torch.testing.assert_close(got, want, **EXACT)
    torch.testing.assert_close(keywords["state"], wanted["state"], **EXACT)


def test_tokens_behind_the_last_sequence_give_zeros() -> None:
    inputs, keywords = batch([3, 5], 1, 2, 4, 6, "slow")
    longer = [torch.cat([x, torch.full_like(x[:2], float("nan"))]) for x in inputs]
    padded = {**keywords, "state": keywords["state"].clone()}
    for name in ("g", "beta"):
        padded[name] = torch.cat([keywords[name], torch.full_like(keywords[name][:2], float("nan"))])
    got = gdn_chunked(*longer, **padded)
    assert torch.equal(got[:-2], gdn_chunked(*inputs, **keywords))
    assert not got[-2:].any()
    torch.testing.assert_close(padded["state"], keywords["state"], rtol=0, atol=0, equal_nan=True)


def test_a_batch_without_sequences_or_tokens() -> None:
    inputs, keywords = batch([], 1, 1, 4, 4, "none")
    assert gdn_chunked(*inputs, **keywords).shape == (0, 1, 4)
    inputs, keywords = batch([0, 0, 0], 1, 1, 4, 4, "none")
    before = keywords["state"].clone()
    gdn_chunked(*inputs, **keywords)
    fresh = int(keywords["state_indices"][0])
    before[fresh] = 0
    torch.testing.assert_close(keywords["state"], before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-12)])
def test_rounded_operands_cost_about_a_unit_roundoff(dtype: torch.dtype, unit: float) -> None:
    """Tens of roundings whose errors are random: the whole is a few half-ulps off, in proportion to the dtype's."""
    inputs, keywords = batch([200, 130], 2, 2, 32, 24, "slow")
    keywords["state"].nan_to_num_()
    exact = {**keywords, "state": keywords["state"].clone()}
    want = gdn_chunked(*inputs, **exact)
    got = gdn_chunked(*inputs, **keywords, operand_dtype=dtype)
    for have, truth in ((got, want), (keywords["state"], exact["state"])):
        error = float((have - truth).norm() / truth.norm())
        assert 0.3 * unit < error < 3 * unit


def test_a_scale_of_zero_is_a_scale() -> None:
    inputs, keywords = batch([5, 70], 1, 2, 4, 6, "slow")
    plain = {**keywords, "state": keywords["state"].clone()}
    assert bool(gdn_chunked(*inputs, **plain).any())
    assert not gdn_chunked(*inputs, **keywords, scale=0.0).any()
    torch.testing.assert_close(keywords["state"], plain["state"], rtol=0, atol=0, equal_nan=True)


def test_value_heads_must_be_a_multiple_of_heads() -> None:
    (q, k, v), keywords = batch([2], 2, 1, 4, 4, "none")
    with pytest.raises(ValueError, match="3 value heads"):
        gdn_chunked(q, k, torch.cat([v, v[:, :1]], dim=1), **keywords)
