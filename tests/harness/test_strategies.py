"""Draws shrink to what a person would write, and generators are not blind."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from harness import operators, strategies
from harness.case import Case, Kind, Layout, Segment
from harness.isolation import find_property
from harness.operators import expert_choice
from harness.operators.gdn_prefill import CPU_TOKENS
from references.chunk_metadata import count_extra_chunks
from tests.harness.support import draws, find_any, minimal, row, smallest

SCALES = {"cpu": strategies.CPU, "cuda": strategies.GPU}
SEQUENCES = ("conv_prefill", "conv_update", "gdn_decode", "gdn_prefill")


@pytest.fixture(params=SCALES)
def scale(request: pytest.FixtureRequest) -> strategies.Scale:
    return SCALES[request.param]


def cases(operator: str, scale: strategies.Scale, dtype: str | None = None) -> Any:
    known = operators.get(operator)
    return known.cases(scale, dtype or known.dtypes[0])


# -- shrinking --------------------------------------------------------------------------------------------------------


def test_resumed_tokens_shrink_to_one_plain_sequence(scale: strategies.Scale) -> None:
    found = minimal(
        cases("conv_prefill", scale), lambda c: any(s.kind == "resumed" and s.length >= 3 for s in c.sequences)
    )
    assert found == Case(
        operator="conv_prefill",
        sequences=(row(length=3),),
        dims={"D": 1, "W": 4},
        regime={"amplitude": "unit"},
        options={"activation": "silu", "bias": False},
        pool_slots=scale.slots,
    )


def test_decode_row_shrinks_to_the_smallest_dims(scale: strategies.Scale) -> None:
    found = minimal(cases("gdn_decode", scale), lambda c: any(s.active for s in c.sequences))
    smallest = scale.head_dims[0]
    assert found == Case(
        operator="gdn_decode",
        sequences=(row(),),
        dims={"H": 1, "HV": 1, "K": smallest, "V": smallest},
        regime={"amplitude": "unit", "decay": "mixed", "keys": "random"},
        options={"scale": None, "float32_gates": False},
        pool_slots=scale.slots,
    )


def test_a_gated_row_shrinks_to_the_smallest_dims(scale: strategies.Scale) -> None:
    found = minimal(cases("gated_rmsnorm", scale), lambda c: c.tokens > 0)
    assert found == Case(
        operator="gated_rmsnorm",
        sequences=(Segment(1),),
        dims={"HV": 1, "V": 4},
        regime={"amplitude": "unit", "gate": "random", "rows": "random"},
        options={"eps": None, "float32_weight": False},
    )


@pytest.mark.parametrize("rows", [2, 3, 17, 33])
def test_rows_shrink_to_one_segment_with_few_heads(scale: strategies.Scale, rows: int) -> None:
    """A fault of the second program or of the last row of the first: so many rows of one kind, and nothing else."""
    found = smallest(cases("gated_rmsnorm", scale), lambda c: c.tokens * c.dims["HV"] >= rows and c.dims["V"] > 20)
    assert (len(found.sequences), found.dims["V"]) == (1, 64)
    assert found.tokens * found.dims["HV"] in range(rows, rows + found.dims["HV"])
    assert set(found.regime.values()) == {"unit", "random"}
    assert found.layout == Layout()


@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_tokens_of_experts_shrink_to_one_plain_segment(scale: strategies.Scale, tokens: int) -> None:
    found = smallest(cases("moe", scale), lambda c: c.tokens >= tokens and c.dims["k"] > 1)
    assert found.sequences == (Segment(tokens),)
    assert dict(found.dims) == {"E": 2, "El": 2, "k": 2, "I": 1, "Hd": 1}
    assert (found.options["method"], found.options["bias"], found.options["first"]) == ("default", None, 0)
    assert set(found.regime.values()) == {"unit", "random"}
    assert found.layout == Layout()


def plain_prefill(scale: strategies.Scale, *lengths: tuple[int, Kind], **changes: Any) -> Case:
    """The batch that one would write by hand: these sequences in slots 0, 1, …, all else as small as can be."""
    smallest = scale.head_dims[0]
    return Case(
        operator="gdn_prefill",
        sequences=tuple(Segment(length, kind, slot) for slot, (length, kind) in enumerate(lengths)),
        dims={"H": 1, "HV": 1, "K": smallest, "V": smallest},
        regime={"amplitude": "unit", "decay": "mixed", "keys": "random", "beta": "random"},
        options={"scale": None},
        pool_slots=scale.slots,
    ).with_(**changes)


@pytest.mark.parametrize(
    ("length", "kind"), [(1, "fresh"), (1, "resumed"), (2, "resumed"), (17, "fresh"), (65, "fresh"), (65, "resumed")]
)
def test_a_fault_behind_a_chunk_shrinks_to_one_sequence(scale: strategies.Scale, length: int, kind: Kind) -> None:
    """What goes wrong from a token on (the state lost at a chunk's end, say) needs this sequence and nothing else."""
    found = minimal(
        cases("gdn_prefill", scale), lambda c: any(s.kind == kind and s.length >= length for s in c.sequences)
    )
    assert found == plain_prefill(scale, (length, kind))


def test_a_boundary_within_a_chunk_shrinks_to_two_sequences() -> None:
    """A kernel that counts chunks from the first token of the batch is wrong from the second sequence on."""

    def straddles(c: Case) -> bool:
        starts = itertools.accumulate(c.lengths, initial=0)
        pairs = zip(c.sequences, starts, strict=False)
        return any(s.active and start % 64 + s.length > 64 and s.length <= 64 for s, start in pairs)

    found = smallest(cases("gdn_prefill", strategies.CPU), straddles)
    assert len(found.sequences) == 2
    assert found.tokens == 65
    assert found.layout == Layout()


@pytest.mark.parametrize("beta", ["one", "zero", "near one"])
def test_a_beta_shrinks_alone(scale: strategies.Scale, beta: str) -> None:
    found = smallest(cases("gdn_prefill", scale), lambda c: c.regime["beta"] == beta and c.tokens > 0)
    assert (found.tokens, len(found.sequences), found.layout) == (1, 1, Layout())
    assert [name for name, word in found.regime.items() if word not in ("unit", "mixed", "none", "random")] == ["beta"]


def test_two_sequences_shrink_to_exactly_two(scale: strategies.Scale) -> None:
    found = smallest(cases("conv_prefill", scale), lambda c: sum(s.length >= 2 for s in c.sequences if s.active) >= 2)
    assert sorted(found.sequences, key=lambda s: s.slot) == [Segment(2, "fresh", 0), Segment(2, "fresh", 1)]
    assert (found.layout, found.seed, found.choice) == (Layout(), 0, 0)


def test_inactive_row_beside_a_live_one(scale: strategies.Scale) -> None:
    found = smallest(cases("conv_update", scale), lambda c: len({s.active for s in c.sequences}) == 2)
    assert sorted(s.kind for s in found.sequences) == ["inactive", "resumed"]
    assert found.pad_slot == -1


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_one_odd_dimension_leaves_the_others_small(scale: strategies.Scale, ratio: int) -> None:
    found = smallest(cases("gdn_decode", scale), lambda c: c.dims["HV"] // c.dims["H"] == ratio)
    assert (found.dims["H"], found.dims["HV"]) == (1, ratio)
    # Polishing knows smaller ones than the scale draws.
    assert max(found.dims["K"], found.dims["V"]) <= scale.head_dims[0]
    assert len(found.sequences) == 1


def test_a_strided_layout_shrinks_to_one_cause(scale: strategies.Scale) -> None:
    found = minimal(cases("conv_update", scale), lambda c: c.layout.slot_pad > 0)
    assert found.layout == Layout(slot_pad=1)


@pytest.mark.parametrize("bound", [4, 7, 17, 40, 65])
def test_a_length_shrinks_to_its_bound(scale: strategies.Scale, bound: int) -> None:
    found = minimal(cases("conv_prefill", scale), lambda c: max(c.lengths) >= bound)
    assert found.lengths == [bound]


def test_a_fault_of_the_crowd_keeps_the_smallest_crowd() -> None:
    found = minimal(cases("conv_prefill", strategies.GPU), lambda c: len(c.sequences) >= 100)
    assert (len(found.sequences), found.tokens, found.seed) == (100, 0, 0)


def test_chunks_shrink_to_the_boundary() -> None:
    found = minimal(cases("chunk_metadata", strategies.CPU), lambda c: count_extra_chunks(c.lengths, c.dims["C"]) >= 1)
    assert (found.lengths, dict(found.dims)) == ([1, 1], {"C": 8})


def test_a_step_shrinks_to_one_row() -> None:
    found = minimal(cases("step_metadata", strategies.CPU), lambda c: any(s.num_contexts for s in c.steps))
    assert [len(step.seq_lens) for step in found.steps] == [1]
    assert (found.steps[0].state_slots, found.steps[0].num_cached_tokens) == ((0,), (0,))


# -- not blind --------------------------------------------------------------------------------------------------------

Predicate = Callable[[Case], bool]


def _width(offset: int) -> Predicate:
    return lambda c: any(s.length == c.dims["W"] + offset for s in c.sequences if s.active)


def _ratio(ratio: int) -> Predicate:
    return lambda c: c.dims["HV"] == ratio * c.dims["H"]


def _regime(name: str, word: str) -> Predicate:
    return lambda c: c.regime[name] == word


PREFILL: dict[str, Predicate] = {
    "empty sequence first": lambda c: len(c.lengths) > 2 and c.lengths[0] == 0 < sum(c.lengths[1:]),
    "empty sequence in the middle": lambda c: 0 in c.lengths[1:-1] and c.lengths[0] > 0 and c.lengths[-1] > 0,
    "empty sequence last": lambda c: len(c.lengths) > 2 and c.lengths[-1] == 0 < sum(c.lengths),
    "nothing but empty sequences": lambda c: len(c.lengths) >= 2 and c.tokens == 0,
    "empty and resumed": lambda c: any(s.length == 0 and s.kind == "resumed" for s in c.sequences),
    "empty and fresh": lambda c: any(s.length == 0 and s.kind == "fresh" for s in c.sequences),
    "W - 1 tokens": _width(-1),
    "W tokens": _width(0),
    "W + 1 tokens": _width(1),
    "fewer tokens than history, resumed": lambda c: any(
        0 < s.length < c.dims["W"] - 1 and s.kind == "resumed" for s in c.sequences
    ),
    "all three kinds at once": lambda c: {s.kind for s in c.sequences} == {"fresh", "resumed", "inactive"},
    "every width": lambda c: c.dims["W"] == 3,
    "no activation, with bias": lambda c: c.options == {"activation": None, "bias": True},
    "channels beyond a block": lambda c: c.dims["D"] > 128,
}
EVERY: dict[str, Predicate] = {
    "slots out of order": lambda c: (lambda s: len(s) > 2 and s != sorted(s))(
        [g.slot for g in c.sequences if g.active]
    ),
    "inactive row with slot -2^31": lambda c: c.pad_slot == -(2**31) and any(not s.active for s in c.sequences),
    "all rows inactive": lambda c: not any(s.active for s in c.sequences),
    "padded slots": lambda c: c.layout.slot_pad > 0,
    "strided slot vector": lambda c: c.layout.strided_indices and len(c.sequences) > 1,
    "padded token rows": lambda c: c.layout.row_pad > 0,
    "shifted base": lambda c: c.layout.base_offset > 0,
    "int64 indices": lambda c: c.layout.wide_indices,
    "large amplitude": lambda c: c.regime["amplitude"] == "large",
    "tiny amplitude": lambda c: c.regime["amplitude"] == "tiny",
    "a high slot": lambda c: any(s.slot == c.pool_slots - 1 for s in c.sequences),
}
DECODE: dict[str, Predicate] = {
    "K > V": lambda c: c.dims["K"] > c.dims["V"],
    "K < V": lambda c: c.dims["K"] < c.dims["V"],
    "K no power of two": lambda c: c.dims["K"] & (c.dims["K"] - 1) != 0,
    **{f"HV / H = {ratio}": _ratio(ratio) for ratio in (1, 2, 3, 4)},
    "several key heads with several value heads each": lambda c: c.dims["H"] > 1 and c.dims["HV"] > c.dims["H"],
    "fused": lambda c: c.layout.fused,
    "padded heads": lambda c: c.layout.head_pad > 0,
    "bfloat16 state": lambda c: c.state_dtype == "bfloat16",
    "a scale": lambda c: c.options["scale"] is not None,
    **{f"decay {word}": _regime("decay", word) for word in ("none", "slow", "published", "underflow")},
    **{f"keys {word}": _regime("keys", word) for word in ("correlated", "orthogonal", "zero")},
}
NORM: dict[str, Predicate] = {
    "rows of one element": lambda c: c.dims["V"] == 1 and c.tokens > 0,
    "V no power of two": lambda c: c.dims["V"] & (c.dims["V"] - 1) != 0,
    "V beyond 128": lambda c: c.dims["V"] > 128,
    "segments without a token": lambda c: c.tokens == 0,
    "rows for several programs": lambda c: c.tokens * c.dims["HV"] * c.dims["V"] > 4096,
    "one head": lambda c: c.dims["HV"] == 1 and c.tokens > 1,
    "an odd number of rows": lambda c: c.tokens * c.dims["HV"] % 2 == 1 and c.dims["HV"] > 1,
    "shut and open gates": lambda c: c.regime["gate"] == "saturated",
    "zero rows": lambda c: c.regime["rows"] == "some zero",
    "tiny x under a large epsilon": lambda c: c.regime["amplitude"] == "tiny" and c.options["eps"] == 0.5,
    "squares beyond float16": lambda c: c.regime["amplitude"] == "large",
    "float32 weight": lambda c: c.options["float32_weight"],
    "column slices of one buffer": lambda c: c.layout.fused,
    "heads with gaps": lambda c: c.layout.head_pad > 0 and not c.layout.fused,
    "tokens with gaps": lambda c: c.layout.row_pad > 0 and not c.layout.fused,
    "unaligned": lambda c: c.layout.base_offset == 1,
}
ROUTED: dict[str, Predicate] = {
    "no tokens": lambda c: c.tokens == 0,
    "one token": lambda c: c.tokens == 1,
    "E no power of two": lambda c: c.dims["E"] & (c.dims["E"] - 1) != 0,
    "one expert": lambda c: c.dims["E"] == 1 and c.tokens > 0,
    "k = 1": lambda c: c.dims["k"] == 1 < c.dims["E"],
    "k = E": lambda c: c.dims["k"] == c.dims["E"] > 1,
    "k no power of two": lambda c: c.dims["k"] & (c.dims["k"] - 1) != 0,
    "some of several groups": lambda c: 1 < c.options["topk_group"] < c.options["n_group"],
    "groups of one expert": lambda c: c.options["topk_group"] < c.options["n_group"] == c.dims["E"],
    "scaled": lambda c: c.options["scaling"] != 1.0,
    "large bias": lambda c: c.options["bias"] == "large",
    **{f"logits {word}": _regime("logits", word) for word in ("ties", "near ties", "wide", "equal")},
    "all tokens on one expert": lambda c: c.regime["load"] == "one expert" and c.tokens > 8,
    "idle experts": lambda c: c.regime["load"] == "idle" and c.dims["E"] > c.dims["k"],
    "strided": lambda c: c.layout.row_pad > 0,
    "unaligned": lambda c: c.layout.base_offset == 1,
}
MIXED: dict[str, Predicate] = {
    "some of the experts": lambda c: c.dims["El"] < c.dims["E"] and c.options["first"] > 0,
    "float32 logits of other tokens": lambda c: c.options["logits_dtype"] != c.dtype,
    "exact contents": lambda c: c.regime["contents"] == "exact",
    "I no multiple of 16": lambda c: c.dims["I"] % 16 != 0,
    "Hd no multiple of 16": lambda c: c.dims["Hd"] % 16 != 0,
}
CHUNKS: dict[str, Predicate] = {
    "hints": lambda c: c.options["hints"],
    "no hints": lambda c: not c.options["hints"],
    "more than 256 logical chunks": lambda c: (
        -(-c.tokens // c.dims["C"]) + count_extra_chunks(c.lengths, c.dims["C"]) > 256
    ),
    "three sequences in one chunk": lambda c: any(
        sum(s <= 0 < e for s, e in _relative(c, n)) >= 3 for n in range(-(-c.tokens // c.dims["C"]))
    ),
    "a boundary on a chunk": lambda c: any(e % c.dims["C"] == 0 for _, e in _bounds(c.lengths)[:-1] if e > 0),
    "empty first": lambda c: c.lengths[0] == 0 < c.tokens,
    "empty last": lambda c: c.lengths[-1] == 0 < c.tokens,
    "no tokens at all": lambda c: c.tokens == 0,
    "chunk size no power of two": lambda c: c.dims["C"] & (c.dims["C"] - 1) != 0,
    "hundreds of sequences": lambda c: len(c.lengths) > 256,
}


def _bounds(lengths: list[int]) -> list[tuple[int, int]]:
    ends, total = [], 0
    for length in lengths:
        ends.append((total, total + length))
        total += length
    return ends


def _relative(case: Case, chunk: int) -> list[tuple[int, int]]:
    """Token ranges of non-empty sequences, as (start <= 0 < end) where the sequence meets this chunk."""
    low, high = chunk * case.dims["C"], (chunk + 1) * case.dims["C"]
    return [(0, 1) if s < high and e > low else (1, 1) for s, e in _bounds(case.lengths) if e > s]


CHUNKED: dict[str, Predicate] = {
    **{what: PREFILL[what] for what in list(PREFILL)[:6]},
    "all three kinds at once": PREFILL["all three kinds at once"],
    "resumed, more than one chunk": lambda c: any(s.length > 64 and s.kind == "resumed" for s in c.sequences),
    "a whole chunk": lambda c: any(s.length == 64 for s in c.sequences if s.active),
    "two whole chunks": lambda c: any(s.length == 128 for s in c.sequences if s.active),
    "more than two chunks": lambda c: any(s.length > 128 for s in c.sequences if s.active),
    "a long sequence behind a short one": lambda c: 0 < c.lengths[0] < 64 < max(c.lengths[1:], default=0),
    **{f"beta {word}": _regime("beta", word) for word in ("one", "zero", "near one")},
    "decay varied": _regime("decay", "varied"),
}


SEEN = [
    *(("conv_prefill", what) for what in {**PREFILL, **EVERY}),
    *(("conv_update", what) for what in EVERY),
    *(("gdn_decode", what) for what in {**DECODE, **EVERY}),
    *(("gated_rmsnorm", what) for what in NORM),
    *(("moe_routing", what) for what in ROUTED),
    # A router has cases enough for what is one in a thousand.
    *(("moe", what) for what in {**ROUTED, **MIXED} if what != "groups of one expert"),
    *(("gdn_prefill", what) for what in {**CHUNKED, **DECODE, **EVERY}),
    *(("chunk_metadata", what) for what in CHUNKS),
]


@pytest.mark.parametrize(("operator", "what"), SEEN, ids=[f"{o}-{w}" for o, w in SEEN])
def test_generator_is_not_blind(operator: str, what: str, scale: strategies.Scale) -> None:
    """Each occurs within a thousand draws; one premerge run on a GPU makes twice as many."""
    known = (ROUTED, MIXED) if operator.startswith("moe") else (EVERY, PREFILL, CHUNKED, DECODE, NORM, CHUNKS)
    predicate = {name: one for names in known for name, one in names.items()}[what]
    assert predicate(find_any(cases(operator, scale, "bfloat16" if operator == "moe" else None), predicate))


#: What a kernel may take a path of its own for: heads that one GPU of sixteen holds, a whole model's, views of wider rows.
PUBLISHED = {
    "one head": lambda c: c.dims["HV"] == 1,
    "a whole model": lambda c: c.dims["H"] == 16 and c.dims["HV"] > 16,
    "dense": lambda c: c.layout == Layout(),
    "fused": lambda c: c.layout.fused,
    "a state to begin with": lambda c: any(s.kind == "resumed" and s.length for s in c.sequences),
}


@pytest.mark.parametrize("what", PUBLISHED)
@pytest.mark.parametrize("operator", ["gdn_prefill", "gdn_decode"])
def test_published_shapes(operator: str, what: str) -> None:
    strategy = find_property(operator, "equivalence_at_published_shapes").strategy
    assert strategy is not None
    drawn = draws(strategy(strategies.GPU, "bfloat16"), 200)
    assert {(c.dims["K"], c.dims["V"]) for c in drawn} == {(128, 128)}
    assert all(c.pool_slots * c.dims["HV"] <= 16 * 64 for c in drawn)
    assert sum(map(PUBLISHED[what], drawn)) >= 3


@pytest.mark.parametrize("operator", [*SEQUENCES, "gated_rmsnorm", "chunk_metadata", "moe_routing", "moe"])
def test_usually_two_sequences_or_more(operator: str, scale: strategies.Scale) -> None:
    sizes = [len(c.sequences) for c in draws(cases(operator, scale), 300)]
    share = sum(n >= 2 for n in sizes) / len(sizes)
    assert share > 0.5, f"only {share:.0%} of the draws have two sequences or more: {collections.Counter(sizes)}"


def test_every_block_of_experts_occurs_on_a_gpu() -> None:
    blocks = {1 << (experts - 1).bit_length() for experts in expert_choice.EXPERTS["cuda"]}
    assert blocks == {1 << n for n in range(10)}


@pytest.mark.parametrize("operator", ["moe_routing", "moe"])
def test_of_several_groups_fewer_than_all_are_usually_kept(operator: str, scale: strategies.Scale) -> None:
    """Where all are kept they choose nothing, and a router that forgets them is right."""
    options = [case.options for case in draws(cases(operator, scale), 300)]
    kept = [one["topk_group"] < one["n_group"] for one in options if one["n_group"] > 1]
    assert len(kept) >= 20
    assert sum(kept) / len(kept) > 0.6


@pytest.mark.parametrize("operator", SEQUENCES)
def test_active_rows_never_share_a_slot(operator: str, scale: strategies.Scale) -> None:
    for case in draws(cases(operator, scale), 200):
        slots = [s.slot for s in case.sequences if s.active]
        assert len(set(slots)) == len(slots)
        assert all(0 <= s < case.pool_slots for s in slots)
        limit = max(scale.max_tokens, CPU_TOKENS) if operator == "gdn_prefill" else scale.max_tokens
        assert case.tokens <= limit + len(case.sequences)
