"""What must hold of ``chunk_metadata``: integers, so every comparison is exact (spec section 1)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from harness import arguments, guards, placement, views
from harness.case import Case, Segment
from harness.context import Context, Property
from harness.operators.chunk_metadata import ChunkMetadata
from harness.pytest_plugin import CheckedCell
from harness.subjects import sibling

OPERATOR = "chunk_metadata"


def _operator(context: Context) -> ChunkMetadata:
    assert isinstance(context.operator, ChunkMetadata)
    return context.operator


def _run(
    context: Context, case: Case, *, lengths: list[int] | None = None, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    operator = _operator(context)
    call = operator.pack(case, context.device, lengths=lengths, chunk=chunk)
    return operator.run(context.function, call, check_memory=context.check_memory)


def equivalence_body(context: Context, case: Case) -> None:
    operator = _operator(context)
    operator.require_equal(_run(context, case), operator.oracle(case), operator.describe(case))


def hints_agree_body(context: Context, case: Case) -> None:
    """The caller's totals spare a sync; they must not change the answer."""
    other = case.with_(options={"hints": not case.options["hints"]})
    _operator(context).require_equal(_run(context, case), _run(context, other), "with and without hints must agree")


def own_count_body(context: Context, case: Case) -> None:
    """A subject that brings its own way to count extra chunks must count what `chunk_metadata` expects as a hint."""
    count = sibling(context.function, "count_extra_chunks")
    assert count is not None
    operator, chunk = _operator(context), case.dims["C"]
    call = operator.pack(case.with_(options={"hints": False}), context.device)
    call.keywords.update(total_seqlens=case.tokens, extra_chunks=count(case.lengths, chunk))
    got = operator.run(context.function, call, check_memory=context.check_memory)
    operator.require_equal(got, operator.oracle(case), f"with the hint of its own helper; {operator.describe(case)}")


def no_helper_beside(_: str, function: Callable[..., Any]) -> str:
    return "" if sibling(function, "count_extra_chunks") else "its module has no count_extra_chunks"


def empties_dropped_body(context: Context, case: Case) -> None:
    """Zero-length sequences own no chunk: taking them out changes nothing (spec 1.3)."""
    kept = [n for n in case.lengths if n > 0] or [0]
    padded = [n for length in kept for n in ([length, 0] if (case.choice + length) % 2 else [0, length])]
    _operator(context).require_equal(
        _run(context, case, lengths=padded), _run(context, case, lengths=kept), "empty sequences must own no chunk"
    )


def aligned_prefix_body(context: Context, case: Case) -> None:
    """A sequence of p x C tokens in front moves every index by p and no offset."""
    chunk, chunks = case.dims["C"], case.choice % 5 + 1
    indices, offsets = _run(context, case, lengths=[chunks * chunk, *case.lengths])
    base_indices, base_offsets = _run(context, case)
    _operator(context).require_equal(
        (indices[chunks:] - chunks, offsets[chunks:]),
        (base_indices, base_offsets),
        f"{chunks} aligned chunks in front must only move the indices",
    )


def scaled_body(context: Context, case: Case) -> None:
    """Lengths and chunk size times s: the same indices, offsets times s. Reaches starts close to 2^31 tokens."""
    if case.tokens == 0:
        return
    factor = (2**31 - 1) // max(case.tokens, case.dims["C"])
    indices, offsets = _run(context, case)
    large = _run(context, case, lengths=[n * factor for n in case.lengths], chunk=case.dims["C"] * factor)
    expected = (indices, (offsets.long() * factor).to(torch.int32))
    _operator(context).require_equal(large, expected, f"lengths and chunk size times {factor} must scale the offsets")


def block_crossing_body(context: Context, case: Case) -> None:
    """Exactly 255, 256, 257 … logical chunks: around the 256 outputs that one program writes."""
    operator = _operator(context)
    for total in (255, 256, 257, 512, 513):
        lengths = [*[1] * (total - len(case.lengths[:4])), *case.lengths[:4]]
        crossing = case.with_(sequences=tuple(Segment(n) for n in lengths), dims={"C": 4})
        operator.require_equal(_run(context, crossing), operator.oracle(crossing), operator.describe(crossing))
        context.cases += 1


def repeated_body(context: Context, case: Case) -> None:
    _operator(context).require_equal(
        _run(context, case), _run(context, case), "a second call must give the same integers"
    )


def false_values_body(context: Context, case: Case) -> None:
    """Outside strict mode, false hints and starts give lists of some length or a ValueError, and touch nothing else."""
    operator, rng = _operator(context), random.Random(case.choice)
    places = (0, rng.randrange(len(case.lengths) + 1), -1)
    for place, false in [(None, 0), *((place, false) for place in places for false in (-1000, 0, case.tokens + 5))]:
        call = operator.pack(case.with_(options={"hints": place is None or rng.random() < 0.5}), context.device)
        if place is not None:
            call.arguments[0][place] = false
        for name in call.keywords:
            call.keywords[name] = max(0, call.keywords[name] + rng.choice([0, 1, -1, rng.randint(-40, 40)]))
        arguments.unless_refused(context.function, partial(operator.run, call=call, check_memory=context.check_memory))
        call.arena.check()
        context.cases += 1


def far_starts_body(context: Context, case: Case) -> None:
    """Starts so far apart that an offset of one needs more than 31 bits, read as they lie or refused."""
    operator = _operator(context)
    # The last but one, where a sequence begins, is the one that must lie beyond: it opens a chunk, or its length is none.
    lengths = [*case.lengths[:4], 1, 1, 1]
    call = operator.pack(case.with_(options={"hints": True}), context.device, lengths=lengths)
    near = operator.run(context.function, call)
    far = replace(call, arguments=(views.stretched(call.arguments[0], 0, -2), *call.arguments[1:]))
    got = arguments.unless_refused(context.function, lambda f: operator.run(f, far, check_memory=False))
    if got is not None:
        operator.require_equal(got, near, "starts beyond 2^31 elements must give the same chunks as packed ones")


def races_body(context: Context, case: Case) -> None:
    placement.require_no_races(context, lambda: _run(context, case))


equivalence = Property("equivalence", "equivalence", equivalence_body, weight=20)
hints_agree = Property("hints_agree", "relations", hints_agree_body)
own_count = Property("hint_of_its_own_helper", "relations", own_count_body, nothing_to_check=no_helper_beside)
empties_dropped = Property("empty_sequences_dropped", "relations", empties_dropped_body)
aligned_prefix = Property("aligned_prefix", "relations", aligned_prefix_body)
scaled = Property("scaled_to_2_31_tokens", "relations", scaled_body)
block_crossing = Property("block_256_crossing", "relations", block_crossing_body, examples=4)
repeated = Property("repeated", "relations", repeated_body)
false_values = Property("false_values_stay_inside", "arguments", false_values_body, examples=20)
no_races = Property("no_races", "memory", races_body, examples=50, devices=("cpu",))
far_starts = Property("starts_far_apart", "arguments", far_starts_body, examples=2)

PROPERTIES = (
    equivalence,
    hints_agree,
    own_count,
    empties_dropped,
    aligned_prefix,
    scaled,
    block_crossing,
    repeated,
    arguments.bad_arguments,
    arguments.strict_accepts,
    false_values,
    far_starts,
    no_races,
    guards.host_sync,
    guards.launch_count,
    guards.variants,
)


def test_property(cell: CheckedCell) -> None:
    cell.check()
