"""A sequence cut and resumed, or fed token by token, equals one call; bitwise where a subject's sums do not begin anew at the cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from harness.batch import Batch, Result
from harness.case import Case
from harness.context import Context, Property
from harness.subjects import Capabilities


def split_and_resume_body(context: Context, case: Case) -> None:
    batch = context.batch(case)
    i = case.choice % batch.size
    at = (case.choice // batch.size) % (batch.lengths[i] + 1)
    whole = context.run(batch)
    joined = split_and_resumed(context, batch, i, at)
    if joined is None:
        return
    context.require_same(
        joined,
        whole.select([i]),
        f"sequence {i} cut after {at} of its {batch.lengths[i]} tokens and resumed must equal the uncut run",
        batch=batch.select([i]),
    )


def split_near_body(context: Context, case: Case) -> None:
    """Where chunks begin anew at the cut, sums are added up in another order: equal within the budget.

    The state is kept in float32: the rounding of another pool's dtype at the cut would be an error of the cut.
    """
    batch = context.batch(case.with_(state_dtype="float32"))
    i = case.choice % batch.size
    joined = split_and_resumed(context, batch, i, (case.choice // batch.size) % (batch.lengths[i] + 1))
    if joined is not None:
        context.require_within_budget(joined, batch.select([i]))


def split_at_chunk_body(context: Context, case: Case) -> None:
    """A cut between two chunks changes nothing at all, as long as the state loses nothing on its way."""
    batch = context.batch(case.with_(state_dtype="float32"))
    size = context.capabilities.chunk_size
    i = max(batch.active, key=lambda n: batch.lengths[n], default=0)
    at = size * (case.choice % (batch.lengths[i] // size + 1))
    joined = split_and_resumed(context, batch, i, at)
    if joined is None:
        return
    context.require_same(
        joined,
        context.run(batch).select([i]),
        f"sequence {i} cut after {at} of its {batch.lengths[i]} tokens, a multiple of the promised chunk of {size}, and resumed"
        " must equal the uncut run",
        batch=batch.select([i]),
    )


def promises_no_chunk(_: str, function: Callable[..., Any]) -> str:
    return "" if Capabilities.of(function).chunk_size else "it promises no chunk size"


def split_and_resumed(context: Context, batch: Batch, index: int, at: int) -> Result | None:
    """What sequence ``index`` gives when it is cut after ``at`` tokens and resumed; None when it is inactive."""
    first, second = split(batch, index, at)
    head = context.run(first)
    if not batch.segments[index].active:
        return None
    tail = context.run(resume(second, index, head))
    return Result((torch.cat([head.outputs[index], tail.outputs[0]]),), (tail.states[0],))


def split(batch: Batch, index: int, at: int) -> tuple[Batch, Batch]:
    """The batch with one sequence cut short after ``at`` tokens, and that sequence's rest alone."""
    segment = batch.segments[index]
    head = {name: tensor[:at] for name, tensor in batch.tokens[index].items()}
    rest = {name: tensor[at:] for name, tensor in batch.tokens[index].items()}
    first = batch.replaced(index, segment=replace(segment, length=at), tokens=head)
    second = batch.select([index]).replaced(0, segment=replace(segment, length=segment.length - at), tokens=rest)
    return first, second


def resume(rest: Batch, index: int, after: Result) -> Batch:
    """The rest of a split sequence, continuing the state that the first part left behind."""
    segment = replace(rest.segments[0], kind="resumed")
    return rest.replaced(0, segment=segment, state=after.states[index])


#: Tokens of a sequence that is fed token by token.
STEPS = 12


def shortened(batch: Batch, index: int) -> Batch:
    """One sequence alone, cut after so many tokens that feeding them one by one is soon done."""
    return split(batch, index, min(batch.lengths[index], STEPS))[0].select([index])


def fed_by_token(context: Context, alone: Batch) -> Result:
    """A batch of one active sequence, one call for each token, each resuming what the last one left."""
    segment, state, outputs = alone.segments[0], alone.states[0], []
    for t in range(segment.length):
        one = alone.replaced(
            0,
            segment=replace(segment, length=1),
            tokens={name: tensor[t : t + 1] for name, tensor in alone.tokens[0].items()},
            state=state,
        )
        step = context.run(one)
        outputs.append(step.outputs[0])
        state, segment = step.states[0], replace(segment, kind="resumed")
    return Result((torch.cat(outputs),), (state,))


def single_tokens_body(context: Context, case: Case) -> None:
    """A sequence fed one token a call, each resuming the last, equals one call: bitwise, each output is its own sum."""
    batch = context.batch(case)
    i = case.choice % batch.size
    alone = shortened(batch, i)
    if not alone.active or not alone.lengths[0]:
        return
    whole = context.run(alone)
    context.require_same(
        fed_by_token(context, alone), whole, f"sequence {i} token by token must equal one call", batch=alone
    )


def single_tokens_near_body(context: Context, case: Case) -> None:
    """The same where a call of many tokens adds up in another order: within the budget, the state in float32."""
    batch = context.batch(case.with_(state_dtype="float32"))
    alone = shortened(batch, case.choice % batch.size)
    if alone.active and alone.lengths[0]:
        context.require_within_budget(fed_by_token(context, alone), alone)


split_and_resume = Property("split_and_resume", "relations", split_and_resume_body, weight=2)
split_near = Property("split_and_resume_within_budget", "relations", split_near_body, weight=2)
single_tokens = Property("token_by_token", "relations", single_tokens_body, weight=0.5)
single_tokens_near = Property("token_by_token_within_budget", "relations", single_tokens_near_body, weight=0.5)
