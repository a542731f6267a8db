"""What a shadow says of right and of wrong functions with the engines' signatures, and of its record of a wrong call."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.shadow import Observation, Seen
from tests.harness.support import invoke
from tests.shadow import engine
from tests.shadow.support import clean, counts

NEIGHBOUR = "tests.shadow.engine:prefill_of_the_neighbour"


def _int(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _decode(slots: Tensor) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    rows = len(slots)
    return {
        "A_log": normal(4),
        "a": normal(rows, 1, 4),
        "dt_bias": normal(4),
        "softplus_beta": 1.0,
        "softplus_threshold": 20.0,
        "q": normal(rows, 1, 2, 8),
        "k": normal(rows, 1, 2, 8),
        "v": normal(rows, 1, 4, 6),
        "b": normal(rows, 1, 4),
        "initial_state_source": normal(6, 4, 6, 8),
        "initial_state_indices": slots,
        "use_qk_l2norm_in_kernel": True,
    }


def _conv(width: int = 4) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(2)
    return {
        "x": torch.randn(5, 9, generator=draw),
        "weight": torch.randn(5, width, generator=draw),
        "query_start_loc": _int(0, 4, 6, 9),
        "cache_indices": _int(2, -1, 0),
        "has_initial_state": torch.tensor([True, True, False]),
        "conv_states": torch.randn(3, 5, width - 1, generator=draw),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_contract_on_a_pool_that_is_nan_elsewhere(made: Any, dtype: torch.dtype) -> None:
    it = made("tests.shadow.engine:prefill", "gdn_prefill")
    tokens, rest = engine.prefill_call(dtype=dtype)
    engine.prefill(*tokens, **rest)
    clean(it, 1)
    assert it.signature.name == "contract.gdn_prefill"
    assert 0 < it.report()["worst_share"] < 1


def test_fused_decode_with_padding_and_shared_slots(made: Any) -> None:
    it = made("tests.shadow.engine:fused_sigmoid_gating_delta_rule_update")
    engine.fused_sigmoid_gating_delta_rule_update(**_decode(_int(3, -1, 0)))
    clean(it, 1)
    # Two rows of a padded batch in one slot write it in any order: neither is judged, the third one is.
    engine.fused_sigmoid_gating_delta_rule_update(**_decode(_int(5, 2, 5)))
    clean(it, 2)


@pytest.mark.parametrize("change", [{"softplus_beta": 2.0}, {"use_qk_l2norm_in_kernel": False}])
def test_what_the_contract_does_not_say_is_skipped(made: Any, change: dict[str, Any]) -> None:
    it = made("tests.shadow.engine:fused_sigmoid_gating_delta_rule_update")
    engine.fused_sigmoid_gating_delta_rule_update(**(_decode(_int(3, 0)) | change))
    assert sum(counts(it)["skipped"].values()) == 1


def test_a_state_layout_that_is_taken_wrongly_is_no_silent_pass(made: Any) -> None:
    target = "tests.shadow.engine:fused_sigmoid_gating_delta_rule_update"
    it = made(target, signature="fused_sigmoid_gating.kv")
    engine.fused_sigmoid_gating_delta_rule_update(**_decode(_int(3, 0)))
    assert counts(it)["mismatches"] == 1


def test_a_convolution_that_overwrites_its_input_is_judged_by_what_it_got(made: Any) -> None:
    it = made("tests.shadow.engine:causal_conv1d_fn")
    call = _conv()
    before = call["x"].clone()
    assert engine.causal_conv1d_fn(**call) is call["x"]
    assert not torch.equal(call["x"], before)
    clean(it, 1)


def test_indices_that_change_during_the_call(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def host(x: Tensor, weight: Tensor, bias: Tensor | None = None, **rest: Any) -> Tensor:
        out = right(x, weight, bias, **rest)
        rest["cache_indices"].fill_(1)
        return out

    right = engine.causal_conv1d_fn
    monkeypatch.setattr(engine, "causal_conv1d_fn", _as(right, host))
    it = made("tests.shadow.engine:causal_conv1d_fn")
    engine.causal_conv1d_fn(**_conv())
    clean(it, 1)


def _as(like: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under the signature of another one."""
    return functools.wraps(like)(function)


def test_chunk_metadata_as_tensorrt_llm_calls_it(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    it = made("tests.shadow.engine:cu_seqlens_to_chunk_indices_offsets", "chunk_metadata")
    assert it.signature.name == "tensorrt_llm.chunk_indices"
    engine.cu_seqlens_to_chunk_indices_offsets(_int(0, 5, 10, 25), 8, total_seqlens=25)
    clean(it, 1)
    engine.cu_seqlens_to_chunk_indices_offsets(_int(0, 5, 5), 8)
    assert sum(counts(it)["skipped"].values()) == 1
    it.remove()

    def no_extra(cu_seqlens: Tensor, chunk_size: int, **_: int) -> tuple[Tensor, Tensor]:
        size = -(-int(cu_seqlens[-1]) // chunk_size)
        return torch.arange(size, dtype=torch.int32), torch.zeros(size, dtype=torch.int32)

    name = "cu_seqlens_to_chunk_indices_offsets"
    monkeypatch.setattr(engine, name, _as(engine.cu_seqlens_to_chunk_indices_offsets, no_extra))
    wrong = made(f"tests.shadow.engine:{name}")
    engine.cu_seqlens_to_chunk_indices_offsets(_int(0, 5, 10), 8)
    assert counts(wrong)["mismatches"] == 1
    assert wrong.report()["mismatches"][0]["symptom"] == "wrong metadata"


def test_a_step_s_metadata_with_all_fields(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    it = made("tests.shadow.engine:Builder.prepare", "step_metadata")
    builder = engine.Builder(8, 4, torch.device("cpu"))
    step = {"seq_lens": [5, 3, 1], "num_contexts": 2, "num_cached_tokens": [4, 0, 9], "state_slots": [2, 0, 5]}
    builder.prepare(**step)
    clean(it, 1)
    monkeypatch.setattr(engine.Builder, "stale", True)
    builder.prepare(**step)
    assert counts(it)["mismatches"] == 1
    assert "has_initial_state" in it.report()["mismatches"][0]["message"]


def test_only_the_rows_of_a_pool_are_copied(made: Any) -> None:
    seen: list[Seen] = []
    it = made("tests.shadow.engine:prefill", inline=True)
    translate = it.signature.translate
    object.__setattr__(it, "signature", _watching(it.signature, translate, seen))
    tokens, rest = engine.prefill_call(slots=1000)
    engine.prefill(*tokens, **rest)
    clean(it, 1)
    assert seen[0].arguments["state"].shape == (3, 4, 6, 8)
    assert seen[0].after["state"].shape == (3, 4, 6, 8)


def _watching(signature: Any, translate: Callable[[Seen], Observation], seen: list[Seen]) -> Any:
    from dataclasses import replace

    def watched(call: Seen) -> Observation:
        seen.append(call)
        return translate(call)

    return replace(signature, translate=watched)


# -- a wrong function ----------------------------------------------------------------------------------------------------


@pytest.fixture
def wrong(made: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A shadow of a prefill that reads its neighbour's state."""
    _as_contract(monkeypatch)
    return made(NEIGHBOUR, keep=2)


def _as_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = _as(engine.prefill, engine.prefill_of_the_neighbour)
    monkeypatch.setattr(engine, "prefill_of_the_neighbour", wrapped)


def _run(times: int = 1) -> None:
    for _ in range(times):
        tokens, rest = engine.prefill_call()
        rest["state"][:2] = 1.0
        rest["state"][5:] = 1.0
        engine.prefill_of_the_neighbour(*tokens, **rest)


def test_the_neighbour_s_state_is_found_and_files_are_bounded(wrong: Any, tmp_path: Path) -> None:
    _run(3)
    assert counts(wrong)["mismatches"] == 3
    assert counts(wrong)["errors"] == 0, wrong.report()["first_error"]
    names = sorted(p.name for p in (tmp_path / "shadow").iterdir())
    assert names == [f"mismatch-{n}.{kind}" for n in (1, 2) for kind in ("json", "safetensors")]
    record = json.loads((tmp_path / "shadow/mismatch-1.json").read_text())
    assert record["symptom"] == "over budget"
    assert record["operator"] == "gdn_prefill"
    assert record["rows"][0]["expected"] != record["rows"][0]["got"]
    assert record["environment"]["torch"] == torch.__version__
    assert wrong.report()["mismatches"][0]["file"] == str(tmp_path / "shadow/mismatch-1.json")


def test_replay_calls_the_wrong_function_again_and_a_right_one(wrong: Any, tmp_path: Path) -> None:
    _run()
    counts(wrong)
    file = str(tmp_path / "shadow/mismatch-1.json")
    wrong.remove()
    again = invoke("replay", file)
    assert again.status == 1, again.stdout
    assert "the recorded result differs, as recorded" in again.stdout
    assert "called again on copies: it differs" in again.stdout
    fixed = invoke("replay", file, "--subject", "tests.shadow.engine:prefill")
    assert fixed.status == 0, fixed.stdout
    assert "fixed: tests.shadow.engine:prefill called again on copies holds" in " ".join(fixed.stdout.split())
    gone = invoke("replay", file, "--subject", "tests.shadow.engine:absent")
    assert gone.status == 1, gone.stdout
    assert "not called again" in gone.stdout


def test_a_state_corrupted_on_the_kth_call_only(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def host(*tokens: Tensor, **rest: Any) -> Tensor:
        calls.append(1)
        out = right(*tokens, **rest)
        if len(calls) == 3:
            rest["state"][2, 0, 0, 0] += 1e-3
        return out

    right = engine.prefill
    monkeypatch.setattr(engine, "prefill", _as(right, host))
    it = made("tests.shadow.engine:prefill")
    for _ in range(4):
        tokens, rest = engine.prefill_call()
        engine.prefill(*tokens, **rest)
    assert counts(it)["mismatches"] == 1
    (entry,) = it.report()["mismatches"]
    assert entry["call"] == 3
    assert entry["message"].startswith("state")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mixture_of_experts(made: Any, dtype: torch.dtype) -> None:
    it = made("tests.shadow.engine:experts", "moe")
    x, logits, *weights = engine.experts_call(dtype)
    engine.experts(x, logits, *weights, top_k=2, method="renormalize")
    part = [of_all[1:4] for of_all in weights]
    bias = torch.linspace(-1, 1, 5)
    engine.experts(x, logits, *part, top_k=3, method="sigmoid_renorm", bias=bias, expert_offset=1)
    clean(it, 2)
    assert it.signature.name == "contract.moe"
    assert 0 < it.report()["worst_share"] < 1


def test_swapped_halves_of_an_expert_are_noticed(made: Any) -> None:
    it = made("tests.shadow.engine:experts_swapped", "moe")
    engine.experts_swapped(*engine.experts_call(), top_k=2, method="default")
    assert counts(it)["mismatches"] == 1


def test_tokens_with_scores_that_are_almost_equal_are_not_judged(made: Any) -> None:
    it = made("tests.shadow.engine:experts", "moe")
    x, logits, *weights = engine.experts_call()
    logits[1:] = torch.tensor([0.0, 1e-6, 2e-6, -1.0, -1.0])
    engine.experts(x, logits, *weights, top_k=1, method="sigmoid", bias=torch.full((5,), 0.25))
    clean(it, 1)
    engine.experts(x[1:], logits[1:], *weights, top_k=1, method="sigmoid", bias=torch.full((5,), 0.25))
    found = counts(it)
    assert found["compared"] == 1
    assert sum(found["skipped"].values()) == 1


def scaled_square(seen: Seen) -> Observation:
    """A foreign function as a gated norm: x * x is none, so that every call is a mismatch."""
    x = seen.arguments["x"][:, None]
    return Observation(
        "gated_rmsnorm",
        seen.result[:, None],
        tokens={"x": x, "z": x},
        shared={"weight": torch.ones(x.shape[-1])},
        options={"eps": 1e-6},
    )


@pytest.mark.parametrize("importable", [True, False])
def test_a_translation_of_one_s_own(made: Any, tmp_path: Path, importable: bool) -> None:
    adapt = scaled_square if importable else functools.partial(scaled_square)
    it = made("tests.shadow.engine:square", "gated_rmsnorm", adapt=adapt)
    engine.square(torch.randn(3, 4))
    assert counts(it)["mismatches"] == 1
    it.remove()
    again = invoke("replay", str(tmp_path / "shadow/mismatch-1.json"))
    assert again.status == 1, again.stdout
    assert "as recorded" in again.stdout
    assert ("it differs" if importable else "cannot be imported") in " ".join(again.stdout.split())
