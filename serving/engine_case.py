"""The life of an engine as data: its sizes, and what was done to it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from serving.request import Request, Sampling
from serving.settings import EngineSettings

#: Ways to choose a token: greedy, drawn, drawn among the three largest, drawn from two thirds of the mass.
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=3),
    Sampling(temperature=1.5, top_p=0.66),
)

#: The operator's name.
NAME = "engine"
#: The actions that bring a request.
SUBMITTING = ("submit", "again", "later")
#: The actions whose count says which request, from the newest.
COUNTED = ("again", "later", "abort", "preempt")


@dataclass(frozen=True)
class Size:
    """`EngineSettings` in small numbers; the plainest first of all."""

    slots: int = 4
    pages: int = 48
    page_size: int = 4
    max_batch_size: int = 4
    max_tokens: int = 16
    max_length: int = 48
    graph_sizes: tuple[int, ...] = ()
    graphs: bool = False
    interval: int = 0
    cut: bool = True
    hash_bits: int = 64
    random_slots: bool = False

    def settings(
        self, seed: int, *, graphs: str = "emulated", state_dtype: torch.dtype = torch.float64
    ) -> EngineSettings:
        return EngineSettings(
            slots=self.slots,
            pages=self.pages,
            page_size=self.page_size,
            max_batch_size=self.max_batch_size,
            max_tokens=self.max_tokens,
            max_length=self.max_length,
            graph_sizes=self.graph_sizes,
            graphs=graphs if self.graphs and self.graph_sizes else "off",
            snapshot_interval=self.interval,
            cut_at_snapshots=self.cut,
            hash_bits=self.hash_bits,
            slot_seed=seed if self.random_slots else None,
            state_dtype=state_dtype,
            record_logits=True,
        )

    @property
    def capacity(self) -> int:
        """Most tokens of a request."""
        return min(self.max_length, self.pages * self.page_size)


@dataclass(frozen=True)
class Action:
    """One thing that is done to an engine.

    what: "submit" a new prompt; "again", an earlier one; "later", the same when all before it is finished; "step"; "abort";
    "preempt"; "budget"; "finish", step until nothing waits or runs.
    count: tokens of a prompt, steps to take, tokens of the budget; for "again", "later", "abort" and "preempt" which one,
    counted from the newest of those that there are, as often around as need be.
    shared: the first tokens of a prompt that are those of every other; differs: but for this one of them, counted from 1.
    new: longest answer. sampling: of `SAMPLINGS`. stop: how many tokens of the vocabulary end the answer.
    times: so many submissions alike, but for the tokens that are not shared, and with the one that differs in the first, third …
    """

    what: str
    count: int = 1
    shared: int = 0
    differs: int = 0
    new: int = 1
    sampling: int = 0
    stop: int = 0
    times: int = 1


@dataclass(frozen=True)
class EngineCase:
    """A case: the engine's size, what is done to it, and a seed for the tokens of prompts and all draws.

    model: "toy", or the kernels that a small hybrid model computes with.
    """

    operator: str
    actions: tuple[Action, ...]
    size: Size = Size()
    model: str = "toy"
    dtype: Literal["float32"] = "float32"
    choice: int = 0
    seed: int = 0

    @property
    def submissions(self) -> list[tuple[Action, int]]:
        """Each once for every time, counted from 0."""
        submitting = (action for action in self.actions if action.what in SUBMITTING)
        return [(action, time) for action in submitting for time in range(action.times)]

    @property
    def lengths(self) -> list[int]:
        return [len(request.prompt) for request in self.requests(16)]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def requests(self, vocabulary: int) -> list[Request]:
        """What its submissions ask for, in their order: independent of what becomes of them."""
        stem = _tokens(self.seed, "stem", self.size.capacity, vocabulary)
        made: list[Request] = []
        for number, (action, time) in enumerate(self.submissions):
            name = str(number)
            if action.what != "submit":
                if made:
                    made.append(replace(made[-1 - action.count % len(made)], id=name))
                    continue
                action = Action("submit", 1 + action.count)
            new = max(1, min(action.new, self.size.capacity - 1))
            length = max(1, min(action.count, self.size.capacity - new))
            own = _tokens(self.seed, name, length, vocabulary)
            shared = min(action.shared, length)
            stops = _tokens(self.seed, name + "stop", action.stop, vocabulary)
            sampling = replace(SAMPLINGS[action.sampling % len(SAMPLINGS)], seed=self.seed % 1000 + number)
            prompt = [*stem[:shared], *own[shared:]]
            if 0 < action.differs <= shared and time % 2 == 0:
                prompt[action.differs - 1] = (prompt[action.differs - 1] + 1) % vocabulary
            made.append(Request(name, tuple(prompt), new, frozenset(stops), sampling))
        return made

    def with_(self, **changes: Any) -> EngineCase:
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineCase:
        fields = dict(data)
        fields["actions"] = tuple(Action(**action) for action in data["actions"])
        fields["size"] = Size(**{**data["size"], "graph_sizes": tuple(data["size"]["graph_sizes"])})
        return cls(**fields)


def _tokens(seed: int, name: str, count: int, vocabulary: int) -> tuple[int, ...]:
    drawn = random.Random(f"{seed} {name}")
    return tuple(drawn.randrange(vocabulary) for _ in range(count))
