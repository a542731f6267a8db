"""What must hold of the model however an engine batches, splits, pads and places its requests.

In float64 with the references, so two ways to compute the same thing agree to 1e-10 of the largest logit, and what is
promised bit for bit is compared so. Caches start as NaN, and page tables point to a page that nobody writes beyond what a
request owns: whoever reads what was never written shows it.
"""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serving.kernel_set import KernelSet
from serving.model import HybridModel
from serving.weights import random_weights, to
from tests.serving.configurations import MODEL_TYPES, configuration
from tests.serving.stepping import Piece, Stepper

TIGHT = 1e-10
few = functools.partial(settings, deadline=None, derandomize=True)


@functools.cache
def model(model_type: str, seed: int, kernels: str = "references", dtype: torch.dtype = torch.float64) -> HybridModel:
    config = configuration(model_type, seed)
    return HybridModel(config, to(random_weights(config, seed, torch.float64), dtype), KernelSet.named(kernels))


models = st.builds(model, st.sampled_from(MODEL_TYPES), st.integers(0, 7))


@st.composite
def prompts(draw: st.DrawFn, vocabulary: int, most: int = 14) -> list[int]:
    return draw(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=most))


@st.composite
def splits(draw: st.DrawFn, length: int) -> list[int]:
    """Lengths, each at least 1, that add up."""
    cuts = sorted(draw(st.sets(st.integers(1, length - 1)))) if length > 1 else []
    return [end - begin for begin, end in zip([0, *cuts], [*cuts, length], strict=True)]


def alone(m: HybridModel, tokens: list[int]) -> Tensor:
    stepper = Stepper(m)
    return stepper.run(stepper.request(0, len(tokens)), tokens, [len(tokens)])


def require_equal(got: Tensor, expected: Tensor, within: float = TIGHT) -> None:
    assert torch.isfinite(got).all()
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    assert error <= within, f"logits differ by {error:.1e} of the largest"


@given(models, st.data())
@few(max_examples=40)
def test_a_prompt_may_be_split_anywhere(m: HybridModel, data: st.DataObject) -> None:
    """In one piece, in any pieces, and with any tail of it token by token through the decode kernels."""
    tokens = data.draw(prompts(m.config.vocab_size))
    expected = alone(m, tokens)
    stepper = Stepper(m, page_size=data.draw(st.sampled_from([1, 3, 4, 16])))
    request = stepper.request(1, len(tokens))
    found = []
    for length in data.draw(splits(len(tokens))):
        begin = len(request.tokens)
        decode = begin > 0 and length == 1 and data.draw(st.booleans())
        found += stepper.step([Piece(request, tokens[begin : begin + length], context=not decode)])
    require_equal(torch.cat(found), expected)


@given(models, st.data())
@few(max_examples=20)
def test_token_by_token(m: HybridModel, data: st.DataObject) -> None:
    tokens = data.draw(prompts(m.config.vocab_size))
    stepper = Stepper(m)
    request = stepper.request(1, len(tokens))
    found = [stepper.run(request, tokens[:1], [1])]
    if tokens[1:]:
        found.append(stepper.run(request, tokens[1:], [1] * (len(tokens) - 1), decode=True))
    require_equal(torch.cat(found), alone(m, tokens))


@given(models, st.data())
@few(max_examples=40)
def test_a_request_does_not_notice_the_others(m: HybridModel, data: st.DataObject) -> None:
    """Random steps of several requests, contexts beside decodes beside padding, in random slots and pages: each request's
    logits are those that it has alone."""
    requests = data.draw(st.lists(prompts(m.config.vocab_size), min_size=1, max_size=4))
    stepper = Stepper(m, page_size=data.draw(st.sampled_from([2, 4])))
    stepper.free = data.draw(st.permutations(stepper.free))
    slots = data.draw(st.permutations(range(8)))
    live = [stepper.request(slot, len(tokens)) for slot, tokens in zip(slots, requests, strict=False)]
    found: list[list[Tensor]] = [[] for _ in requests]
    while any(len(r.tokens) < len(tokens) for r, tokens in zip(live, requests, strict=True)):
        pieces, whose = [], []
        for i, (request, tokens) in enumerate(zip(live, requests, strict=True)):
            left = len(tokens) - len(request.tokens)
            length = data.draw(st.integers(0, left), label=f"new tokens of request {i}")
            if length == 0 and (pieces or left == 0 or i + 1 < len(live)):
                continue
            length = max(length, 1)
            begin = len(request.tokens)
            decode = length == 1 and begin > 0 and data.draw(st.booleans())
            pieces.append(Piece(request, tokens[begin : begin + length], context=not decode))
            whose.append(i)
        if not pieces:
            continue
        for i, logits in zip(whose, stepper.step(pieces, data.draw(st.integers(0, 2)), 1), strict=True):
            found[i].append(logits)
    for tokens, logits in zip(requests, found, strict=True):
        require_equal(torch.cat(logits), alone(m, tokens))


def snapshot(stepper: Stepper) -> list[Tensor]:
    caches = stepper.caches
    return [t.clone() for t in (*caches.conv, *caches.delta, *caches.keys, *caches.values)]


def filled(m: HybridModel, tokens: list[int]) -> tuple[Stepper, list[Piece]]:
    """Two requests in their caches, and the next step: one more piece of the first, one decode of the second."""
    stepper = Stepper(m)
    first, second = stepper.request(3, 2 * len(tokens)), stepper.request(5, 2 * len(tokens))
    stepper.step([Piece(first, tokens), Piece(second, tokens[::-1])])
    return stepper, [Piece(first, tokens[:2]), Piece(second, tokens[:1], context=False)]


@given(models, st.integers(1, 3), st.booleans(), st.data())
@few(max_examples=25)
def test_padding_rows_change_nothing(m: HybridModel, padding: int, decodes: bool, data: st.DataObject) -> None:
    """Not the logits of others, nor a single bit in a pool that no real row owns; with real rows and without any."""
    tokens = data.draw(prompts(m.config.vocab_size))
    outcomes = []
    for rows in (0, padding):
        stepper, pieces = filled(m, tokens)
        pieces = [pieces[1]] if decodes else pieces
        outcomes.append((stepper.step(pieces, rows), snapshot(stepper)))
    (plain, pools), (padded, padded_pools) = outcomes
    require_equal(torch.cat(padded), torch.cat(plain))
    for before, after in zip(pools, padded_pools, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12, equal_nan=True)

    before = snapshot(stepper)
    logits = m(stepper.batch([], padding, spare=2), stepper.caches)
    assert logits.shape[0] == 0
    for old, new in zip(before, snapshot(stepper), strict=True):
        assert torch.equal(old.nan_to_num(nan=7.5), new.nan_to_num(nan=7.5))


def test_a_padding_row_computes_no_nan() -> None:
    """Its logits are finite, should somebody ask for them: a NaN would spread through whatever sums over rows."""
    for model_type in MODEL_TYPES:
        m = model(model_type, 1)
        stepper, pieces = filled(m, [1, 2, 3])
        batch = stepper.batch(pieces[1:], padding=2)
        batch.logit_rows = torch.arange(3)
        assert torch.isfinite(m(batch, stepper.caches)).all()


@given(models, st.data())
@few(max_examples=15)
def test_slots_and_pages_may_be_anywhere(m: HybridModel, data: st.DataObject) -> None:
    """Bit for bit: the same arithmetic meets the same numbers, wherever they are kept."""
    tokens = data.draw(prompts(m.config.vocab_size))
    found = []
    for permuted in (False, True):
        stepper = Stepper(m)
        if permuted:
            stepper.free = data.draw(st.permutations(stepper.free))
        slots = data.draw(st.permutations(range(8))) if permuted else range(8)
        requests = [stepper.request(slot, len(tokens) + 1) for slot in slots[:2]]
        logits = stepper.step([Piece(requests[0], tokens), Piece(requests[1], tokens[::-1])])
        logits += stepper.step([Piece(r, [0], context=False) for r in requests])
        found.append(torch.cat(logits))
    assert torch.equal(*found)


@given(models, st.data())
@few(max_examples=15)
def test_a_slot_and_pages_serve_the_next_request(m: HybridModel, data: st.DataObject) -> None:
    """Bit for bit what a request gets in caches that were never used."""
    first, second = data.draw(prompts(m.config.vocab_size)), data.draw(prompts(m.config.vocab_size))
    stepper = Stepper(m)
    request = stepper.request(2, max(len(first), len(second)))
    stepper.run(request, first, [len(first)])
    request.tokens = []
    assert torch.equal(stepper.run(request, second, [len(second)]), alone(m, second))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_longer_bound_changes_nothing(model_type: str) -> None:
    """`max_length` is a bound, and page tables may be wider than any request."""
    m = model(model_type, 2)
    found = []
    for spare in (0, 5):
        stepper, pieces = filled(m, [5, 6, 7, 8, 9])
        found.append(torch.cat(stepper.step(pieces, spare=spare)))
    require_equal(found[1], found[0])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_are_those_of_the_rows_asked_for(model_type: str) -> None:
    m = model(model_type, 3)
    expected = alone(m, [4, 5, 6, 7])
    stepper = Stepper(m)
    batch = stepper.batch([Piece(stepper.request(0, 4), [4, 5, 6, 7])])
    batch.logit_rows = torch.tensor([3, 0, 3])
    require_equal(m(batch, stepper.caches), expected[[3, 0, 3]])


def test_queries_attend_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model("qwen3_5_text", 4)
    tokens = [i % m.config.vocab_size for i in range(13)]
    expected = alone(m, tokens)
    monkeypatch.setattr("serving.blocks.attention.QUERY_BLOCK", 4)
    require_equal(alone(m, tokens), expected)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_chunk_form_is_the_recurrence(model_type: str) -> None:
    tokens = [(7 * i) % 30 for i in range(70)]
    require_equal(alone(model(model_type, 5, "oracle"), tokens), alone(model(model_type, 5), tokens))


#: Of the largest logit. Measured on these steps: at most 1.2e-6, for the references and the optimized kernels alike.
FLOAT32 = 2e-5


@pytest.mark.parametrize("kernels", ["references", "optimized"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_kernels_in_float32(model_type: str, kernels: str) -> None:
    """A prompt in two pieces, then decodes beside another request: the kernels where an engine calls them."""
    seed = 6
    exact, rounded = model(model_type, seed), model(model_type, seed, kernels, torch.float32)
    tokens, other = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8]
    found = []
    for m in (exact, rounded):
        stepper = Stepper(m)
        first, second = stepper.request(4, 12), stepper.request(1, 12)
        logits = stepper.step([Piece(first, tokens[:6])])
        logits += stepper.step([Piece(second, other), Piece(first, tokens[6:9])])
        logits += stepper.step([Piece(first, tokens[9:], context=False), Piece(second, [0])], padding=1)
        logits += stepper.step([Piece(first, [1], context=False), Piece(second, [2], context=False)], padding=2)
        found.append(torch.cat(logits).double())
    error = ((found[1] - found[0]).abs().max() / found[0].abs().max()).item()
    print(f"float32 error {error:.1e}")
    assert error <= FLOAT32
