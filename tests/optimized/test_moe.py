"""The mixture of experts at each way of cutting it, on batches at the edges of its tiles.

On a CUDA device where there is one, under Triton's interpreter otherwise. The wide search is the property suites' job.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from harness import interpreter
from optimized import moe, moe_launches, moe_sorting_kernels
from optimized.moe_launches import Blocks, Launch
from optimized.moe_routing import METHODS, kernel_arguments, moe_routing
from references.moe import moe as reference
from references.moe import moe_experts as reference_experts
from references.moe import moe_routing as reference_routing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

TABLE = {
    **{f"{launch.tile} rows": launch for _, launch in moe_launches.TILED},
    **{f"128 rows, capability {major}": launch for major, launch in moe_launches.LARGEST.items()},
    "128 rows, elsewhere": moe_launches.LARGEST_ELSEWHERE,
    "parts in bfloat16": moe_launches.LARGEST[9]._replace(parts=torch.bfloat16),
    "float32": moe_launches.EXACT,
    "float32, many rows": moe_launches.EXACT_MANY,
    "row by row": moe_launches.row_by_row(48, 24, 3, exact=False, interpreted=False),
    "row by row, float32": moe_launches.row_by_row(48, 24, 3, exact=True, interpreted=False),
    "row by row, several steps": Launch(0, Blocks(4, 16, 4, 1), Blocks(2, 8, 4, 1)),
}


@pytest.fixture(autouse=True)
def _exact_interpreter() -> None:
    """bfloat16 is rounded as hardware rounds it; see `harness.interpreter`."""
    interpreter.repair()


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def experts(count: int, hidden: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = random(count + hidden + size)
    w_gate_up = torch.randn(count, 2 * size, hidden, generator=draw) / hidden**0.5
    w_down = torch.randn(count, hidden, size, generator=draw) / size**0.5
    return w_gate_up.to(DEVICE, dtype), w_down.to(DEVICE, dtype)


def assert_rows(got: Tensor, expected: Tensor, weights: Tensor) -> None:
    """Every row within a part of its own norm: a few roundings to the dtype, of each operand and of the result."""
    error = (got.double() - expected.double()).norm(dim=1)
    scale = torch.maximum(expected.double().norm(dim=1), weights.double().norm(dim=1))
    allowed = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-20}[got.dtype]
    assert (error <= allowed * scale).all(), f"rows {torch.nonzero(error > allowed * scale).flatten().tolist()}"


def tile_edges(tile: int, tail: int, top_k: int) -> Tensor:
    """Ids [T, k] that give experts 0 to 6 rows at the edges of a tile and of its tail; the rest of the places are elsewhere."""
    counts = [0, tile, tile + 1, max(1, tile - 1), tail, tile + tail, tile + tail + 1]
    ids = torch.cat([torch.full((count,), expert) for expert, count in enumerate(counts)])
    ids = torch.cat([ids, torch.full((-len(ids) % top_k + top_k,), -1)])
    return ids[torch.randperm(len(ids), generator=random(tile))].reshape(-1, top_k).int()


SIZES = [
    pytest.param(name, hidden, size, id=f"{name}-{hidden}-{size}")
    for name in TABLE
    # Whole blocks of columns and sums, and none; the smallest blocks only in small numbers.
    for hidden, size in ([] if "several" in name else [(256, 128)]) + [(48, 24), (33, 17)]
]


@pytest.mark.parametrize(("name", "hidden", "size"), SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_launch_of_the_table(
    monkeypatch: pytest.MonkeyPatch, name: str, hidden: int, size: int, dtype: torch.dtype
) -> None:
    if DEVICE == "cuda" and dtype == torch.float32 and "float32" not in name and "row by row" not in name:
        pytest.skip("tiles of the table for 16-bit numbers are too large for float32 operands on a GPU")
    launch = TABLE[name]
    monkeypatch.setattr(moe_launches, "launch_for", lambda *_: launch)
    ids = tile_edges(launch.tile or 8, launch.tail, 3).to(DEVICE)
    weights = torch.rand(ids.shape, generator=random(1)).to(DEVICE)
    x = torch.randn(ids.shape[0], hidden, generator=random(2)).to(DEVICE, dtype)
    of_seven = experts(7, hidden, size, dtype)
    got = moe.moe_experts(x, ids, weights, *of_seven)
    expected = reference_experts(x, ids, weights, *of_seven, operand_dtype=dtype)
    if launch.parts is not None and dtype == torch.float32:
        # The test of what this launch is for: a part is rounded, so the sum is near what bfloat16 holds.
        got, expected = got.bfloat16(), expected.bfloat16()
    assert_rows(got, expected, weights)


def test_the_table_takes_larger_tiles_for_more_rows() -> None:
    tiles = [launch.tile for _, launch in moe_launches.TILED]
    assert tiles == sorted(tiles)
    most = [rows for rows, _ in moe_launches.TILED]
    assert most == sorted(most)
    # A tile holds what most experts of its line have.
    assert all(rows <= 1.5 * launch.tile for rows, launch in moe_launches.TILED)


@pytest.mark.parametrize(
    ("tokens", "count", "top_k"),
    [(1, 5, 2), (4, 5, 2), (5, 5, 2), (16, 9, 3), (16, 40, 17), (17, 9, 3), (50, 3, 3), (300, 6, 1)],
)
@pytest.mark.parametrize("method", ["default", "renormalize", "sigmoid_renorm"])
def test_each_way_of_routing_and_sorting(tokens: int, count: int, top_k: int, method: str) -> None:
    """Row by row, one program, or several: the same function, and the bits of routing first, then experts."""
    x = torch.randn(tokens, 20, generator=random(tokens)).to(DEVICE)
    logits = torch.randn(tokens, count, generator=random(count)).to(DEVICE)
    weights = experts(count, 20, 12, torch.float32)
    got = moe.moe(x, logits, *weights, top_k=top_k, method=method)
    expected = reference(x, logits, *weights, top_k=top_k, method=method)
    assert_rows(got, expected, torch.ones(tokens, 1, device=DEVICE))
    chosen = moe_routing(logits, top_k=top_k, method=method)
    assert torch.equal(moe.moe_experts(x, *chosen, *weights), got)


@pytest.mark.parametrize("tokens", [1, 16, 60])
def test_all_rows_on_one_expert_or_none_here(tokens: int) -> None:
    x = torch.randn(tokens, 20, generator=random(3)).to(DEVICE)
    w_gate_up, w_down = experts(3, 20, 12, torch.float32)
    ids = torch.full((tokens, 2), 4, dtype=torch.int32, device=DEVICE)
    weights = torch.rand(tokens, 2, generator=random(4)).to(DEVICE)
    for offset in (2, 3, 4):
        got = moe.moe_experts(x, ids, weights, w_gate_up, w_down, expert_offset=offset)
        expected = reference_experts(x, ids, weights, w_gate_up, w_down, expert_offset=offset)
        assert_rows(got, expected, weights)
    for offset in (0, 1, 5):
        nothing = moe.moe_experts(x, ids, weights * torch.nan, w_gate_up, w_down, expert_offset=offset)
        assert torch.equal(nothing, torch.zeros_like(x))


@pytest.mark.parametrize(
    ("tokens", "top_k", "size", "hidden"), [(0, 2, 4, 8), (3, 2, 0, 8), (3, 2, 4, 0), (3, 0, 4, 8)]
)
def test_nothing_at_all(tokens: int, top_k: int, size: int, hidden: int) -> None:
    x = torch.ones(tokens, hidden, device=DEVICE)
    ids = torch.zeros(tokens, top_k, dtype=torch.int32, device=DEVICE)
    w_gate_up = torch.ones(2, 2 * size, hidden, device=DEVICE)
    w_down = torch.ones(2, hidden, size, device=DEVICE)
    y = moe.moe_experts(x, ids, ids.float(), w_gate_up, w_down)
    assert torch.equal(y, torch.zeros_like(x))


# -- sorting ----------------------------------------------------------------------------------------------------------


def buffers(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """order, tiles and num_tiles, in which nobody has written."""
    return (
        torch.full((rows,), -7, dtype=torch.int32, device=DEVICE),
        torch.full((rows, 4), -7, dtype=torch.int32, device=DEVICE),
        torch.full((1,), -7, dtype=torch.int32, device=DEVICE),
    )


def cut(local: Tensor, count: int, tile: int, tail: int) -> list[list[int]]:
    """The tiles of rows that go to these experts: expert, first position, end."""
    lines, first = [], 0
    for expert in range(count):
        rows = int((local == expert).sum())
        cuts = list(range(first, first + rows, tile))
        if len(cuts) > 1 and first + rows - cuts[-1] <= tail:
            cuts.pop()
        lines += [[expert, *span] for span in itertools.pairwise([*cuts, first + rows])]
        first += rows
    return lines


def plain_choice(logits: Tensor, top_k: int) -> dict[str, Any]:
    """The arguments of the plainest choice."""
    plain: dict[str, Any] = {"method": "renormalize", "bias": None, "n_group": 1, "topk_group": 1, "scaling": 1.0}
    return kernel_arguments(logits, top_k=top_k, **plain)


def sorted_rows(ids: Tensor, count: int, tile: int, tail: int, offset: int, way: str) -> tuple[Tensor, list[list[int]]]:
    """What the kernels find: the order, and the tiles."""
    rows, (tokens, top_k) = ids.numel(), ids.shape
    order, tiles, num_tiles = buffers(rows)
    ids = ids.to(DEVICE)
    if way == "one program":
        unused: dict[str, Any] = dict.fromkeys(
            ("group_size", "n_group", "topk_group", "scaling", "stride_lt", "stride_le", "stride_b"), 1
        )
        flags = dict.fromkeys(("ROUTE", "SQUASH", "HAS_BIAS", "GROUPED"), False)
        moe_sorting_kernels.route_and_sort_kernel[(1,)](
            ids, ids, ids, ids.float(), order, tiles, num_tiles, tokens, offset, count, top_k=top_k, **unused, **flags,
            TILE=tile, BLOCK_T=16, GROUPS=1, SIZE=1, PLACES=triton.next_power_of_2(top_k), WEIGHTS="logits",
        )  # fmt: skip
    elif way == "all count all":
        moe_sorting_kernels.sort_kernel[(triton.cdiv(rows, 16),)](
            ids, order, tiles, num_tiles, rows, offset, count,
            TILE=tile, TAIL=tail, BLOCK=16, CHUNK=32, BINS=triton.next_power_of_2(count),
        )  # fmt: skip
    else:
        blocks, bins = triton.cdiv(rows, 16), triton.next_power_of_2(count)
        counts = torch.full((blocks, bins), -7, dtype=torch.int32, device=DEVICE)
        totals = torch.full((bins,), -7, dtype=torch.int32, device=DEVICE)
        moe_sorting_kernels.count_kernel[(blocks,)](ids, counts, rows, offset, count, BLOCK=16, BINS=bins)
        moe_sorting_kernels.add_up_kernel[(bins,)](counts, totals, blocks, BLOCKS=4, BINS=bins, COLUMNS=1)
        moe_sorting_kernels.place_kernel[(blocks,)](
            ids, counts, totals, order, tiles, num_tiles, rows, offset, count,
            TILE=tile, TAIL=tail, BLOCK=16, BINS=bins,
        )  # fmt: skip
    return order.cpu(), tiles[: num_tiles.item(), :3].tolist()


@pytest.mark.parametrize("way", ["one program", "all count all", "block by block"])
@pytest.mark.parametrize(("tokens", "top_k", "count"), [(1, 1, 1), (16, 3, 7), (9, 8, 3), (16, 16, 200), (5, 2, 8)])
def test_rows_are_sorted_by_expert_and_cut_into_tiles(tokens: int, top_k: int, count: int, way: str) -> None:
    ids = torch.randint(-1, count + 3, (tokens, top_k), generator=random(tokens), dtype=torch.int32)
    for tile, tail, offset in ((1, 0, 0), (4, 0, 1), (16, 0, 2), (1, 3, 0), (4, 2, 1), (16, 8, 0)):
        if way == "one program" and tail:
            continue  # it cuts no tails: what is left over is a tile of its own
        local = ids.flatten() - offset
        here = (local >= 0) & (local < count)
        expected = torch.argsort(torch.where(here, local, count), stable=True)[: int(here.sum())]
        order, tiles = sorted_rows(ids, count, tile, tail, offset, way)
        assert order[: len(expected)].tolist() == expected.tolist()
        # What is elsewhere has no position.
        assert (order[len(expected) :] == -7).all()
        assert tiles == cut(local, count, tile, tail)


# Eight and more experts: among how many a choice is made decides where a program holds it, and for 32 and 64 Triton 3.6 then
# lost tiles when it was asked how many there are.
@pytest.mark.parametrize(
    ("count", "top_k"),
    [(e, k) for e in (8, 16, 32, 64, 128, 256, 512) for k in (1, 2, 3, 4, 5, 6, 8, 10, 16) if k <= e],
)
def test_a_choice_is_sorted_by_the_program_that_makes_it(count: int, top_k: int) -> None:
    places = triton.next_power_of_2(top_k)
    most = moe_launches.few_tokens(places)
    for tokens in {1, most // 2 + 1, most}:
        logits = torch.randn(tokens, count, generator=random(tokens)).to(DEVICE)
        ids = torch.full((tokens, top_k), -7, dtype=torch.int32, device=DEVICE)
        weights = torch.full((tokens, top_k), float("nan"), device=DEVICE)
        order, tiles, num_tiles = buffers(ids.numel())
        moe_sorting_kernels.route_and_sort_kernel[(1,)](
            expert_ids=ids, weights=weights, order=order, tiles=tiles, num_tiles=num_tiles, tokens=tokens,
            expert_offset=0, experts=count, ROUTE=True, TILE=4, BLOCK_T=most, num_warps=8,
            **plain_choice(logits, top_k),
        )  # fmt: skip
        expected, _ = reference_routing(logits, top_k=top_k, method="renormalize")
        assert torch.equal(ids, expected)
        assert order.tolist() == torch.argsort(expected.flatten(), stable=True).tolist()
        assert tiles[: num_tiles.item(), :3].tolist() == cut(expected.flatten(), count, 4, 0)


# -- routing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("count", "top_k"), [(2048, 32), (513, 10), (3, 2)])
def test_routing_of_many_experts_and_places(method: str, count: int, top_k: int) -> None:
    logits = (4 * torch.randn(5, count, generator=random(count))).bfloat16().to(DEVICE)
    top_k = 1 if method == "llama4" else top_k
    ids, weights = moe_routing(logits, top_k=top_k, method=method)
    expected_ids, expected = reference_routing(logits, top_k=top_k, method=method)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("n_group", "topk_group", "size"), [(8, 4, 32), (3, 2, 5), (5, 1, 1), (7, 7, 3), (1, 1, 9)])
@pytest.mark.parametrize("biased", [False, True])
def test_routing_by_groups(n_group: int, topk_group: int, size: int, biased: bool) -> None:
    count = n_group * size
    logits = torch.randn(40, count, generator=random(count)).to(DEVICE)
    bias = torch.randn(count, generator=random(size)).to(DEVICE) if biased else None
    options: dict[str, Any] = {"n_group": n_group, "topk_group": topk_group, "scaling": 2.5, "bias": bias}
    for top_k in {1, topk_group * size}:
        ids, weights = moe_routing(logits, top_k=top_k, method="deepseek_v3", **options)
        expected_ids, expected = reference_routing(logits, top_k=top_k, method="deepseek_v3", **options)
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(weights.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["renormalize", "default", "sigmoid_renorm", "deepseek_v3", "minimax2"])
@pytest.mark.parametrize("shift", [-300.0, -140.0, -100.0, -50.0, 300.0])
def test_weights_of_logits_far_from_zero(method: str, shift: float) -> None:
    """No sigmoid or exponential of them is a float32 number, but their ratios are."""
    logits = torch.tensor([[0.0, 1.0, -2.0, 0.5]], device=DEVICE) + shift
    ids, weights = moe_routing(logits, top_k=3, method=method)
    expected_ids, expected = reference_routing(logits, top_k=3, method=method)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights.double(), expected, rtol=2e-5, atol=1e-38)


@pytest.mark.parametrize("method", METHODS)
def test_infinities_and_nan_give_the_weights_of_the_definition(method: str) -> None:
    nan, inf = torch.nan, torch.inf
    rows = [[nan, 1.0, 0.0], [-inf, -inf, -inf], [inf, 1.0, -inf], [nan] * 3, [0.0, -0.0, -1.0], [-inf, 2.0, -inf]]
    logits = torch.tensor(rows, device=DEVICE)
    for top_k in (1,) if method == "llama4" else (1, 2, 3):
        ids, weights = moe_routing(logits, top_k=top_k, method=method)
        expected_ids, expected = reference_routing(logits, top_k=top_k, method=method)
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(weights.double(), expected, rtol=1e-6, atol=0, equal_nan=True)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("expert_ids", {"expert_ids": torch.zeros(3, 2, dtype=torch.int64)}),
        ("expert_ids", {"expert_ids": torch.zeros(4, 2, dtype=torch.int32)}),
        ("weights", {"weights": torch.zeros(3, 2, dtype=torch.bfloat16)}),
        ("weights", {"weights": torch.zeros(3, 1)}),
        ("w_gate_up", {"w_gate_up": torch.zeros(2, 7, 8)}),
        ("w_gate_up", {"w_gate_up": torch.zeros(3, 8, 8)}),
        ("w_down", {"w_down": torch.zeros(2, 8, 4, dtype=torch.bfloat16)}),
        ("w_down", {"w_down": torch.zeros(2, 7, 4)}),
        ("expert_offset", {"expert_offset": -1}),
        ("x", {"x": torch.zeros(3, 8, dtype=torch.float64)}),
    ],
)
def test_wrong_arguments_are_refused(name: str, wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(3, 8),
        "expert_ids": torch.zeros(3, 2, dtype=torch.int32),
        "weights": torch.zeros(3, 2),
        "w_gate_up": torch.zeros(2, 8, 8),
        "w_down": torch.zeros(2, 8, 4),
    }
    given = {key: value.to(DEVICE) if isinstance(value, Tensor) else value for key, value in {**good, **wrong}.items()}
    with pytest.raises(ValueError, match=f"^{name}: "):
        moe.moe_experts(**given)
