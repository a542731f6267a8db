"""Steps of decodes alone, replayed: one graph for each number of rows, reading and writing buffers that never move.

A graph holds addresses. Each step's inputs are copied to where the graph reads them; whatever is not copied is what an
earlier step left there. `emulated` does all the same on any device, with a call of the model in place of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .batch import StepBatch
from .caches import Caches
from .step_inputs import NONE

Model = Callable[[StepBatch, Caches], Tensor]

#: What a step of decodes brings along; all else about it is the same each time.
INPUTS = ("tokens", "positions", "write_slots", "page_tables", "lengths", "logit_rows")
METADATA = ("query_start_loc", "has_initial_state", "state_indices")


@dataclass(frozen=True)
class StaticMetadata:
    """The metadata of a step of decodes, at addresses that stay: no context has tokens or chunks there."""

    query_start_loc: Tensor
    has_initial_state: Tensor
    state_indices: Tensor
    seq_idx: Tensor
    chunk_indices: None = None
    chunk_offsets: None = None


class DecodeGraphs:
    """Runs steps: eagerly, or, where it has a graph for it, by replay.

    Attributes:
        captured: numbers of rows that a graph was made for. replays: how many steps were replayed.
    """

    def __init__(self, model: Model, caches: Caches, kind: str, sizes: Sequence[int], max_length: int) -> None:
        self._model, self._caches, self._kind, self._max_length = model, caches, kind, max_length
        self._sizes = frozenset(sizes) if kind != "off" else frozenset()
        self._graphs: dict[int, _Graph] = {}
        self._pool: Any = None
        self.replays = 0

    @property
    def captured(self) -> list[int]:
        return sorted(self._graphs)

    def run(self, batch: StepBatch) -> tuple[Tensor, StepBatch]:
        """Logits, and the batch as the model saw it. Logits of a replay are overwritten by the next one of its size."""
        rows = batch.lengths.shape[0]
        if batch.num_contexts or rows not in self._sizes:
            return self._model(batch, self._caches), batch
        graph = self._graphs.get(rows)
        if graph is None:
            graph = self._graphs[rows] = self._capture(batch)
        graph.load(batch)
        graph.replay()
        self.replays += 1
        return graph.logits, graph.batch

    def _capture(self, batch: StepBatch) -> _Graph:
        """A graph for as many rows. It is warmed up and captured on padding rows: they touch no slot and no page."""
        static = replace(
            batch,
            **{name: getattr(batch, name).clone() for name in INPUTS},
            metadata=StaticMetadata(
                **{name: getattr(batch.metadata, name).clone() for name in METADATA},
                seq_idx=batch.tokens.new_empty(0, dtype=torch.int32),
            ),
            max_length=self._max_length,
        )
        static.metadata.state_indices.fill_(NONE)
        static.metadata.has_initial_state.fill_(False)
        static.write_slots.fill_(NONE)
        static.page_tables.fill_(NONE)
        static.lengths.zero_()
        static.positions.zero_()
        if self._kind == "emulated":
            logits = self._model(static, self._caches).clone()
            return _Graph(static, logits, lambda: logits.copy_(self._model(static, self._caches)))
        return self._captured(static)

    def _captured(self, static: StepBatch) -> _Graph:
        """On a side stream: kernels are compiled and libraries make their workspaces before the capture, not in it."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(2):
                self._model(static, self._caches)
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._model(static, self._caches)
        return _Graph(static, logits, graph.replay)


@dataclass(frozen=True)
class _Graph:
    batch: StepBatch
    logits: Tensor
    replay: Callable[[], Any]

    def load(self, batch: StepBatch) -> None:
        """This step's inputs to where the graph reads them."""
        for name in INPUTS:
            getattr(self.batch, name).copy_(getattr(batch, name))
        for name in METADATA:
            getattr(self.batch.metadata, name).copy_(getattr(batch.metadata, name))
