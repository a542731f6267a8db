"""What a user asks of the engine, and what the engine knows about it while it works on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from its logits.

    Attributes:
        temperature: 0 takes the largest logit; otherwise logits are divided by it.
        top_k: only the so many largest logits, 0: all. top_p: only the likeliest tokens that together reach this share.
        seed: a draw depends on it and on the token's position, and on nothing else.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Request:
    """One prompt and how to go on from it.

    Attributes:
        id: names the request in reports; unique in an engine's life.
        prompt: token ids, at least one.
        max_new_tokens: the answer is no longer than this, at least 1.
        stop_tokens: one of these ends the answer, and is no part of it.
    """

    id: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    sampling: Sampling = Sampling()


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    #: Waiting again, its slot and pages given away: everything is computed anew.
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(eq=False)
class Tracked:
    """A request on its way through the engine.

    Attributes:
        arrival: its turn: smaller came earlier.
        outputs: tokens of the answer so far; they survive a preemption.
        reason: why it is finished: "stop", "length" or "aborted".
        slot, pages: what it owns while it runs; pages in the order of its tokens.
        computed: tokens whose state is in the slot and whose keys and values are in the pages.
        context_end: up to here its tokens are a context: its prompt, and after a preemption what it had answered too.
        logits: with `record_logits`, the row that each token was chosen from, on the CPU (a stop token's, too).
    """

    request: Request
    arrival: int
    status: Status = Status.WAITING
    outputs: list[int] = field(default_factory=list)
    reason: str = ""
    slot: int | None = None
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    context_end: int = 0
    logits: list[Tensor] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def tokens(self) -> list[int]:
        return [*self.request.prompt, *self.outputs]

    def between(self, start: int, end: int) -> list[int]:
        """`tokens[start:end]`, without putting all of them together: a decode asks for one, at every step."""
        prompt = self.request.prompt
        first = len(prompt)
        return [*prompt[start:end], *self.outputs[max(0, start - first) : max(0, end - first)]]

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.outputs)

    @property
    def is_context(self) -> bool:
        """A remaining context of one token is a context all the same: its slot may hold nothing yet."""
        return self.computed < self.context_end

    def pages_for(self, tokens: int, page_size: int) -> int:
        """How many more pages it needs to hold so many tokens."""
        return max(0, -(-tokens // page_size) - len(self.pages))
