"""Making a failing case smaller by hand-written steps, after Hypothesis has done what it could in its time.

Hypothesis shrinks the choices from which a case was drawn; this shrinks the case: a sequence less, a plainer layout,
smaller dims, shorter lengths, lower slots. Every candidate that still fails in the same way is kept, until none does or
the time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from harness import operators
from harness.case import AnyCase, Case, Layout, Segment, StepCase
from harness.failure import Failure
from references.moe import METHODS

PLAIN = {"amplitude": "unit", "decay": "none", "keys": "random", "gate": "random", "rows": "random"}
PLAIN |= {"logits": "random", "load": "random", "contents": "random"}
SMALL_DIMS = {"D": (1, 2, 3), "W": (2, 3, 4), "K": (4, 8, 16), "V": (4, 8, 16), "C": (1, 2, 4, 8)}
#: Of a mixture of experts; all of them are here as long as E and El change together.
SMALL_DIMS |= {"k": (1, 2), "E": (1, 2, 3, 4), "El": (1, 2), "I": (1, 8, 16), "Hd": (1, 8, 16)}


def polish(
    case: AnyCase, failure: Failure, judge: Callable[[AnyCase], Failure | None], seconds: float
) -> tuple[AnyCase, Failure]:
    """The smallest case found within ``seconds`` that fails with the type of ``failure``, and its failure.

    ``judge`` returns the failure that a case shows, or None.
    """
    deadline = time.monotonic() + seconds
    improved = True
    while improved and time.monotonic() < deadline:
        improved = False
        for candidate in candidates(case):
            if time.monotonic() > deadline:
                break
            found = judge(candidate)
            if found is not None and type(found) is type(failure):
                case, failure, improved = candidate, found, True
                break
    return case, failure


def candidates(case: AnyCase) -> Iterator[AnyCase]:
    """Smaller cases, the boldest first."""
    if isinstance(case, StepCase):
        yield from _smaller_lives(case)
        return
    if not isinstance(case, Case):
        yield from operators.get(case.operator).smaller(case)
        return
    yield from _fewer_sequences(case)
    yield from _joined_segments(case)
    if not case.layout.dense:
        yield case.with_(layout=Layout(wide_indices=case.layout.wide_indices))
        for name, value in vars(case.layout).items():
            if value:
                yield case.with_(layout=replace(case.layout, **{name: type(value)(0)}))
    if case.layout.wide_indices:
        yield case.with_(layout=replace(case.layout, wide_indices=False))
    for name, value in case.regime.items():
        if value != PLAIN.get(name, value):
            yield case.with_(regime={**case.regime, name: PLAIN[name]})
    yield from _smaller_dims(case)
    yield from _shorter(case)
    yield from _lower_slots(case)
    if case.pad_slot != -1:
        yield case.with_(pad_slot=-1)
    for name in ("choice", "seed"):
        if getattr(case, name):
            yield case.with_(**{name: 0})


def _fewer_sequences(case: Case) -> Iterator[Case]:
    """Without a half of them, a quarter, … down to each one."""
    count = len(case.sequences)
    size = count // 2
    while size:
        for start in range(0, count, size):
            kept = (*case.sequences[:start], *case.sequences[start + size :])
            if kept:
                yield case.with_(sequences=kept)
        size //= 2


def _joined_segments(case: Case) -> Iterator[Case]:
    """One segment of as many tokens, where a segment is tokens and nothing else."""
    operator = operators.get(case.operator)
    stateless = isinstance(operator, operators.TokenOperator) and not isinstance(operator, operators.SequenceOperator)
    if stateless and len(case.sequences) > 1:
        yield case.with_(sequences=(Segment(case.tokens),))


def _smaller_dims(case: Case) -> Iterator[Case]:
    dims = case.dims
    if "H" in dims:
        ratio = dims["HV"] // dims["H"]
        for heads, new_ratio in ((1, 1), (1, ratio), (dims["H"], 1), (2, 1)):
            if heads * new_ratio < dims["HV"] and heads <= dims["H"]:
                yield case.with_(dims={**dims, "H": heads, "HV": heads * new_ratio})
    elif "HV" in dims:
        for heads in (1, 2):
            if heads < dims["HV"]:
                yield case.with_(dims={**dims, "HV": heads})
    for name, sizes in SMALL_DIMS.items():
        for size in sizes:
            if name in dims and size < dims[name] and _fits(case, name, size):
                whole = {"El": size} if name == "E" and dims.get("El") == dims["E"] else {}
                yield case.with_(dims={**dims, name: size, **whole})
    if "method" in case.options:
        yield from _plainer_routing(case)


def _fits(case: Case, name: str, size: int) -> bool:
    """Whether a mixture of experts is still one that can be drawn; all experts stay all of them."""
    if name == "E":
        return size >= max(case.dims["k"], case.options["n_group"])
    return name != "El" or case.dims["El"] < case.dims["E"]


def _plainer_routing(case: Case) -> Iterator[Case]:
    """Without groups, scaling, bias; by the first of the methods."""
    if case.dims.get("El", case.dims["E"]) < case.dims["E"]:
        yield case.with_(dims={**case.dims, "El": case.dims["E"]}, options={**case.options, "first": 0})
    plain = {"method": METHODS[0], "n_group": 1, "topk_group": 1, "scaling": 1.0, "bias": None, "first": 0}
    for names in (
        ("method", "n_group", "topk_group", "scaling"),
        ("n_group", "topk_group"),
        ("scaling",),
        ("bias",),
        ("first",),
    ):
        options = {**case.options, **{name: plain[name] for name in names if name in case.options}}
        if options != dict(case.options):
            yield case.with_(options=options)


def _shorter(case: Case) -> Iterator[Case]:
    for i, segment in enumerate(case.sequences):
        for length in (0, 1, 2, segment.length // 2, segment.length - 1):
            if 0 <= length < segment.length and not operators.get(case.operator).decode:
                yield case.with_(sequences=_with(case, i, replace(segment, length=length)))


def _lower_slots(case: Case) -> Iterator[Case]:
    used = {s.slot for s in case.sequences if s.active}
    for i, segment in enumerate(case.sequences):
        lowest = next(n for n in range(len(used) + 1) if n not in used - {segment.slot})
        if segment.active and lowest < segment.slot:
            yield case.with_(sequences=_with(case, i, replace(segment, slot=lowest)))


def _with(case: Case, index: int, segment: Segment) -> tuple[Segment, ...]:
    return (*case.sequences[:index], segment, *case.sequences[index + 1 :])


def _smaller_lives(case: StepCase) -> Iterator[StepCase]:
    count = len(case.steps)
    if count > 1:
        yield replace(case, steps=case.steps[count // 2 :])
        for i in range(min(count, 16)):
            yield replace(case, steps=(*case.steps[:i], *case.steps[i + 1 :]))
    for i, step in enumerate(case.steps):
        for row in range(min(len(step.seq_lens), 12)):
            fewer = replace(
                step,
                seq_lens=_drop(step.seq_lens, row),
                num_contexts=step.num_contexts - (row < step.num_contexts),
                num_cached_tokens=_drop(step.num_cached_tokens, row),
                state_slots=_drop(step.state_slots, row),
            )
            yield replace(case, steps=(*case.steps[:i], fewer, *case.steps[i + 1 :]))


def _drop(values: tuple[int, ...], index: int) -> tuple[int, ...]:
    return (*values[:index], *values[index + 1 :])
