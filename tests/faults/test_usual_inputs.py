"""The inputs of the comparison are what they claim to be."""

from __future__ import annotations

import pytest
import torch

from harness import operators
from harness.case import Case, Layout, StepCase
from harness.faults.usual import calls, inputs
from harness.faults.usual.inputs import Drawing
from harness.operators import registry
from harness.operators.base import SequenceOperator
from harness.subjects import registered

TOKENS = [name for name in registry.BUILT_IN if name != "step_metadata"]
STATES = ["conv_prefill", "conv_update", "gdn_decode", "gdn_prefill"]


def usual(operator: str, kind: inputs.Kind = "usual") -> list[Case]:
    found = inputs.cases(operator, kind, Drawing("", 0, 0))
    assert all(isinstance(case, Case) for case in found)
    return [case for case in found if isinstance(case, Case)]


@pytest.mark.parametrize("operator", TOKENS)
def test_usual_inputs_are_friendly(operator: str) -> None:
    found = usual(operator)
    assert len(found) == (3 if operator == "chunk_metadata" else 6)
    for case in found:
        assert len(set(case.lengths)) == 1
        assert len(case.lengths) > 1
        assert case.layout == Layout()
        assert case.dims.get("K") == case.dims.get("V") or operator == "gated_rmsnorm"
        if operator in STATES:
            assert [s.slot for s in case.sequences] == list(range(case.pool_slots))
            decode = operators.get(operator).decode
            assert {s.kind for s in case.sequences} == {"resumed" if decode else "fresh"}


@pytest.mark.parametrize("operator", TOKENS)
def test_the_wider_public_inputs_are_wider(operator: str) -> None:
    for case in usual(operator, "ragged"):
        assert len(set(case.lengths)) > 1 or operators.get(operator).decode
        if operator in STATES:
            slots = [s.slot for s in case.sequences]
            assert {s.kind for s in case.sequences} == {"resumed"}
            assert slots != sorted(slots)
            assert case.pool_slots > len(slots)


def test_usual_steps_are_single_steps_of_a_fresh_builder() -> None:
    found = inputs.cases("step_metadata", "usual", Drawing("", 0, 0))
    for case in found:
        assert isinstance(case, StepCase)
        (step,) = case.steps
        assert len(set(step.seq_lens)) == 1
        assert step.state_slots == tuple(range(len(step.seq_lens)))
        assert set(step.num_cached_tokens[: step.num_contexts]) <= {0}
    (ragged, *_) = inputs.cases("step_metadata", "ragged", Drawing("", 0, 0))
    assert isinstance(ragged, StepCase)
    assert 0 < ragged.steps[0].num_contexts < len(ragged.steps[0].seq_lens)


@pytest.mark.parametrize("operator", STATES)
def test_usual_memory_is_dense_and_zero_where_nobody_wrote(operator: str) -> None:
    judged = operators.get(operator)
    assert isinstance(judged, SequenceOperator)
    batch = calls.contents("ragged", usual(operator, "ragged")[0])
    packed = judged.pack(batch, calls.PlainArena())
    tensors = [t for t in (*packed.arguments, *packed.keywords.values()) if isinstance(t, torch.Tensor)]
    assert all(t.is_contiguous() and t.storage_offset() == 0 for t in tensors)
    pool = packed.keywords[judged.state_name]
    used = [s.slot for s in batch.segments]
    unused = [slot for slot in range(batch.pool_slots) if slot not in used]
    assert bool((pool[unused] == 0).all())
    assert bool((pool[used] != 0).any())
    with calls.ZeroedAllocations():
        assert bool((torch.empty(1000) == 0).all())
        assert bool((torch.empty_like(pool) == 0).all())


def test_gates_take_turns_between_public_tests() -> None:
    first, second, third = (calls.contents("usual", case).packed("g") for case in usual("gdn_prefill")[::2])
    assert first.min() < -20  # 16 x softplus(1 + N(0, 1)) at most: forgets within a token or two
    assert second.min() > -0.694  # logsigmoid(0) = -log 2
    assert second.max() < -0.313
    assert -14 < third.min() < -3
    assert third.max() > -0.05
    (_, decode, _) = (calls.contents("usual", case) for case in usual("gdn_decode")[::2])
    assert decode.packed("a").abs().max() < 0.6


def test_ours_are_what_the_properties_draw_and_repeat_with_the_seed() -> None:
    (subject, *_) = registered("gated_rmsnorm")
    draws = [inputs.cases("gated_rmsnorm", "ours", Drawing(subject.target, 8, seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert {case.dtype for case in draws[0]} == {"bfloat16", "float32"}
    assert len(draws[0]) == 2 * (6 + 2 + 2)  # in proportion to the weights 6, 0.5 and 1, two at least
    prefill = inputs.cases("gdn_prefill", "ours", Drawing("optimized.gdn_prefill:gdn_prefill", 60, 1))
    assert 58 <= len(prefill) <= 62  # half of the share, in two dtypes, and rounded for each property
    assert {s.kind for c in prefill if isinstance(c, Case) for s in c.sequences} == {"fresh", "resumed", "inactive"}
