"""`python -m benchmarks.moe_tiles [--model 35B 80B] [--tokens N ...]`: what other tiles of the mixture of experts would cost.

For each number of tokens: the time of `optimized.moe` as its table has it, kernel by kernel, then with other cuts of the
first product, of the second, and of both in larger and smaller tiles. The table in `optimized/moe_launches.py` is what this found.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton

from benchmarks import breakdown, timing
from benchmarks.timing import Call
from optimized import moe, moe_launches
from optimized.moe_launches import Blocks, Launch

#: Experts, k, hidden, intermediate.
MODELS = {"35B": (256, 8, 2048, 512), "80B": (512, 10, 2048, 512)}
TOKENS = (1, 2, 4, 8, 64, 256, 1024, 8192)
#: Each set of logits names other experts, so that no weights stay in the cache from call to call.
SETS = 8


class Chosen:
    """Puts one launch in the place of the table, for the body of a `with`."""

    def __init__(self, launch: Launch | None) -> None:
        self.launch = launch

    def __enter__(self) -> None:
        self.table: Any = moe_launches.launch_for
        launch = self.launch
        if launch is not None:
            moe_launches.launch_for = lambda *_: launch

    def __exit__(self, *_: object) -> None:
        moe_launches.launch_for = self.table


def candidates(launch: Launch) -> Iterator[tuple[str, Launch]]:
    """Neighbours of a launch: one product cut in another way, or another tile."""
    if launch.tile == 0:
        for columns, depth, warps in itertools.product((2, 4, 8, 16), (256, 512, 1024, 2048), (2, 4, 8)):
            if 2 * columns * depth in (4096 * warps // 4, 8192 * warps // 4, 16384 * warps // 4):
                yield "gate_up", launch._replace(gate_up=Blocks(columns, depth, warps, 1))
        for columns, depth, warps in itertools.product((1, 2, 4, 8), (128, 256, 512), (2, 4, 8)):
            if columns * depth <= 2048:
                yield "down", launch._replace(down=Blocks(columns, depth, warps, 1))
        yield "tile", moe_launches.TILED[0][1]
        return
    for columns, depth, warps, stages in itertools.product((32, 64, 128, 256), (64, 128), (4, 8), (2, 3, 4, 5)):
        if launch.tile * columns <= 128 * 128 * (warps // 4) and columns * launch.tile >= 16 * 32:
            blocks = Blocks(columns, depth, warps, stages)
            if columns < 256:
                yield "gate_up", launch._replace(gate_up=blocks)
            yield "down", launch._replace(down=blocks)
    for tile in (16, 32, 64, 128):
        if tile != launch.tile:
            yield "tile", launch._replace(tile=tile, tail=min(launch.tail, tile // 2))
    if launch.tile >= 64:
        yield "tile", launch._replace(tail=0 if launch.tail else launch.tile // 2)
    if launch.tile == 16:
        yield "tile", moe_launches.row_by_row(2048, 512, 8, exact=False, interpreted=False)


def time(calls: list[Call], launch: Launch | None) -> float | None:
    """Microseconds; None where the device cannot run it (too much shared memory)."""
    with Chosen(launch):
        try:
            return timing.time_calls(calls).median_us
        except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError):
            torch.cuda.synchronize()
            return None


def calls_for(tokens: int, weights: tuple[torch.Tensor, torch.Tensor], top_k: int) -> list[Call]:
    experts, hidden = weights[1].shape[:2]
    calls: list[Call] = []
    for _ in range(SETS if tokens <= 1024 else 2):
        x = torch.randn(tokens, hidden, dtype=torch.bfloat16, device="cuda")
        logits = torch.randn(tokens, experts, dtype=torch.bfloat16, device="cuda")
        calls.append(lambda x=x, logits=logits: moe.moe(x, logits, *weights, top_k=top_k, method="renormalize"))  # type: ignore[misc]
    return calls


def floor_us(tokens: int, experts: int, top_k: int, hidden: int, size: int, bandwidth: float, flops: float) -> float:
    """The larger of the bytes of the experts that random routing meets, and the products."""
    met = experts * (1 - (1 - top_k / experts) ** tokens)
    num_bytes = met * 6 * hidden * size + 4 * tokens * hidden
    return max(num_bytes / bandwidth, 6 * tokens * top_k * hidden * size / flops) * 1e6


def product_rate() -> float:
    """FLOP a second of one large bfloat16 product."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    return 2 * 8192**3 / (timing.time_calls([lambda: torch.mm(a, b, out=out)]).median_us * 1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moe_tiles", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--table-only", action="store_true", help="no candidates")
    arguments = parser.parse_args()
    bandwidth, flops = timing.copy_bandwidth(), product_rate()
    print(f"{torch.cuda.get_device_name()}: copies {bandwidth / 1e12:.2f} TB/s, products {flops / 1e12:.0f} TFLOP/s")
    for model in arguments.model:
        experts, top_k, hidden, size = MODELS[model]
        weights = (
            torch.randn(experts, 2 * size, hidden, dtype=torch.bfloat16, device="cuda") / hidden**0.5,
            torch.randn(experts, hidden, size, dtype=torch.bfloat16, device="cuda") / size**0.5,
        )
        for tokens in arguments.tokens:
            calls = calls_for(tokens, weights, top_k)
            table = moe_launches.launch_for(
                tokens * top_k, experts, hidden, size, top_k, torch.bfloat16, torch.device("cuda", 0)
            )
            now = time(calls, None)
            assert now is not None
            floor = floor_us(tokens, experts, top_k, hidden, size, bandwidth, flops)
            print(f"\n{model}, {tokens} tokens: {now:.1f} us, {floor / now:.0%} of the floor {floor:.1f}; {table}")
            for kernel in breakdown.kernels(calls):
                print(f"  {kernel.device_us:9.1f} us  {kernel.launches:.0f} x {kernel.name}")
            if arguments.table_only:
                continue
            found = []
            for what, launch in candidates(table):
                took = time(calls, launch)
                if took is not None:
                    found.append((took, what, launch))
            for wanted in ("gate_up", "down", "tile"):
                best = sorted((f for f in found if f[1] == wanted), key=lambda f: f[0])[:4]
                for took, what, launch in best:
                    part = f"tile={launch.tile}, tail={launch.tail}" if what == "tile" else getattr(launch, what)
                    print(f"  {took:9.1f} us  {what}: {part}")
            # The best of each together.
            best_of = {
                w: min((f for f in found if f[1] == w), default=None, key=lambda f: f[0]) for w in ("gate_up", "down")
            }
            both = table._replace(**{w: getattr(f[2], w) for w, f in best_of.items() if f is not None and f[0] < now})
            if both != table and (took := time(calls, both)) is not None:
                print(f"  {took:9.1f} us  {both}")


if __name__ == "__main__":
    main()
