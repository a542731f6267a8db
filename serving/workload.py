"""What a server lives through: requests and when they come, and what is done to them, all from one seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving.request import Request, Sampling

#: How many prompts begin alike: conversations with one of so many system prompts.
BASES = 4
SAMPLINGS = (
    Sampling(temperature=0.8),
    Sampling(temperature=0.7, top_k=20),
    Sampling(temperature=1.0, top_p=0.9),
)


@dataclass(frozen=True)
class Mix:
    """What the requests are like.

    Attributes:
        requests: how many. arrival: "all" at once, "steady:R" (R a step on average, at random), "bursts:N" (N at a time), or
            "mixed:R" (half of them steadily, then bursts of 8 R).
        prompt, new: most tokens of a prompt and of an answer. shared: share of prompts that begin as others do.
        again: share that repeat an earlier prompt. drawn: share whose tokens are drawn rather than greedy.
        stops: share with stop tokens. aborts, preemptions: how many, as a share of the requests.
    """

    requests: int = 1000
    arrival: str = "mixed:2"
    prompt: int = 112
    new: int = 12
    shared: float = 0.4
    again: float = 0.15
    drawn: float = 0.3
    stops: float = 0.2
    aborts: float = 0.05
    preemptions: float = 0.05

    def __post_init__(self) -> None:
        kind, _, size = self.arrival.partition(":")
        if not (self.arrival == "all" or (kind in ("steady", "bursts", "mixed") and _positive(size))):
            raise ValueError(f"arrival: got {self.arrival!r}, expected all, steady:N, bursts:N or mixed:N")
        for name in ("requests", "prompt", "new"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")


@dataclass
class Moment:
    """What happens before one step: requests that come, and how many running ones are made to end or to give way.

    Which ones is drawn from ``pick`` among those that run by then.
    """

    arrivals: list[Request] = field(default_factory=list)
    aborts: int = 0
    preemptions: int = 0
    pick: int = 0
    #: A part of `max_tokens`, from here on; 0: as before.
    budget: float = 0.0


def moments(mix: Mix, vocabulary: int, eos: tuple[int, ...], seed: int) -> list[Moment]:
    """The workload, step by step; the same for the same arguments."""
    rng = random.Random(seed)
    arrivals = list(_arrivals(mix, rng))
    last = arrivals[-1]
    out = [Moment(pick=rng.getrandbits(31)) for _ in range(last + 1)]
    for step, request in zip(arrivals, requests(mix, vocabulary, eos, rng), strict=True):
        out[step].arrivals.append(request)
    # Over the time in which most requests run: arrivals end before the answers do, but not by much.
    for name, share in (("aborts", mix.aborts), ("preemptions", mix.preemptions)):
        for _ in range(round(share * mix.requests)):
            moment = out[rng.randint(min(1, last), last)]
            setattr(moment, name, getattr(moment, name) + 1)
    for moment in out[:: max(1, len(out) // 16)][1:]:
        moment.budget = rng.choice([1.0, 1.0, 0.5, 0.15])
    return out


def _arrivals(mix: Mix, rng: random.Random) -> Iterator[int]:
    """The step of each request."""
    kind, _, size = mix.arrival.partition(":")
    rate = float(size or 0)
    burst = max(1, int(8 * rate if kind == "mixed" else rate))
    clock = 0.0
    for number in range(mix.requests):
        if kind == "steady" or (kind == "mixed" and number < mix.requests // 2):
            clock += rng.expovariate(rate)
        elif kind != "all" and number and number % burst == 0:
            # As many steps from one burst to the next as it takes to serve about one.
            clock += mix.new + burst / 2
        yield int(clock)


def requests(mix: Mix, vocabulary: int, eos: tuple[int, ...], rng: random.Random) -> Iterator[Request]:
    bases = [[rng.randrange(vocabulary) for _ in range(mix.prompt)] for _ in range(BASES)]
    earlier: list[tuple[int, ...]] = []
    for number in range(mix.requests):
        prompt = _prompt(mix, vocabulary, bases, earlier, rng)
        earlier.append(prompt)
        sampling = rng.choice(SAMPLINGS) if rng.random() < mix.drawn else Sampling()
        stops = frozenset(eos)
        if rng.random() < mix.stops:
            stops |= {rng.randrange(vocabulary) for _ in range(max(1, vocabulary // 24))}
        yield Request(
            id=f"r{number:04}",
            prompt=prompt,
            max_new_tokens=_short(rng, mix.new),
            stop_tokens=stops,
            sampling=Sampling(sampling.temperature, sampling.top_k, sampling.top_p, seed=rng.getrandbits(31)),
        )


def _prompt(
    mix: Mix, vocabulary: int, bases: list[list[int]], earlier: list[tuple[int, ...]], rng: random.Random
) -> tuple[int, ...]:
    if earlier and rng.random() < mix.again:
        return rng.choice(earlier)
    shared = rng.random() < mix.shared
    # What is worth remembering is long.
    length = rng.randint(1, mix.prompt) if shared else _length(rng, mix.prompt)
    tokens = [rng.randrange(vocabulary) for _ in range(length)]
    if shared:
        common = rng.choice([length, length, rng.randint(0, length), length - length % 64])
        tokens[:common] = rng.choice(bases)[:common]
    return tuple(tokens)


def _length(rng: random.Random, most: int) -> int:
    """Very short, near the boundaries of chunks, or log-uniform: real prompts are ragged."""
    kind = rng.random()
    if kind < 0.15:
        return min(most, rng.choice([1, 1, 2, 3]))
    if kind < 0.4:
        return max(1, min(most, 64 * rng.randint(1, max(1, most // 64)) + rng.randint(-1, 1)))
    return max(1, min(most, round(math.exp(rng.uniform(0, math.log(most + 1))))))


def _short(rng: random.Random, most: int) -> int:
    """Answers end early more often than late."""
    return 1 + min(most - 1, int(rng.expovariate(2 / most)))


def _positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
