"""What the first kernel of prefill hands to the second, against its definition in float64 (spec of the chunked delta rule).

The second kernel is replaced by a recorder: the stage is judged where it ends, not by what comes of it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import interpreter
from optimized import gdn_prefill as module
from optimized.gdn_prefill_kernels import DECAY, NORM, READ, RECALL, WRITE

CHUNK = 64
LENGTHS = [70, 0, 3, 130, 64]
INACTIVE = 2
H, HV, K, V = 2, 4, 20, 8


@pytest.fixture(autouse=True)
def _exact_interpreter() -> None:
    """bfloat16 is rounded as hardware rounds it; see `harness.interpreter`."""
    interpreter.repair()


class Stage:
    """Stands for a kernel: takes down the arguments of its launch."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **_: Any) -> None:
        self.corrections, self.attention, self.scalings = rest[:3]


def factors(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> tuple[dict[str, Tensor], Stage]:
    draw = torch.Generator().manual_seed(0)
    tokens, sequences = sum(LENGTHS), len(LENGTHS)
    given = {
        "q": torch.randn(tokens, H, K, generator=draw).to(dtype),
        "k": (3e-3 * torch.randn(tokens, H, K, generator=draw)).to(dtype),
        "v": torch.randn(tokens, HV, V, generator=draw).to(dtype),
        "g": -0.1 * torch.rand(tokens, HV, generator=draw),
        "beta": 0.1 + 0.9 * torch.rand(tokens, HV, generator=draw),
    }
    slots = torch.arange(sequences, dtype=torch.int32)
    slots[INACTIVE] = -1
    stage = Stage()
    monkeypatch.setattr(module, "recurrence_kernel", stage)
    module.gdn_prefill(
        given["q"],
        given["k"],
        given["v"],
        g=given["g"],
        beta=given["beta"],
        state=torch.zeros(sequences, HV, V, K),
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        state_indices=slots,
        has_initial_state=torch.zeros(sequences, dtype=torch.bool),
    )
    return given, stage


def chunks() -> list[tuple[int, int, int]]:
    """(tile, first token, end) of every chunk of an active sequence."""
    starts = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    return [
        (start // CHUNK + n + number, first, min(first + CHUNK, end))
        for n, (start, end) in enumerate(pairwise(starts))
        if n != INACTIVE
        for number, first in enumerate(range(start, end, CHUNK))
    ]


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def test_every_chunk_has_a_tile_of_its_own() -> None:
    tiles = [tile for tile, _, _ in chunks()]
    assert len(tiles) == len(set(tiles)) == 6
    assert max(tiles) < sum(LENGTHS) // CHUNK + len(LENGTHS)


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 2e-6), (torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)]
)
def test_factors_are_what_they_are_defined_as(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, close: float
) -> None:
    given, stage = factors(monkeypatch, dtype)
    for tile, first, end in chunks():
        for head in range(HV):
            q, k = (unit(given[name][first:end, head // (HV // H)].double()) for name in ("q", "k"))
            g, beta = (given[name][first:end, head].double() for name in ("g", "beta"))
            length = end - first
            # Sums restart with the chunk: nothing of the tokens before it takes part.
            G = g.cumsum(0)
            decay = torch.exp(G[:, None] - G[None, :]).tril()
            A = (beta[:, None] * (k @ k.T) * decay).tril(-1)
            B = stage.corrections[tile, head].double()
            assert torch.equal(B.triu(1), torch.zeros_like(B)), "a token must not correct an earlier one"
            identity = (torch.eye(length) + A) @ (B[:length, :length] / beta)
            torch.testing.assert_close(identity, torch.eye(length).double(), rtol=0, atol=4 * close)
            P = stage.attention[tile, head].double()
            assert torch.equal(P.triu(1), torch.zeros_like(P)), "a token must not read a later one"
            expected = K**-0.5 * (q @ k.T) * decay
            torch.testing.assert_close(P[:length, :length], expected, rtol=close, atol=close * K**-0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scalings_hold_norms_and_decays(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    given, stage = factors(monkeypatch, dtype)
    for tile, first, end in chunks():
        for head in range(HV):
            q, k = (given[name][first:end, head // (HV // H)].double() for name in ("q", "k"))
            G = given["g"][first:end, head].double().cumsum(0)
            rq, rk = (1 / torch.sqrt((x * x).sum(-1) + 1e-6) for x in (q, k))
            rows = stage.scalings[tile, head, :, : end - first].double()
            if dtype == torch.float16:
                # The power of two in it goes to the keys, where it is exact.
                near = rows[NORM.value]
                assert torch.equal(near, 2.0 ** rk.log2().floor())
                rk = rk / near
            expected = {
                RECALL: G.exp() * rk,
                WRITE: (G[-1] - G).exp() * rk,
                READ: K**-0.5 * G.exp() * rq,
                DECAY: G[-1].exp().expand(end - first),
            }
            for row, values in expected.items():
                # G adds up 64 log decays to -3.5 or so, each with half a unit in the last place of the sum.
                torch.testing.assert_close(rows[row.value], values, rtol=64 * 2.0**-24 * 4, atol=0)
