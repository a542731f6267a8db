"""What must hold of ``gdn_prefill``: the gated delta rule over packed sequences, chunk by chunk (spec section 3)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from harness import (
    arguments,
    delta_relations,
    equivalence,
    guards,
    operators,
    placement,
    relations,
    splitting,
    strategies,
    views,
)
from harness.batch import Batch, Result
from harness.case import Case, Layout, Segment
from harness.context import Context, Property
from harness.operators.base import SequenceOperator, generator
from harness.operators.gdn_prefill import GdnPrefill, prefill_cases
from harness.pytest_plugin import CheckedCell
from harness.strategies import Scale
from harness.subjects import registered
from references.gdn import gates, l2norm

OPERATOR = "gdn_prefill"


# -- splits and decode ------------------------------------------------------------------------------------------------


def long_sequences(scale: Scale, dtype: str) -> Any:
    """One to three sequences, as a rule of more than one chunk."""
    length = strategies.weighted((2, st.integers(65, 140)), (1, st.sampled_from([64, 127, 128, 129])))
    return prefill_cases(scale, dtype, strategies.segments(scale, length=length, max_tokens=260))


def several_heads(scale: Scale, dtype: str) -> Any:
    """Two key heads or more: where there is one, the pitch of heads does not matter."""

    def doubled(case: Case) -> Case:
        heads, value_heads = case.dims["H"], case.dims["HV"]
        more = {} if heads > 1 else {"H": 2, "HV": 2 * min(value_heads, 2)}
        return case.with_(dims={**case.dims, **more})

    return operators.get(OPERATOR).cases(scale, dtype).map(doubled)


def one_long_sequence(scale: Scale, dtype: str) -> Any:
    """As many tokens a chunk as there are, and as wide as chunks are long: what is kept of them is then of one size."""
    dims = {"H": 1, "HV": 1, "K": 32, "V": 32}
    cases = prefill_cases(scale, dtype, st.just((Segment(300, "fresh", 0),)))
    return cases.map(lambda case: case.with_(dims=dims))


def two_sequences(scale: Scale, dtype: str) -> Any:
    """Two sequences with tokens: starts can decrease, slots can be one and the same, and no case is without tokens."""
    return prefill_cases(scale, dtype, st.just((Segment(3, "fresh", 0), Segment(2, "resumed", 1))))


def decode_chain_body(context: Context, case: Case) -> None:
    """A prompt fed to the decode operator token by token gives what prefill gives, gates computed there or here."""
    batch, decoded = with_projected_gates(context.batch(case.with_(state_dtype="float32")))
    context.require_within_budget(context.run(batch), batch)
    alone = [i for i in batch.active if batch.lengths[i]]
    if alone:
        fed = batch.select(alone)
        context.require_within_budget(decode_chain(context, decoded.select(alone)), fed, by="decode chain")


def with_projected_gates(batch: Batch) -> tuple[Batch, Batch]:
    """The batch, its sequences cut to a few tokens, with gates that come from projections; and with the projections.

    The second is a batch of `gdn_decode` but for its lengths: it has a and b instead of g and beta.
    """
    case = batch.case
    for i in range(batch.size):
        batch = splitting.split(batch, i, min(batch.lengths[i], splitting.STEPS))[0]
    draw = generator(case, batch.device)
    heads, rows = case.dims["HV"], sum(batch.lengths)
    dtype = batch.tokens[0]["v"].dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=batch.device)

    a, b = ((3 * normal(rows, heads)).to(dtype) for _ in range(2))
    shared = {"A_log": normal(heads), "dt_bias": normal(heads)}
    g, beta = gates(a, b, shared["A_log"], shared["dt_bias"], torch.float32)
    split = {name: x.split(batch.lengths) for name, x in (("a", a), ("b", b), ("g", g), ("beta", beta))}
    kept = [{name: item[name] for name in ("q", "k", "v")} for item in batch.tokens]
    prefill = replace(
        batch,
        tokens=tuple({**item, "g": split["g"][i], "beta": split["beta"][i]} for i, item in enumerate(kept)),
    )
    decode = replace(
        batch,
        tokens=tuple({**item, "a": split["a"][i], "b": split["b"][i]} for i, item in enumerate(kept)),
        shared=shared,
        layout=Layout(),
        case=case.with_(operator="gdn_decode", options={"scale": case.options["scale"], "float32_gates": True}),
    )
    return prefill, decode


def decode_chain(context: Context, batch: Batch) -> Result:
    """What the decode operator gives for sequences of several tokens: one call for the n-th token of each."""
    operator, function = operators.get("gdn_decode"), registered("gdn_decode")[0].load()
    assert isinstance(operator, SequenceOperator)
    zeros = torch.zeros(operator.state_shape(batch), device=batch.device)
    states = [zeros if state is None else state for state in batch.states]
    outputs: list[list[Tensor]] = [[] for _ in states]
    for t in range(max(batch.lengths)):
        rows = [i for i, length in enumerate(batch.lengths) if length > t]
        step = replace(
            batch.select(rows),
            segments=tuple(Segment(1, "resumed", slot) for slot in range(len(rows))),
            tokens=tuple({name: x[t : t + 1] for name, x in batch.tokens[i].items()} for i in rows),
            states=tuple(states[i] for i in rows),
            pool_slots=len(rows),
        )
        got = operator.run(function, step, device=context.device, check_memory=context.check_memory)
        for row, i in enumerate(rows):
            outputs[i].append(got.outputs[row])
            state = got.states[row]
            assert state is not None
            states[i] = state
    return Result(tuple(torch.cat(o) for o in outputs), tuple(states))


def no_decode(_: str, __: Callable[..., Any]) -> str:
    return "" if registered("gdn_decode") else "no package offers a subject of gdn_decode"


# -- algebra ----------------------------------------------------------------------------------------------------------


def with_gates(batch: Batch, *, g: float | None = None, beta: float | None = None) -> Batch:
    """The batch with these gates for every token, where they are given."""
    given = {"g": g, "beta": beta}

    def constant(name: str, tensor: Tensor) -> Tensor:
        value = given.get(name)
        return tensor if value is None else torch.full_like(tensor, value)

    return batch.map_tokens(constant)


def initial_states(batch: Batch) -> list[Tensor | None]:
    """Of each sequence in float64: what its slot holds, zeros where it is fresh, None where it is inactive."""
    dims = batch.case.dims
    zeros = torch.zeros(dims["HV"], dims["V"], dims["K"], dtype=torch.float64, device=batch.device)
    return [
        None if not segment.active else zeros if state is None else state.double()
        for segment, state in zip(batch.segments, batch.states, strict=True)
    ]


def heads_of_values(batch: Batch, index: int, name: str) -> Tensor:
    """q or k of one sequence, normalised, one row for each value head [L, HV, K], float64."""
    ratio = batch.case.dims["HV"] // batch.case.dims["H"]
    return l2norm(batch.tokens[index][name].double()).repeat_interleave(ratio, dim=1)


def zero_gates_body(context: Context, case: Case) -> None:
    """No decay and no write (g = 0, beta = 0): every state keeps its bits, however many tokens pass."""
    silent = with_gates(context.batch(case), g=0.0, beta=0.0)
    got = context.run(silent)
    kept = tuple(
        None if state is None else state.to(have.dtype)
        for state, have in zip(initial_states(silent), got.states, strict=True)
    )
    context.require_same(
        got, Result(got.outputs, kept), "with g = 0 and beta = 0 the state must keep its bits", batch=silent
    )
    context.require_within_budget(got, silent)


def only_decays_body(context: Context, case: Case) -> None:
    """Nothing is written (beta = 0): o_t = scale e^(g_1 + ... + g_t) S q_t, and the state is the decayed one."""
    batch = with_gates(context.batch(case), beta=0.0)
    context.require_within_budget(context.run(batch), batch, oracle=only_decayed(batch))


def zero_keys_body(context: Context, case: Case) -> None:
    """Keys of zero write nothing either, however large the values: their reciprocal norm is the largest there is."""
    batch = with_gates(context.batch(case.with_(regime={**case.regime, "amplitude": "large"})), beta=1.0)
    batch = batch.map_tokens(lambda name, t: t * 0 if name == "k" else t * 16 if name == "v" else t)
    context.require_within_budget(context.run(batch), batch, oracle=only_decayed(batch))


def only_decayed(batch: Batch) -> Result:
    """What a batch gives that writes nothing."""
    outputs, states = [], []
    for i, state in enumerate(initial_states(batch)):
        decay = batch.tokens[i]["g"].double().cumsum(0).exp()
        if state is None:
            outputs.append(torch.zeros(batch.tokens[i]["v"].shape, dtype=torch.float64, device=batch.device))
            states.append(None)
            continue
        read = torch.einsum("hvk,thk->thv", state, heads_of_values(batch, i, "q"))
        outputs.append(GdnPrefill.output_scale(batch) * decay[:, :, None] * read)
        states.append(state * decay[-1][:, None, None] if len(decay) else state)
    return Result(tuple(outputs), tuple(states))


def forgets_body(context: Context, case: Case) -> None:
    """Each token forgets everything before it: o_t = scale beta (q_t . k_t) v_t, the state is the last write, all is finite."""
    batch = with_gates(context.batch(case), g=-1e4)
    outputs, states = [], []
    for i, state in enumerate(initial_states(batch)):
        item = batch.tokens[i]
        q, k = heads_of_values(batch, i, "q"), heads_of_values(batch, i, "k")
        written = item["beta"].double()[:, :, None] * item["v"].double()
        outputs.append(GdnPrefill.output_scale(batch) * (q * k).sum(-1, keepdim=True) * written)
        last = torch.einsum("hv,hk->hvk", written[-1], k[-1]) if len(k) else state
        states.append(None if state is None else last)
        if state is None:
            outputs[-1] = torch.zeros_like(outputs[-1])
    context.require_within_budget(context.run(batch), batch, oracle=Result(tuple(outputs), tuple(states)))


def recall_body(context: Context, case: Case) -> None:
    """Values written under orthonormal keys (beta = 1, no decay) are read back, at once and in a later call."""
    batch = with_gates(context.batch(case.with_(state_dtype="float32")), g=0.0, beta=1.0)
    for i, segment in enumerate(batch.segments):
        count = min(segment.length, case.dims["K"])
        first = splitting.split(batch, i, count)[0]
        keys = orthogonal_keys(case, count, batch.tokens[i]["k"], i)
        tokens = {**first.tokens[i], "q": keys, "k": keys}
        kind = "fresh" if segment.active else "inactive"
        batch = first.replaced(i, segment=replace(first.segments[i], kind=kind), tokens=tokens)
    written = context.run(batch)
    context.require_within_budget(written, batch, oracle=recalled(batch))
    # From the states that were left, with what they were rounded by.
    later = read_again(batch, written, random.Random(case.choice))
    context.require_within_budget(context.run(later), later, oracle=only_decayed(later))


def read_again(batch: Batch, written: Result, rng: random.Random) -> Batch:
    """The same keys as queries in another order, on the states that were left behind, without writing (beta = 0)."""
    batch = with_gates(batch, beta=0.0)
    for i in batch.active:
        order = rng.sample(range(batch.lengths[i]), batch.lengths[i])
        batch = batch.replaced(
            i,
            segment=replace(batch.segments[i], kind="resumed"),
            tokens={name: tensor[order] for name, tensor in batch.tokens[i].items()},
            state=written.states[i],
        )
    return batch


#: Reading a value back under such a key adds up so many terms of one size. Roundings of equal terms have equal signs: 128 of
#: them came to 27 ulps on a GPU, where the budget knows sums whose errors cancel.
MOST_TERMS = 16


def orthogonal_keys(case: Case, count: int, like: Tensor, seed: int) -> Tensor:
    """[count, H, K] of entries 0 and +-1, exactly orthogonal in every dtype: rows of blocks of Hadamard matrices."""
    size = min(MOST_TERMS, case.dims["K"] & -case.dims["K"])  # the largest power of two that divides it
    hadamard = torch.ones(1, 1, device=like.device)
    while hadamard.shape[0] < size:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    rows = torch.block_diag(*[hadamard] * (case.dims["K"] // size))
    draw = torch.Generator().manual_seed(case.choice + seed)
    orders = [torch.randperm(case.dims["K"], generator=draw)[:count] for _ in range(case.dims["H"])]
    return torch.stack([rows[order.to(like.device)] for order in orders], dim=1).to(like.dtype)


def recalled(batch: Batch) -> Result:
    """What reading each token's own key gives, and the sum of all that was written, for keys that are orthonormal."""
    outputs, states = [], []
    for i, segment in enumerate(batch.segments):
        k, v = heads_of_values(batch, i, "k"), batch.tokens[i]["v"].double()
        outputs.append(GdnPrefill.output_scale(batch) * (k * k).sum(-1, keepdim=True) * v * float(segment.active))
        states.append(torch.einsum("thv,thk->hvk", v, k) if segment.active else None)
    return Result(tuple(outputs), tuple(states))


# What goes from chunk to chunk: few of the usual cases have a sequence that is longer than one.
long_equivalence = Property(
    "equivalence_over_chunks", "equivalence", equivalence.equivalence_body, weight=2, strategy=long_sequences
)
empties_added = Property(
    "empty_sequences_added", "relations", relations.empties_added_body, examples=2, strategy=two_sequences
)
strided = replace(placement.strided, strategy=several_heads)
memory = replace(placement.memory, strategy=several_heads)
no_races = replace(placement.no_races, examples=3, strategy=long_sequences)
bad_arguments = replace(arguments.bad_arguments, strategy=two_sequences)
split_at_chunk = Property(
    "split_at_chunk",
    "relations",
    splitting.split_at_chunk_body,
    weight=0.5,
    strategy=long_sequences,
    nothing_to_check=splitting.promises_no_chunk,
)
decode_chain_agrees = Property(
    "agrees_with_decode", "relations", decode_chain_body, weight=0.5, nothing_to_check=no_decode
)
zero_gates = Property("zero_gates_keep_state", "relations", zero_gates_body, weight=0.5)
only_decays = Property("only_decays_without_writes", "relations", only_decays_body, weight=0.5)
# float16 has the smallest range.
zero_keys = Property(
    "zero_keys_write_nothing",
    "equivalence",
    zero_keys_body,
    weight=0.5,
    dtypes=("float16",),
    strategy=two_sequences,
)
forgets = Property("forgets_everything", "relations", forgets_body, weight=0.5)
far_apart = placement.far_apart(GdnPrefill().far_cases)
recall = Property("recalls_what_was_written", "relations", recall_body, weight=0.5)
extreme_dims = equivalence.extreme_dims(GdnPrefill().cases, {"K": [256, 1, 130, 2], "V": [256, 1, 130, 2]})
false_starts = arguments.false_starts()
working_memory = guards.working_memory(one_long_sequence)
stretched_axes = views.stretched_axes(OPERATOR)

PROPERTIES = (
    equivalence.equivalence,
    extreme_dims,
    equivalence.published(GdnPrefill().published_cases),
    long_equivalence,
    zero_keys,
    relations.alone,
    relations.alone_published(GdnPrefill().published_cases),
    relations.permuted,
    relations.slots_renamed,
    relations.inactive_rows_added,
    empties_added,
    splitting.split_near,
    split_at_chunk,
    splitting.single_tokens_near,
    decode_chain_agrees,
    placement.gathered,
    relations.trailing_tokens,
    strided,
    relations.repeated,
    relations.cold_equals_warm,
    relations.neighbour_perturbed,
    relations.future_perturbed,
    relations.scaled,
    delta_relations.linear,
    delta_relations.heads_permuted,
    zero_gates,
    only_decays,
    forgets,
    recall,
    equivalence.baseline_agrees,
    memory,
    placement.poison_independent,
    no_races,
    placement.high_slot,
    far_apart,
    bad_arguments,
    arguments.strict_accepts,
    false_starts,
    views.spread_vectors,
    stretched_axes,
    guards.host_sync,
    guards.launch_count,
    guards.copied_bytes,
    working_memory,
    guards.variants,
    guards.graph_replay,
    guards.pool_memory,
)


def test_property(cell: CheckedCell) -> None:
    cell.check()
