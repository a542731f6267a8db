"""What a case promises is in its tensors: its seed, its regime, its poison. A word that changes nothing would look like coverage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import operators
from harness.batch import Batch
from harness.case import Case, Layout, Segment
from harness.execution import Call
from harness.memory import Arena
from harness.operators.base import SequenceOperator, TokenOperator

CPU = torch.device("cpu")
SEQUENCES = (Segment(40, "resumed", 3), Segment(0, "resumed", 0), Segment(24, "fresh", 5), Segment(2, "inactive", -1))
DELTA = {"amplitude": "unit", "decay": "mixed", "keys": "random"}
PLAIN_ROUTING = {"n_group": 1, "topk_group": 1, "scaling": 1.0}
CASES = {
    "conv_prefill": Case(
        operator="conv_prefill",
        sequences=SEQUENCES,
        dims={"D": 8, "W": 4},
        regime={"amplitude": "unit"},
        options={"activation": None, "bias": True},
        pool_slots=7,
    ),
    "conv_update": Case(
        operator="conv_update",
        sequences=(Segment(1, "resumed", 3), Segment(1, "inactive", -1), Segment(1, "resumed", 0)),
        dims={"D": 8, "W": 4},
        regime={"amplitude": "unit"},
        options={"activation": None, "bias": True},
        pool_slots=7,
    ),
    "gdn_decode": Case(
        operator="gdn_decode",
        sequences=tuple(Segment(1, "resumed", slot) for slot in range(16)),
        dims={"H": 2, "HV": 4, "K": 8, "V": 4},
        regime=DELTA,
        options={"scale": None, "float32_gates": True},
        pool_slots=20,
    ),
    "gdn_prefill": Case(
        operator="gdn_prefill",
        sequences=SEQUENCES,
        dims={"H": 2, "HV": 4, "K": 8, "V": 4},
        regime={**DELTA, "beta": "random"},
        options={"scale": None},
        pool_slots=7,
    ),
    "gated_rmsnorm": Case(
        operator="gated_rmsnorm",
        sequences=(Segment(9), Segment(3)),
        dims={"HV": 2, "V": 8},
        regime={"amplitude": "unit", "gate": "random", "rows": "random"},
        options={"eps": None, "float32_weight": False},
    ),
    "moe": Case(
        operator="moe",
        sequences=(Segment(9), Segment(3)),
        dims={"E": 6, "El": 6, "k": 2, "I": 8, "Hd": 16},
        regime={"amplitude": "unit", "contents": "random", "logits": "random", "load": "random"},
        options={**PLAIN_ROUTING, "method": "renormalize", "bias": "small", "first": 0, "logits_dtype": "float32"},
    ),
}
STATEFUL = [name for name in CASES if isinstance(operators.get(name), SequenceOperator)]
PACKED = ("conv_prefill", "gdn_prefill")


def batch(name: str, **regime: str) -> Batch:
    operator, case = operators.get(name), CASES[name]
    assert isinstance(operator, TokenOperator)
    return operator.batch(case.with_(regime={**case.regime, **regime}), CPU)


def packed(name: str, **changes: Any) -> tuple[Call, Arena]:
    operator, arena = operators.get(name), Arena(CPU)
    assert isinstance(operator, TokenOperator)
    return operator.pack(operator.batch(CASES[name].with_(**changes), CPU), arena), arena


def tensors(content: Batch) -> dict[str, Tensor]:
    states = [s for s in content.states if s is not None]
    drawn = {name: content.packed(name) for name in content.tokens[0]} | dict(content.shared)
    return drawn | ({"states": torch.stack(states)} if states else {})


@pytest.mark.parametrize("name", CASES)
def test_contents_follow_from_the_seed(name: str) -> None:
    operator, case = operators.get(name), CASES[name]
    assert isinstance(operator, TokenOperator)
    first, again, other = (tensors(operator.batch(case.with_(seed=seed), CPU)) for seed in (5, 5, 6))
    for what, tensor in first.items():
        assert torch.equal(tensor, again[what]), what
        assert not torch.equal(tensor, other[what]), f"{what} is the same whatever the seed"


@pytest.mark.parametrize("name", CASES)
def test_amplitudes_are_apart(name: str) -> None:
    """Tiny rows are so small that an epsilon counts; large ones are far from one."""
    inputs = {"gdn_decode": "q", "gdn_prefill": "q"}.get(name, "x")
    sizes = [float(batch(name, amplitude=word).packed(inputs).std()) for word in ("tiny", "unit", "large")]
    assert sizes[0] < 1e-2 * sizes[1]
    assert sizes[2] > 10 * sizes[1]


@pytest.mark.parametrize("name", STATEFUL)
def test_only_resumed_sequences_have_a_state(name: str) -> None:
    content = batch(name)
    for segment, state in zip(content.segments, content.states, strict=True):
        assert (state is not None) == (segment.kind == "resumed")
        assert state is None or float(state.abs().min()) > 0


@pytest.mark.parametrize("name", STATEFUL)
def test_slots_that_hold_no_state_are_poison(name: str) -> None:
    """A fresh sequence's own slot too: what it held before belongs to somebody else."""
    call, _ = packed(name)
    operator = operators.get(name)
    assert isinstance(operator, SequenceOperator)
    pool = call.keywords[operator.state_name]
    held = {s.slot for s in CASES[name].sequences if s.kind == "resumed"}
    assert {slot for slot in range(len(pool)) if not bool(pool[slot].isnan().any())} == held
    assert all(bool(pool[slot].isnan().all()) for slot in range(len(pool)) if slot not in held)


@pytest.mark.parametrize("name", PACKED)
def test_only_slots_that_change_may_be_written(name: str) -> None:
    """Not that of an empty resumed sequence, which has nothing to add."""
    _, arena = packed(name)
    [pool] = [buffer for buffer in arena.buffers if buffer.name in ("conv_state", "state")]
    assert sorted(pool.writable_rows) == [3, 5]
    assert all(not buffer.writable_rows for buffer in arena.buffers if buffer is not pool)


@pytest.mark.parametrize("name", PACKED)
def test_the_flag_of_an_inactive_row_would_do_harm(name: str) -> None:
    call, _ = packed(name)
    assert call.keywords["has_initial_state"].tolist() == [True, True, False, True]


@pytest.mark.parametrize("name", ["gdn_decode", "gdn_prefill", "gated_rmsnorm"])
def test_each_input_has_pitches_of_its_own(name: str) -> None:
    """Two inputs of one shape that lay alike could be read with each other's strides."""
    _, arena = packed(name, layout=Layout(row_pad=3, head_pad=8))
    shapes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for buffer in arena.buffers:
        if buffer.view.dim() == 3:
            shapes.setdefault(tuple(buffer.view.shape), []).append(buffer.view.stride())
    assert any(len(strides) > 1 for strides in shapes.values())
    assert all(len(set(strides)) == len(strides) for strides in shapes.values())


def test_decay_differs_from_head_to_head_and_from_token_to_token() -> None:
    rates = -batch("gdn_prefill", decay="mixed").packed("g")
    sizes = rates.mean(0)
    assert float(sizes.max() / sizes.min()) > 5
    assert bool((rates.std(0) > 0.05 * sizes).all())


@pytest.mark.parametrize(("decay", "least", "most"), [("none", 0, 0), ("slow", 1e-5, 0.01), ("underflow", 50, 150)])
def test_decay_of_a_regime(decay: str, least: float, most: float) -> None:
    rates = -batch("gdn_prefill", decay=decay).packed("g")
    assert least <= float(rates.mean()) <= float(rates.max()) <= most


@pytest.mark.parametrize("name", ["gdn_decode", "gdn_prefill"])
def test_keys_of_a_regime(name: str) -> None:
    def cosines(keys: str) -> Tensor:
        unit = torch.nn.functional.normalize(batch(name, keys=keys).packed("k")[:8].double(), dim=-1)
        return torch.einsum("ihk,jhk->hij", unit, unit) - torch.eye(8)

    between = ~torch.eye(8, dtype=torch.bool)
    assert float(cosines("correlated")[:, between].min()) > 0.5
    assert float(cosines("orthogonal").abs().max()) < 1e-6
    assert float(cosines("random")[:, between].abs().mean()) < 0.6
    assert not batch(name, keys="zero").packed("k").any()


@pytest.mark.parametrize(
    ("beta", "least", "most"), [("one", 1, 1), ("zero", 0, 0), ("near one", 0.999, 0.9999), ("random", 0.3, 0.7)]
)
def test_beta_of_a_regime(beta: str, least: float, most: float) -> None:
    assert least <= float(batch("gdn_prefill", beta=beta).packed("beta").mean()) <= most


def test_no_two_taps_of_a_channel_are_alike() -> None:
    weight = batch("conv_prefill").shared["weight"]
    assert all(len(set(taps)) == len(taps) for taps in weight.tolist())


def mixture(**changes: Any) -> Batch:
    """A batch of `moe` with these words for its regime or options."""
    case, operator = CASES["moe"], operators.get("moe")
    assert isinstance(operator, TokenOperator)
    words = {name: {**getattr(case, name), **changes.get(name, {})} for name in ("regime", "options", "dims")}
    return operator.batch(case.with_(**words), CPU)


def test_exact_contents_are_small_whole_numbers() -> None:
    """x is 0 or 1, gates multiples of 64, all else 0 or 1 or -1: no product or sum of few of them is rounded."""
    batch = mixture(regime={"contents": "exact"})
    gate, up = batch.shared["w_gate_up"].chunk(2, dim=1)
    values = [batch.packed("x"), gate, up, batch.shared["w_down"]]
    assert [sorted(set(t.flatten().tolist())) for t in values] == [[0, 1], [0, 64], [-1, 0, 1], [-1, 0, 1]]


def test_loads_of_a_regime() -> None:
    def chosen(**changes: Any) -> set[tuple[int, ...]]:
        return {
            tuple(row) for row in mixture(**changes).packed("router_logits").topk(2).indices.sort(1).values.tolist()
        }

    plain = {"options": {"bias": None}}
    assert len(chosen(**plain)) > 3
    assert len(chosen(**plain, regime={"load": "one expert"})) == 1
    assert len({expert for pair in chosen(**plain, regime={"load": "idle"}) for expert in pair}) == 3


def test_logits_of_a_regime() -> None:
    spread = {}
    for word in ("equal", "near ties", "ties", "random", "wide"):
        logits = mixture(regime={"logits": word}, options={"bias": None}).packed("router_logits")
        spread[word] = float((logits.amax(1) - logits.amin(1)).amax())
    assert spread["equal"] == 0
    assert 0 < spread["near ties"] < 1e-6
    assert spread["ties"] == int(spread["ties"]) > 0
    assert spread["ties"] < spread["random"] < 20 < 100 < spread["wide"]


def test_biases_are_exact_in_every_dtype() -> None:
    for word, unit in (("small", 64), ("large", 4)):
        bias = mixture(options={"bias": word}).shared["bias"].float()
        assert torch.equal((bias * unit).round(), bias * unit)
        assert torch.equal(bias.to(torch.bfloat16).float(), bias)
        assert float(bias.abs().amax()) > 0
