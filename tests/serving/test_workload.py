"""A workload is what its seed says, and holds what it promises: ragged, shared, repeated, cut off."""

from __future__ import annotations

import pytest

from serving.workload import Mix, Moment, moments


def requests(workload: list[Moment]):
    return [request for moment in workload for request in moment.arrivals]


def test_the_same_seed_is_the_same_workload() -> None:
    mix = Mix(requests=50)
    first, again, other = (moments(mix, 96, (), seed) for seed in (4, 4, 5))
    assert first == again
    assert requests(first) != requests(other)


def test_what_a_thousand_requests_are_like() -> None:
    workload = moments(Mix(requests=1000), 96, (7,), 1)
    asked = requests(workload)
    prompts = [request.prompt for request in asked]
    assert [request.id for request in asked] == [f"r{number:04}" for number in range(1000)]
    assert {1, 2, 63, 64, 65, 112} <= {len(prompt) for prompt in prompts}
    assert 100 < len(prompts) - len(set(prompts)) < 300
    long = [prompt[:64] for prompt in prompts if len(prompt) > 64]
    assert len(long) - len(set(long)) > 100
    assert 200 < sum(not request.sampling.greedy for request in asked) < 350
    assert all(1 <= request.max_new_tokens <= 12 and 7 in request.stop_tokens for request in asked)
    assert sum(moment.aborts for moment in workload) == sum(moment.preemptions for moment in workload) == 50
    assert any(moment.budget for moment in workload)


@pytest.mark.parametrize(
    ("arrival", "steps"), [("all", {0}), ("bursts:10", {0, 17, 34}), ("steady:100", {0}), ("mixed:100", {0})], ids=str
)
def test_when_requests_come(arrival: str, steps: set[int]) -> None:
    workload = moments(Mix(requests=30, arrival=arrival), 96, (), 2)
    assert {step for step, moment in enumerate(workload) if moment.arrivals} == steps


@pytest.mark.parametrize("arrival", ["", "sometimes", "steady", "steady:0", "bursts:x"])
def test_an_unknown_arrival_is_refused(arrival: str) -> None:
    with pytest.raises(ValueError, match="expected all, steady:N, bursts:N or mixed:N"):
        Mix(arrival=arrival)


def test_one_request_suffices() -> None:
    (moment,) = moments(Mix(requests=1, arrival="all", prompt=1, new=1), 5, (), 0)
    assert [(len(r.prompt), r.max_new_tokens) for r in moment.arrivals] == [(1, 1)]
