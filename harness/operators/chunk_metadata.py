"""Logical chunks of a packed batch (spec 1.2): integers, so every comparison is exact."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from harness import execution, strategies
from harness.case import Case, Layout, Segment
from harness.failure import Row, fail
from harness.memory import Arena
from harness.operators.base import Operator
from harness.plural import plural
from harness.strategies import Scale
from references.chunk_metadata import chunk_metadata, count_extra_chunks

BOUNDARIES = (4, 8, 16, 64, 128, 256, 512)
CHUNK_SIZES = st.sampled_from([8, 4, 64, 1, 2, 3, 16, 128, 256, 100])


class ChunkMetadata(Operator):
    name = "chunk_metadata"
    summary = "logical chunks of a packed batch: runs of tokens that share a physical chunk and a sequence"
    dtypes = ("int32",)
    case_type = Case

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        few = st.lists(strategies.near(BOUNDARIES, 700), min_size=1, max_size=8)
        # On top of a drawn list, since alone it would be fewer choices, and everything would shrink towards a crowd.
        crowd = st.tuples(st.integers(1, 400), st.integers(1, 40), strategies.SEEDS)
        many = st.builds(_crowd, few, crowd)
        return st.builds(
            self._case,
            strategies.weighted((3, few), (1, many)),
            CHUNK_SIZES,
            st.booleans(),
            st.booleans(),
            st.booleans(),
            strategies.CHOICES,
            st.just(dtype),
        )

    def compile_cases(self, dtype: str) -> Iterator[Case]:
        """Hints are given: without them the host reads the device, and there is none."""
        for wide in (False, True):
            yield self._case([65, 1, 7], 64, True, wide, False, 0, dtype)

    def _case(
        self, lengths: list[int], chunk_size: int, hints: bool, wide: bool, strided: bool, choice: int, dtype: str
    ) -> Case:
        return Case(
            operator=self.name,
            sequences=tuple(Segment(n) for n in lengths),
            dims={"C": chunk_size},
            dtype=dtype,
            options={"hints": hints},
            layout=Layout(wide_indices=wide, strided_indices=strided),
            choice=choice,
        )

    def describe(self, case: Case) -> str:
        lengths = case.lengths
        shown = ", ".join(map(str, lengths[:12])) + (f", … ({len(lengths)} in all)" if len(lengths) > 12 else "")
        hints = "with total_seqlens and extra_chunks given" if case.options["hints"] else "without hints"
        dtype = ("strided " if case.layout.strided_indices else "") + ("int64" if case.layout.wide_indices else "int32")
        return f"{plural(len(lengths), 'sequence')} of {shown} tokens, chunk size {case.dims['C']}, {hints}, {dtype} starts"

    def coverage(self, case: Case) -> dict[str, list[str | int]]:
        extra: dict[str, list[str | int]] = {
            "chunk size": [case.dims["C"]],
            "hints": ["given" if case.options["hints"] else "absent"],
        }
        return super().coverage(case) | extra

    # -- one call ---------------------------------------------------------------------------------------------------

    def pack(
        self, case: Case, device: torch.device, *, lengths: list[int] | None = None, chunk: int | None = None
    ) -> execution.Call:
        arena = Arena(device)
        lengths = case.lengths if lengths is None else lengths
        chunk = case.dims["C"] if chunk is None else chunk
        dtype = torch.int64 if case.layout.wide_indices else torch.int32
        starts = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(dtype).to(device)
        keywords: dict[str, Any] = {}
        if case.options["hints"]:
            keywords = {"total_seqlens": sum(lengths), "extra_chunks": count_extra_chunks(lengths, chunk)}
        strides = (3,) if case.layout.strided_indices else None
        return execution.Call((arena.place("cu_seqlens", starts, strides=strides), chunk), keywords, arena)

    def run(
        self, function: Callable[..., Any], call: execution.Call, *, check_memory: bool = True
    ) -> tuple[Tensor, Tensor]:
        out = execution.invoke(function, call, check_memory=check_memory, what=self.name)
        if not (isinstance(out, tuple) and len(out) == 2 and all(isinstance(t, Tensor) for t in out)):
            fail(
                "wrong shape", f"chunk_metadata returned {type(out).__name__}, expected (chunk_indices, chunk_offsets)"
            )
        for name, tensor in zip(("chunk_indices", "chunk_offsets"), out, strict=True):
            if tensor.dtype != torch.int32:
                fail("wrong dtype", f"{name} is {tensor.dtype}, expected torch.int32")
        return out

    def oracle(self, case: Case) -> tuple[Tensor, Tensor]:
        starts = torch.tensor([0, *case.lengths], dtype=torch.int64).cumsum(0)
        return chunk_metadata(starts, case.dims["C"])

    def require_equal(self, got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], why: str) -> None:
        for name, have, want in zip(("chunk_indices", "chunk_offsets"), got, expected, strict=True):
            require_same_integers(name, have, want, why)


def require_same_integers(name: str, got: Tensor, expected: Tensor, why: str) -> None:
    """Exact equality of two integer vectors, with the first difference spelled out."""
    have, want = got.cpu(), expected.cpu()
    if have.shape == want.shape and torch.equal(have, want):
        return
    if have.shape != want.shape:
        message = f"{name} has {tuple(have.shape)} entries, expected {tuple(want.shape)}"
        first = 0
    else:
        wrong = torch.nonzero((have != want).flatten()).flatten()
        first = int(wrong[0])
        message = f"{name}: {len(wrong)} of {want.numel()} entries are wrong, the first one at {first}"
    start = max(0, first - 2)
    rows = [
        Row(
            f"{name}[{start}:{start + 8}]",
            want.flatten()[start : start + 8].double().tolist(),
            have.flatten()[start : start + 8].double().tolist(),
        )
    ]
    fail("wrong metadata", f"{message}; {why}", rows, mark=name)


def _crowd(lengths: list[int], extra: tuple[int, int, int]) -> list[int]:
    """Hundreds of short sequences more, empties among them: many in one physical chunk, and more than 256 logical chunks."""
    size, longest, seed = extra
    rng = random.Random(seed)
    return [*lengths, *(rng.randint(0, longest) for _ in range(size))]
