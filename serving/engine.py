"""The engine: requests in, steps of a packed batch through the model, tokens out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from . import state
from .batch import StepBatch
from .caches import Caches
from .config import ModelConfig
from .graphs import DecodeGraphs
from .prefix_cache import PrefixCache
from .request import Request, Status, Tracked
from .sampling import choose
from .scheduler import Row, Scheduler
from .settings import EngineSettings
from .step_inputs import NONE, StepInputs, wants_logits


class Kernels(Protocol):
    """What the engine needs of a kernel set."""

    @property
    def step_metadata(self) -> Any: ...
    @property
    def chunk_size(self) -> int: ...


class Model(Protocol):
    """What the engine needs of a model. `dtype`: of its activations, keys and values."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def kernels(self) -> Kernels: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def __call__(self, batch: StepBatch, caches: Caches) -> Tensor: ...


@dataclass(frozen=True)
class ReportRow:
    """One row of a step: whose it was, and what it was then."""

    request: str
    is_context: bool
    new: int
    cached: int
    slot: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class StepReport:
    """What one step was.

    Attributes:
        rows: contexts first; without padding.
        tokens: request and token, in the order of the rows that had one chosen; a stop token too.
        finished: request and reason. preempted: what had to give way in this step's plan.
        arguments: the lists given to the metadata's builder. metadata: what the model saw; valid until the next step.
        padding: rows behind the others. replayed: whether a graph was.
        seconds: of the host, by phase: "plan", "build", "forward", "choose", "account".
    """

    rows: tuple[ReportRow, ...] = ()
    tokens: tuple[tuple[str, int], ...] = ()
    finished: tuple[tuple[str, str], ...] = ()
    preempted: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    metadata: Any = None
    padding: int = 0
    replayed: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


class Engine:
    """A model served by continuous batching. One thread; nothing happens between calls of `step`."""

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        self.model, self.settings = model, settings
        self.caches = Caches.allocate(
            model.config,
            slots=settings.slots,
            pages=settings.pages,
            page_size=settings.page_size,
            dtype=model.dtype,
            state_dtype=settings.state_dtype,
            device=model.device,
        )
        self._slots = state.SlotPool(settings.slots, settings.slot_seed)
        self._pages = state.PagePool(settings.pages, settings.slot_seed)
        chunk = model.kernels.chunk_size
        self.cache: PrefixCache | None = None
        if settings.snapshot_interval:
            self.cache = PrefixCache(
                settings.snapshot_interval,
                settings.page_size,
                chunk,
                self._slots,
                self._pages,
                self.caches.copy_slot,
                settings.hash_bits,
            )
        self._scheduler = Scheduler(
            slots=self._slots,
            pages=self._pages,
            page_size=settings.page_size,
            max_batch_size=settings.max_batch_size,
            cache=self.cache,
            copy_slot=self.caches.copy_slot,
            cut_at_snapshots=settings.cut_at_snapshots,
        )
        self._builder = model.kernels.step_metadata(settings.max_rows, chunk, model.device)
        self._inputs = StepInputs(settings.page_size, settings.pages_a_request, model.device)
        capacity = settings.pages_a_request * settings.page_size
        self.graphs = DecodeGraphs(model, self.caches, settings.graphs, settings.graph_sizes, capacity)
        #: Every request that ever came, by id: until `forget` is called for it.
        self.requests: dict[str, Tracked] = {}
        self._arrivals = 0
        self.token_budget = 0
        self.set_token_budget(settings.max_tokens if settings.token_budget is None else settings.token_budget)

    # -- what a user asks -------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Take a request on. Raises ValueError, and changes nothing, where it is malformed or can never be served."""
        self._check(request)
        self.requests[request.id] = tracked = Tracked(request, self._arrivals)
        self._arrivals += 1
        self._scheduler.add(tracked)

    def _check(self, request: Request) -> None:
        length = len(request.prompt) + request.max_new_tokens
        capacity = min(self.settings.max_length, self.settings.pages * self.settings.page_size)
        if request.id in self.requests:
            raise ValueError(f"id: got {request.id!r}, which an earlier request has; expected a new one")
        if not request.prompt:
            raise ValueError(f"prompt: got no token in request {request.id}, expected at least one")
        vocabulary = self.model.config.vocab_size
        strange = [token for token in request.prompt if not 0 <= token < vocabulary]
        if strange:
            raise ValueError(f"prompt: got token {strange[0]} in request {request.id}, expected 0 to {vocabulary - 1}")
        if request.max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens: got {request.max_new_tokens} in request {request.id}, expected at least 1"
            )
        if length > capacity:
            raise ValueError(
                f"prompt: request {request.id} may grow to {length} tokens, expected at most {capacity}; shorten it, or"
                " give the engine a larger max_length and more pages"
            )
        sampling = request.sampling
        if sampling.temperature < 0 or sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
            raise ValueError(
                f"sampling: got {sampling} in request {request.id}, expected temperature and top_k from 0 and top_p in (0, 1]"
            )

    def abort(self, request_id: str) -> bool:
        """End a request now, whatever it is doing; False where it had ended by itself. ValueError for an unknown one."""
        tracked = self._known(request_id)
        if tracked.status is Status.FINISHED:
            return False
        self._scheduler.finish(tracked, "aborted")
        return True

    def preempt(self, request_id: str) -> bool:
        """Make a running request give up its slot and pages; False where it is not running. ValueError for an unknown one."""
        tracked = self._known(request_id)
        if tracked.status is not Status.RUNNING:
            return False
        self._scheduler.preempt(tracked)
        return True

    def set_token_budget(self, tokens: int) -> None:
        """Most tokens of a step from now on. ValueError outside 1..max_tokens."""
        if not 1 <= tokens <= self.settings.max_tokens:
            raise ValueError(f"token_budget: got {tokens}, expected 1 to {self.settings.max_tokens}, max_tokens")
        self.token_budget = tokens

    def forget(self, request_id: str) -> None:
        """Drop what is kept of a finished request. ValueError for an unknown one, or one that is not finished."""
        if self._known(request_id).status is not Status.FINISHED:
            raise ValueError(f"id: request {request_id!r} is not finished; abort it first")
        del self.requests[request_id]

    def _known(self, request_id: str) -> Tracked:
        if request_id not in self.requests:
            raise ValueError(f"id: got {request_id!r}, which is no request of this engine")
        return self.requests[request_id]

    @property
    def unfinished(self) -> list[str]:
        """Requests that wait or run, in the order of their arrival."""
        return [t.id for t in self.requests.values() if t.status is not Status.FINISHED]

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self) -> StepReport:
        """Compute one step, if anything waits or runs."""
        clock = _Clock()
        before = list(self._scheduler.running)
        rows = self._scheduler.plan(self.token_budget)
        preempted = tuple(t.id for t in before if t.status is not Status.RUNNING)
        clock.lap("plan")
        if not rows:
            return StepReport(preempted=preempted, seconds=clock.seconds)
        contexts = sum(row.is_context for row in rows)
        padding = 0 if contexts else self.settings.padded(len(rows)) - len(rows)
        arguments: dict[str, Any] = {
            "seq_lens": [*(row.new for row in rows), *[1] * padding],
            "num_contexts": contexts,
            "num_cached_tokens": [*(row.cached for row in rows), *[0] * padding],
            "state_slots": [*(row.slot for row in rows), *[NONE] * padding],
        }
        metadata = self._builder.prepare(**arguments)
        batch = self._inputs.batch(rows, len(rows) + padding, metadata)
        said = tuple(_said(row) for row in rows)
        clock.lap("build")
        replays = self.graphs.replays
        with torch.no_grad():
            logits, seen = self.graphs.run(batch)
        clock.lap("forward")
        chosen = [row for row in rows if wants_logits(row)]
        tokens = self._choose(logits[: len(chosen)], chosen)
        clock.lap("choose")
        for row in rows:
            self._scheduler.computed(row)
        finished = self._append(chosen, tokens)
        clock.lap("account")
        if self.settings.check:
            self.require_balanced()
        return StepReport(
            rows=said,
            tokens=tuple((row.tracked.id, token) for row, token in zip(chosen, tokens, strict=True)),
            finished=finished,
            preempted=preempted,
            arguments=arguments,
            metadata=seen.metadata,
            padding=padding,
            replayed=self.graphs.replays > replays,
            seconds=clock.seconds,
        )

    def _choose(self, logits: Tensor, rows: list[Row]) -> list[int]:
        if not rows:
            return []
        tracked = [row.tracked for row in rows]
        if self.settings.record_logits:
            for one, row in zip(tracked, logits.detach().cpu().clone(), strict=True):
                one.logits.append(row)
        return choose(logits, [t.request.sampling for t in tracked], [t.length for t in tracked])

    def _append(self, rows: list[Row], tokens: list[int]) -> tuple[tuple[str, str], ...]:
        finished = []
        for row, token in zip(rows, tokens, strict=True):
            tracked, request = row.tracked, row.tracked.request
            if token in request.stop_tokens:
                self._scheduler.finish(tracked, "stop")
            else:
                tracked.outputs.append(token)
                if len(tracked.outputs) == request.max_new_tokens:
                    self._scheduler.finish(tracked, "length")
            if tracked.status is Status.FINISHED:
                finished.append((tracked.id, tracked.reason))
        return tuple(finished)

    def run(self, requests: Iterable[Request] = ()) -> dict[str, list[int]]:
        """Submit these, step until nothing waits or runs, and return the answers of all that finished meanwhile."""
        for request in requests:
            self.submit(request)
        asked = self.unfinished
        while self.unfinished:
            if not self.step().rows:
                raise RuntimeError(f"no progress: {', '.join(self.unfinished)} wait, and no step can be planned")
        return {request_id: list(self.requests[request_id].outputs) for request_id in asked}

    # -- accounts ---------------------------------------------------------------------------------------------------

    def ownership(self) -> state.Ownership:
        """Who owns what at this moment."""
        slots, pages = self.cache.owned() if self.cache else ({}, {})
        for tracked in self.requests.values():
            if tracked.slot is not None:
                slots[f"request {tracked.id}"] = tracked.slot
            if tracked.pages:
                pages[f"request {tracked.id}"] = tuple(tracked.pages)
        return state.Ownership(
            slots=self._slots.count,
            free_slots=tuple(self._slots.free),
            slot_of=slots,
            pages=self._pages.count,
            free_pages=tuple(self._pages.free),
            references=tuple(self._pages.references),
            pages_of=pages,
            page_size=self.settings.page_size,
            tokens={f"request {t.id}": t.computed for t in self.requests.values()},
        )

    def require_balanced(self) -> None:
        """Raises `state.OwnershipError` where a slot or page is leaked, shared or miscounted."""
        found = state.check(self.ownership())
        if found:
            raise state.OwnershipError("; ".join(found))


def _said(row: Row) -> ReportRow:
    return ReportRow(row.tracked.id, row.is_context, row.new, row.cached, row.slot, tuple(row.tracked.pages))


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now
