"""A token depends on its logits, its request's parameters and its position; ties go to the lowest."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from serving.answers import choose as one_by_one
from serving.answers import could_choose
from serving.request import Sampling
from serving.sampling import choose, uniform


def drawn(rng: random.Random) -> Sampling:
    return Sampling(
        rng.choice([0.0, 0.3, 1.0, 2.0]), rng.choice([0, 1, 3, 50]), rng.choice([1.0, 0.9, 0.3]), rng.randrange(99)
    )


@pytest.mark.parametrize("levels", [3, 1000])
def test_a_batch_chooses_as_one_row_at_a_time(levels: int) -> None:
    rng = random.Random(levels)
    for _ in range(60):
        rows = rng.randint(1, 6)
        logits = torch.tensor(
            [[rng.randrange(levels) / 7 for _ in range(12)] for _ in range(rows)], dtype=torch.float32
        )
        samplings, positions = [drawn(rng) for _ in range(rows)], [rng.randrange(1000) for _ in range(rows)]
        expected = [one_by_one(*of) for of in zip(logits.double(), samplings, positions, strict=True)]
        assert choose(logits, samplings, positions) == expected


def test_ties_go_to_the_lowest_token() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    assert choose(logits, [Sampling()], [0]) == [1]
    assert choose(logits, [Sampling(temperature=1.0, top_k=1, seed=4)], [0]) == [1]


def test_draws_have_the_frequencies_of_the_softmax() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    counts = Counter(choose(logits, [Sampling(temperature=1.0, seed=3)], [position])[0] for position in range(4000))
    shares = torch.softmax(logits[0].double(), 0).tolist()
    # Five standard deviations of a binomial: the draws are fixed by seed and positions, so this holds or does not.
    for token, share in enumerate(shares):
        assert abs(counts[token] - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5


def test_uniform_numbers_are_in_range_and_differ() -> None:
    numbers = [uniform(seed, position) for seed in range(50) for position in range(50)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.03


def test_what_an_error_of_the_logits_can_explain() -> None:
    logits = torch.tensor([1.0, 1.1, 0.0], dtype=torch.float64)
    assert could_choose(logits, 0.06, Sampling(), 0, 0)
    assert not could_choose(logits, 0.04, Sampling(), 0, 0)
    assert not could_choose(logits, 0.06, Sampling(), 0, 2)
    sampling = Sampling(temperature=1.0, seed=1)
    token = one_by_one(logits, sampling, 5)
    others = [other for other in range(3) if other != token]
    assert could_choose(logits, 0.0, sampling, 5, token)
    assert not any(could_choose(logits, 1e-9, sampling, 5, other) for other in others)
    assert any(could_choose(logits, 20.0, sampling, 5, other) for other in others)
