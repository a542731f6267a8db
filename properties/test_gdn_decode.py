"""What must hold of ``gdn_decode``: one token of the gated delta rule for each row (spec section 4)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from harness import arguments, delta_relations, equivalence, guards, placement, relations, views
from harness.batch import Result
from harness.case import Case
from harness.context import Context, Property
from harness.operators.base import generator
from harness.operators.gdn_decode import GdnDecode
from harness.pytest_plugin import CheckedCell

OPERATOR = "gdn_decode"


def zero_gates_body(context: Context, case: Case) -> None:
    """No decay and no write (g = 0, beta = 0, both exactly): the state keeps its bits and the output only reads it."""
    batch = context.batch(case)
    silent = batch.map_tokens(lambda name, t: torch.full_like(t, -200.0) if name in ("a", "b") else t)
    # With float16 or bfloat16 gates the bias must not lift the softplus above zero.
    silent = replace(silent, shared={**silent.shared, "dt_bias": torch.zeros_like(silent.shared["dt_bias"])})
    got = context.run(silent)
    unchanged = Result(got.outputs, silent.states)
    context.require_same(got, unchanged, "with g = 0 and beta = 0 the state must keep its bits", batch=silent)
    context.require_within_budget(got, silent)


def recall_body(context: Context, case: Case) -> None:
    """With beta = 1 and no decay, what was just written under a key is what that key reads back: o = scale x v for q = k."""
    batch = context.batch(case)
    written = batch.map_tokens(
        lambda name, t: torch.full_like(t, -200.0) if name == "a" else torch.full_like(t, 200.0) if name == "b" else t
    )
    written = replace(
        written,
        tokens=tuple({**item, "q": item["k"].clone()} for item in written.tokens),
        shared={**written.shared, "dt_bias": torch.zeros_like(written.shared["dt_bias"])},
    )
    context.require_within_budget(context.run(written), written)


#: exp(A_log) of the fastest heads as models are initialised: so much is the error of a softplus magnified.
FASTEST = 16.0
STEPS = 4


def steps_add_up_body(context: Context, case: Case) -> None:
    """Heads that forget hardly anything: so many steps without a write equal one of as many times the rate.

    A softplus near zero that loses digits errs to the same side in each step, and a sequence has thousands of them.
    """
    batch = context.batch(case.with_(options={**case.options, "float32_gates": True}, state_dtype="float32"))
    draw = generator(case, batch.device)

    def slow(name: str, t: torch.Tensor) -> torch.Tensor:
        if name == "a":
            return -7.0 * torch.rand(t.shape, generator=draw, device=t.device) - 9.0
        return torch.full_like(t, -200.0) if name == "b" else t

    zeros = torch.zeros_like(batch.shared["dt_bias"])
    batch = replace(batch.map_tokens(slow), shared={"A_log": zeros + math.log(FASTEST), "dt_bias": zeros})
    step = batch
    for _ in range(STEPS):
        got = context.run(step)
        step = replace(step, states=got.states)
    at_once = replace(batch, shared={"A_log": zeros + math.log(FASTEST * STEPS), "dt_bias": zeros})
    context.require_within_budget(got, at_once)


steps_add_up = Property("steps_add_up", "relations", steps_add_up_body, weight=0.5, dtypes=("float32",))
zero_gates = Property("zero_gates_keep_state", "relations", zero_gates_body)
recall = Property("recalls_what_was_written", "relations", recall_body, weight=0.5)
extreme_dims = equivalence.extreme_dims(GdnDecode().cases, {"K": [256, 1, 130, 2], "V": [256, 1, 130, 2]})
stretched_axes = views.stretched_axes(OPERATOR)

PROPERTIES = (
    equivalence.equivalence,
    extreme_dims,
    equivalence.published(GdnDecode().published_cases),
    relations.alone,
    relations.permuted,
    relations.slots_renamed,
    relations.inactive_rows_added,
    placement.strided,
    relations.repeated,
    relations.cold_equals_warm,
    relations.neighbour_perturbed,
    relations.scaled,
    delta_relations.linear,
    zero_gates,
    steps_add_up,
    recall,
    delta_relations.heads_permuted,
    equivalence.baseline_agrees,
    placement.memory,
    placement.poison_independent,
    placement.no_races,
    placement.high_slot,
    arguments.bad_arguments,
    arguments.strict_accepts,
    views.spread_vectors,
    stretched_axes,
    guards.host_sync,
    guards.launch_count,
    guards.copied_bytes,
    guards.variants,
    guards.graph_replay,
)


def test_property(cell: CheckedCell) -> None:
    cell.check()
