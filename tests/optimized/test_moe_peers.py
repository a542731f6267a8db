"""Adapters to mixtures of experts: the preparation of weights, and the contract around twins of the libraries' functions."""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimized.peers import (
    flashinfer,
    flashinfer_moe,
    routing_methods,
    sglang,
    sglang_moe,
    torch_grouped,
    transformers,
    trtllm_layout,
    trtllm_twin,
)
from optimized.peers.prepared import Preparations
from references.moe import METHODS, moe_experts, moe_routing

#: What FlashInfer's own functions answer, with their version; see "source" in it.
FACTS = json.loads((Path(__file__).parent / "data" / "flashinfer_moe_0.7.2.json").read_text(encoding="utf-8"))
BFLOAT16 = 2.0**-8


# -- the layout -----------------------------------------------------------------------------------------------------------


def test_row_orders_are_those_of_flashinfer() -> None:
    for rows, expected in FACTS["gated"].items():
        assert trtllm_layout.gated_rows(int(rows)).tolist() == expected
    for name, expected in FACTS["shuffled"].items():
        rows, tile = map(int, name.split("/"))
        assert trtllm_layout.shuffled_rows(rows, tile).tolist() == expected
        assert trtllm_layout.rows_of(rows, gated=False, epilogue_rows=tile).tolist() == FACTS["second"][name]
        assert trtllm_layout.rows_of(rows, gated=True, epilogue_rows=tile).tolist() == FACTS["first"][name]


@pytest.mark.parametrize("sizes", FACTS["experts"], ids=lambda sizes: f"{sizes['hidden']}x{sizes['intermediate']}")
def test_whole_experts_are_laid_out_as_by_flashinfer(sizes: dict[str, Any]) -> None:
    """Matrices whose elements are their own numbers, up first as FlashInfer wants them."""
    hidden, intermediate = sizes["hidden"], sizes["intermediate"]
    first, second = _numbered(2 * intermediate, hidden), _numbered(hidden, intermediate)
    got = trtllm_layout.prepared(first.roll(intermediate, dims=0).unsqueeze(0), second.unsqueeze(0))
    for name, tensor in zip(("first", "second"), got, strict=True):
        assert list(tensor[0].shape) == sizes[f"{name}_shape"]
        assert hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest() == sizes[name]


@given(st.integers(1, 12), st.booleans(), st.sampled_from([64, 128, 192, 256]))
@settings(max_examples=40, deadline=None)
def test_orders_are_permutations_and_their_inverses_restore(blocks: int, gated: bool, tile: int) -> None:
    rows = 32 * blocks
    order = trtllm_layout.rows_of(rows, gated=gated, epilogue_rows=tile)
    assert sorted(order.tolist()) == list(range(rows))
    assert torch.equal(order[trtllm_layout.inverse(order)], torch.arange(rows))
    assert torch.equal(torch.arange(rows)[order][trtllm_layout.inverse(order)], torch.arange(rows))


def test_blocks_are_undone() -> None:
    matrices = torch.arange(2 * 3 * 128).view(2, 3, 128)
    blocks = trtllm_layout.blocked(matrices)
    assert blocks.shape == (2, 2, 3, 64)
    assert torch.equal(blocks[1, 1, 2], matrices[1, 2, 64:])
    assert torch.equal(trtllm_layout.unblocked(blocks), matrices)


def test_the_two_tiles_have_orders_of_their_own() -> None:
    """Tables are remembered: every parameter that changes them must tell them apart."""
    orders = {
        (gated, tile): tuple(trtllm_layout.rows_of(64, gated=gated, epilogue_rows=tile).tolist())
        for gated in (False, True)
        for tile in (64, 128)
    }
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: trtllm_layout.gated_rows(7), "rows: got 7"),
        (lambda: trtllm_layout.shuffled_rows(48), "multiple of 32"),
        (lambda: trtllm_layout.shuffled_rows(24, 64), "multiple of 16"),
        (lambda: trtllm_layout.blocked(torch.zeros(1, 2, 100)), "columns: got 100"),
    ],
)
def test_what_has_no_such_order_is_refused(call: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()


# -- weights are prepared once --------------------------------------------------------------------------------------------


def test_weights_are_prepared_once_and_again_when_they_change() -> None:
    kept, weights = Preparations(), torch.zeros(4)
    made: list[int] = []

    def get(*layout: Any, of: torch.Tensor = weights) -> int:
        return kept.get(lambda: made.append(0) or len(made), (of,), layout)  # type: ignore[func-returns-value]

    assert [get("a"), get("a"), get("b"), get("a")] == [1, 1, 2, 1]
    # Another object of the same memory is the same weights, another part of it is not.
    assert get("a", of=weights.view(4)) == 1
    assert get("a", of=weights[1:]) == 3
    weights.add_(1)
    assert [get("a"), get("a")] == [4, 4]
    del weights, get
    gc.collect()


def test_nothing_is_kept_of_weights_that_are_gone() -> None:
    kept = Preparations()
    first, second = torch.zeros(4), torch.zeros(4)
    kept.get(lambda: 1, (first, second), ())
    assert len(kept) == 1
    # A new tensor where an old one was: its memory may have the same address.
    second = torch.ones(4)
    assert kept.get(lambda: 2, (first, second), ()) == 2
    del first
    gc.collect()
    assert len(kept) == 0


# -- the contract ---------------------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn, methods: tuple[str, ...] = METHODS) -> dict[str, Any]:
    method = draw(st.sampled_from(methods))
    groups = draw(st.integers(1, 3)) if method == "deepseek_v3" else 1
    experts = groups * draw(st.integers(1, 4))
    kept = draw(st.integers(1, groups))
    top_k = 1 if method == "llama4" else draw(st.integers(1, kept * experts // groups))
    first = draw(st.integers(0, experts - 1))
    local = draw(st.integers(1, experts - first))
    if draw(st.booleans()):
        first, local = 0, experts
    tokens = draw(st.sampled_from([0, 1, 5, 33]))
    hidden, size = draw(st.sampled_from([(128, 128), (128, 256), (24, 40), (1, 3)]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    logits = 2 * normal(tokens, experts)
    return {
        "x": normal(tokens, hidden).bfloat16(),
        "router_logits": logits.bfloat16() if draw(st.booleans()) else logits,
        "w_gate_up": (normal(local, 2 * size, hidden) * hidden**-0.5).bfloat16(),
        "w_down": (normal(local, hidden, size) * size**-0.5).bfloat16(),
        "top_k": top_k,
        "method": method,
        "bias": normal(experts) if draw(st.booleans()) else None,
        "n_group": groups,
        "topk_group": kept,
        "scaling": 2.5 if method in ("deepseek_v3", "minimax2") else 1.0,
        "expert_offset": first,
    }


def _expected(case: dict[str, Any], rounded: bool) -> torch.Tensor:
    """In float64, with the weights rounded as the library rounds them."""
    rest = dict(case)
    x, logits = rest.pop("x"), rest.pop("router_logits")
    experts = (rest.pop("w_gate_up"), rest.pop("w_down"))
    offset = rest.pop("expert_offset")
    ids, weights = moe_routing(logits, **rest, compute_dtype=torch.float32)
    weights = weights.bfloat16() if rounded else weights
    return moe_experts(x.double(), ids, weights.double(), *experts, expert_offset=offset, operand_dtype=torch.bfloat16)


def _close(got: torch.Tensor, case: dict[str, Any], rounded: bool, roundings: int = 1) -> None:
    """Within one rounding of the result, and so many of the largest term, which a different sum may have rounded otherwise."""
    expected = _expected(case, rounded)
    assert got.dtype == torch.bfloat16
    assert got.is_contiguous()
    assert got.shape == expected.shape
    gate, up = (case["x"].double() @ case["w_gate_up"].double().mT).chunk(2, dim=-1)
    inner = (gate * gate.sigmoid() * up).abs()
    terms = inner.amax(-1, keepdim=True) * case["w_down"].double().abs().amax(-1).unsqueeze(1)
    largest = (
        terms.max().item() * case["scaling"] * max(1.0, case["router_logits"].abs().max().item()) if len(got) else 0
    )
    torch.testing.assert_close(got.double(), expected, rtol=BFLOAT16, atol=roundings * BFLOAT16 * largest)


#: The adapter, whether it rounds routing weights, and how many roundings there are in one term.
ADAPTERS = {
    "trtllm": (trtllm_twin.moe, True, 1),
    "trtllm, routing too": (trtllm_twin.fused_routing_moe, True, 1),
    "cutlass": (trtllm_twin.cutlass_moe, False, 1),
    # Gate, up, silu, their product, and what the expert returns.
    "torch": (torch_grouped.moe, False, 5),
    "transformers": (transformers.moe, True, 5),
}


@pytest.mark.parametrize("name", ADAPTERS)
@given(case=cases())
@settings(max_examples=120, deadline=None)
def test_adapters_keep_the_contract(name: str, case: dict[str, Any]) -> None:
    function, rounded, roundings = ADAPTERS[name]
    _close(function(**case), case, rounded, roundings)


@pytest.mark.parametrize("method", METHODS)
def test_the_library_routes_every_method(method: str) -> None:
    """Without a bias nothing is routed on the host: the number of the method is what decides."""
    case = _fixed(method)
    called: list[int] = []

    def run(*args: Any, **keywords: Any) -> torch.Tensor:
        called.append(keywords["routing_method_type"])
        return trtllm_twin.trtllm_bf16_moe(*args, **keywords)

    got = flashinfer_moe.trtllm_fused_routing_moe(**case, run=run)
    assert called == [routing_methods.FLASHINFER[method]]
    _close(got, case, rounded=True)


@pytest.mark.parametrize(("count", "n_group"), [(6, 3), (160, 4), (36, 9), (12, 12)])
def test_groups_that_the_library_refuses_are_routed_before(count: int, n_group: int) -> None:
    """No multiple of four experts, more than 32 in a group, more than eight groups: its kernel would stop the program."""
    case = _fixed("deepseek_v3", experts=count) | {"n_group": n_group, "topk_group": 2, "top_k": 2}
    called = []

    def routed(*args: Any, **keywords: Any) -> torch.Tensor:
        called.append(args)
        return trtllm_twin.trtllm_bf16_routed_moe(*args, **keywords)

    got = flashinfer_moe.trtllm_fused_routing_moe(**case, run=trtllm_twin.trtllm_bf16_moe, run_routed=routed)
    assert len(called) == 1
    _close(got, case, rounded=True)
    keywords = {"num_experts": count, "n_group": n_group, "topk_group": 2, "top_k": 2}
    with pytest.raises(ValueError, match="n_group, topk_group, top_k: got"):
        trtllm_twin._check_groups(**keywords)


def test_halves_swapped_are_noticed() -> None:
    case = _fixed("renormalize")
    gate, up = case["w_gate_up"].chunk(2, dim=1)
    swapped = case | {"w_gate_up": torch.cat([up, gate], dim=1)}
    for function, rounded, roundings in ADAPTERS.values():
        with pytest.raises(AssertionError, match="not close"):
            _close(function(**swapped), case, rounded, roundings)


@pytest.mark.parametrize("step", ["gated_rows", "shuffled_rows", "blocked"])
def test_every_step_of_the_preparation_is_noticed(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that does nothing, or another order of the same shape."""
    wrong = {
        "gated_rows": torch.arange,
        "shuffled_rows": lambda rows, _tile=128: torch.arange(rows),
        "blocked": lambda matrices: matrices.reshape(len(matrices), -1, matrices.shape[1], 64),
    }
    case = _fixed("default")
    trtllm_layout.rows_of.cache_clear()
    monkeypatch.setattr(trtllm_layout, step, wrong[step])
    try:
        got = trtllm_twin.moe(**case)
    finally:
        trtllm_layout.rows_of.cache_clear()
    with pytest.raises(AssertionError, match="not close"):
        _close(got, case, rounded=True)


def test_sizes_that_are_not_aligned_go_to_cutlass() -> None:
    case = _fixed("renormalize", size=64)
    called = []

    def fallback(*tensors: Any, **keywords: Any) -> torch.Tensor:
        called.append(keywords["top_k"])
        return trtllm_twin.cutlass_moe(*tensors, **keywords)

    for adapter in (flashinfer_moe.trtllm_moe, flashinfer_moe.trtllm_fused_routing_moe):
        _close(adapter(**case, fallback=fallback), case, rounded=False)
    assert called == [case["top_k"]] * 2


def test_strided_views_are_taken() -> None:
    case = _fixed("renormalize")
    wide = torch.full((case["x"].shape[0], 200), torch.nan, dtype=torch.bfloat16)
    wide[:, 3:131] = case["x"]
    for function, rounded, roundings in ADAPTERS.values():
        _close(function(**case | {"x": wide[:, 3:131]}), case, rounded, roundings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    case = {name: value.to(dtype) if name == "x" else value for name, value in _fixed("default").items()}
    for function, *_ in ADAPTERS.values():
        with pytest.raises(ValueError, match="x: got dtype"):
            function(**case)


@pytest.mark.parametrize("weight", [1.0, 0.0, -0.0, -1.0, -3.14, 1e-3])
@pytest.mark.parametrize("expert", [0, 1, 511, 2**15 - 1])
def test_packed_ids_survive_any_weight(expert: int, weight: float) -> None:
    word = flashinfer_moe.packed(torch.tensor([[expert]], dtype=torch.int32), torch.tensor([[weight]]))
    assert word.dtype == torch.int32
    assert word.item() >> 16 == expert
    bits = torch.tensor(word.item() & 0xFFFF).to(torch.uint16).view(torch.bfloat16)
    assert torch.equal(bits, torch.tensor(weight).bfloat16())
    assert bits.signbit() == torch.tensor(weight).signbit()


def test_expert_parallelism_is_by_rank_where_it_divides() -> None:
    case = _fixed("renormalize", experts=6)
    seen = []

    def run(*args: Any, **keywords: Any) -> torch.Tensor:
        seen.append((keywords["ep_size"], keywords["ep_rank"]))
        return trtllm_twin.cutlass_fused_moe(*args, **keywords)

    for first, local in ((0, 6), (2, 2), (4, 2), (3, 3), (1, 2), (0, 4)):
        part = case | {
            "w_gate_up": case["w_gate_up"][first : first + local],
            "w_down": case["w_down"][first : first + local],
            "expert_offset": first,
        }
        _close(flashinfer_moe.cutlass_moe(**part, run=run), part, rounded=False)
    assert seen == [(1, 0), (3, 1), (3, 2), (2, 1), (1, 0), (1, 0)]


def test_only_the_default_of_cutlass_adds_by_atomics() -> None:
    case, seen = _fixed("renormalize"), []

    def run(*args: Any, **keywords: Any) -> torch.Tensor:
        seen.append(keywords["use_fused_finalize"])
        return trtllm_twin.cutlass_fused_moe(*args, **keywords)

    flashinfer_moe.cutlass_moe(**case, run=run)
    flashinfer_moe.cutlass_fused_finalize_moe(**case, run=run)
    assert seen == [False, True]


def test_weights_are_prepared_once_across_calls() -> None:
    case = _fixed("renormalize")
    seen = []

    def run(*args: Any, **keywords: Any) -> torch.Tensor:
        seen.append((keywords["gemm1_weights"].data_ptr(), keywords["gemm2_weights"].data_ptr()))
        return trtllm_twin.trtllm_bf16_routed_moe(*args, **keywords)

    for _ in range(3):
        flashinfer_moe.trtllm_moe(**case, run=run)
    assert len(set(seen)) == 1
    case["w_down"].mul_(2)
    _close(flashinfer_moe.trtllm_moe(**case, run=run), case, rounded=True)


def test_methods_have_their_numbers() -> None:
    named = {name.replace("_", ""): number for name, number in routing_methods.FLASHINFER.items()}
    assert {name.lower(): number for name, number in FACTS["routing"].items() if name != "Unspecified"} == named
    assert set(routing_methods.FLASHINFER) == set(METHODS)
    assert [routing_methods.from_tensorrt_llm(number) for number in range(6)] == [0, 1, 2, 3, 4, 7]
    for number in (6, 7):
        with pytest.raises(ValueError, match="TensorRT-LLM's number"):
            routing_methods.from_tensorrt_llm(number)
    with pytest.raises(ValueError, match="method: got 'sinkhorn'"):
        routing_methods.flashinfer_number("sinkhorn")


@pytest.mark.parametrize("name", ["trtllm_bf16_moe", "trtllm_bf16_routed_moe", "cutlass_fused_moe"])
def test_twins_take_the_arguments_of_the_real_functions(name: str) -> None:
    known = list(inspect.signature(getattr(trtllm_twin, name)).parameters)
    real = [argument for argument in FACTS["arguments"][name] if argument in known]
    assert real == known


def test_the_adapter_is_found_by_the_name_of_its_library() -> None:
    assert flashinfer.moe is flashinfer_moe.moe
    assert sglang.moe is sglang_moe.moe


def _sglang_align(
    ids: torch.Tensor, buckets: int, rows: int, order: torch.Tensor, owners: torch.Tensor, count: torch.Tensor, *_: Any
) -> None:
    """Pairs by expert, -1 first, in blocks that are filled up with a number that is no pair's."""
    order.fill_(ids.numel())
    end = 0
    for expert in range(-1, buckets - 1):
        pairs = torch.nonzero(ids.flatten() == expert).flatten()
        order[end : end + len(pairs)] = pairs.int()
        blocks = -(-len(pairs) // rows)
        owners[end // rows : end // rows + blocks] = expert
        end += blocks * rows
    count.fill_(end)


def _sglang_product(
    a: Any, b: Any, bias: Any, c: Any, _1: Any, _2: Any, _3: Any, weights: Any, ids: Any, order: Any, owners: Any, count: Any,
    weigh: bool, top_k: int, config: dict[str, int], **_: Any,
) -> None:  # fmt: skip
    """One row of c for each pair; blocks of expert -1 are zero."""
    rows, out = config["BLOCK_SIZE_M"], c.view(-1, c.shape[-1])
    out.fill_(torch.nan)
    for start in range(0, int(count), rows):
        pairs = order[start : start + rows].long()
        pairs = pairs[pairs < ids.numel()]
        owner = int(owners[start // rows])
        product = a[pairs // top_k].float() @ b[owner].float().T
        product = product * weights.flatten()[pairs, None] if weigh else product
        out[pairs] = (product if owner >= 0 else torch.zeros_like(product)).to(c.dtype)


def _sglang_act(halves: Any, inner: Any, config: Any, ids: Any, owners: Any, by_block: bool, activation: str) -> None:
    assert (by_block, activation) == (False, "silu")
    gate, up = halves.float().chunk(2, dim=-1)
    inner.copy_(torch.where((ids.view(-1, 1) >= 0), gate * gate.sigmoid() * up, torch.nan))


@given(case=cases())
@settings(max_examples=80, deadline=None)
def test_sglang_keeps_the_contract(case: dict[str, Any]) -> None:
    """Around stand-ins of its kernels, with their conventions."""
    kernels = SimpleNamespace(
        invoke_fused_moe_kernel=_sglang_product,
        act_and_mul_triton=_sglang_act,
        moe_sum_reduce_triton=lambda weighed, y, factor: y.copy_(weighed.float().sum(1) * factor),
    )
    align = SimpleNamespace(moe_align_block_size=_sglang_align, SMALL_NUMEL_LIMIT=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sglang_moe, "_kernels", lambda: kernels)
        patch.setattr(sglang_moe, "importlib", SimpleNamespace(import_module=lambda name: align))
        _close(sglang_moe.moe(**case), case, rounded=False, roundings=5)


def _fixed(method: str, *, experts: int = 12, size: int = 128) -> dict[str, Any]:
    random = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    groups = {"n_group": 3, "topk_group": 2} if method == "deepseek_v3" else {}
    scaled = {"scaling": 1.5} if method in ("deepseek_v3", "minimax2") else {}
    return {
        "x": normal(9, 128).bfloat16(),
        "router_logits": normal(9, experts),
        "w_gate_up": (normal(experts, 2 * size, 128) / 11).bfloat16(),
        "w_down": (normal(experts, 128, size) / 11).bfloat16(),
        "top_k": 1 if method == "llama4" else 3,
        "method": method,
        "bias": None,
        "n_group": 1,
        "topk_group": 1,
        "scaling": 1.0,
        "expert_offset": 0,
        **groups,
        **scaled,
    }


def _numbered(rows: int, columns: int) -> torch.Tensor:
    numbers = torch.arange(rows * columns, dtype=torch.int32)
    return numbers.to(torch.int16).view(rows, columns).view(torch.bfloat16)
