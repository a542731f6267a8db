"""Inputs of three kinds: as most unit tests draw them, as wider public ones do, and as our generator does.

``usual``: one call; a few sequences of equal length, all fresh, or, where an operator reads its state, all with a random
state; slots 0..N-1; dense memory that holds zeros where nobody wrote; K = V; standard normal values.
``ragged``: as flash-linear-attention's test of variable lengths and vLLM's of the convolution: unequal lengths, a random
state before each sequence, slots permuted in a larger pool; the rest as usual.
``ours``: what the properties of equivalence draw, in hostile memory.

https://github.com/fla-org/flash-linear-attention/blob/0a8cd55da2788b306f30f64b44ba4173f8bde869/tests/ops/test_gated_delta.py
https://github.com/flashinfer-ai/flashinfer/blob/03311d38d2e1ba89819d145653e5501bcda59710/tests/gdn/test_prefill_delta_rule.py
https://github.com/vllm-project/vllm/blob/05fe798340a60a914a9486b4bc2a3f21606c3101/tests/kernels/mamba/test_causal_conv1d.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from harness import operators
from harness.case import AnyCase, Case, Segment, Step, StepCase
from harness.cell import Cell, CellSpec
from harness.context import Property
from harness.draws import draws
from harness.isolation import suite

Kind = Literal["usual", "ragged", "ours"]
KINDS: tuple[Kind, ...] = ("usual", "ragged", "ours")
DTYPES = ("bfloat16", "float32")
#: Of the usual kinds. Each has a length of its own: one chunk of 64, two, and almost two.
SEEDS = (0, 1, 2)
LENGTHS = ((64, 64, 64), (128, 128), (100, 100))
RAGGED = ((17, 64, 40, 3), (100, 28), (5, 1, 63, 21, 30))
#: Slots of the ragged kind: permuted, in a pool of twelve.
SLOTS = (7, 2, 10, 0, 5, 3)
POOL = 12
ROWS = 4
#: Tokens of a mixture of experts: under the interpreter each costs as much as a hundred of others.
MIXED = ((8, 8), (16, 16), (12, 12))
MIXED_RAGGED = ((17, 3), (1, 9, 5), (2, 21))
#: Of the calls that other operators get. Under the interpreter a call takes a third of a second, and a tenth.
SHARES = {"gdn_prefill": 0.5, "gdn_decode": 0.4}


@dataclass(frozen=True)
class Drawing:
    """How our generator's calls are drawn: for which target, how many a dtype, from which seed."""

    target: str
    cases: int
    seed: int


def cases(operator: str, kind: Kind, drawing: Drawing) -> list[AnyCase]:
    """The calls of this kind, dtypes in turns."""
    dtypes = [d for d in operators.get(operator).dtypes if d in (*DTYPES, "int32")]
    if kind == "ours":
        columns = [drawn(operator, dtype, drawing) for dtype in dtypes]
    else:
        columns = [[_USUAL[operator](n, dtype, kind == "ragged") for n in SEEDS] for dtype in dtypes]
    rows = max(map(len, columns))
    return [column[i] for i in range(rows) for column in columns if i < len(column)]


def drawn(operator: str, dtype: str, drawing: Drawing) -> list[AnyCase]:
    """What the operator's properties of equivalence would be given, in proportion to their weights."""
    properties = [p for p in suite(operator).PROPERTIES if p.group == "equivalence" and "cpu" in p.devices]
    count = drawing.cases * SHARES.get(operator, 1.0) / sum(p.weight for p in properties)
    return [c for p in properties for c in _drawn(operator, dtype, p, max(2, round(count * p.weight)), drawing)]


def _drawn(operator: str, dtype: str, prop: Property, count: int, drawing: Drawing) -> list[AnyCase]:
    spec = CellSpec(operator, "", drawing.target, prop.name, "cpu", dtype, count, drawing.seed)
    return draws(Cell(spec, prop).strategy(), count, drawing.seed)


# -- the usual kinds --------------------------------------------------------------------------------------------------


def _segments(n: int, ragged: bool) -> tuple[Segment, ...]:
    if ragged:
        return tuple(Segment(length, "resumed", slot) for length, slot in zip(RAGGED[n], SLOTS, strict=False))
    return tuple(Segment(length, "fresh", slot) for slot, length in enumerate(LENGTHS[n]))


def _rows(ragged: bool) -> tuple[Segment, ...]:
    slots = SLOTS[:ROWS] if ragged else range(ROWS)
    return tuple(Segment(1, "resumed", slot) for slot in slots)


def _pool(sequences: tuple[Segment, ...], ragged: bool) -> int:
    return POOL if ragged else len(sequences)


def _prefill(n: int, dtype: str, ragged: bool) -> AnyCase:
    sequences = _segments(n, ragged)
    return Case(
        "gdn_prefill",
        sequences,
        {"H": 1, "HV": 2, "K": 32, "V": 32},
        dtype,
        "float32",
        {"amplitude": "unit", "decay": "published", "keys": "random", "beta": "random"},
        {"scale": None},
        pool_slots=_pool(sequences, ragged),
        choice=n,
        seed=n,
    )


def _decode(n: int, dtype: str, ragged: bool) -> AnyCase:
    sequences = _rows(ragged)
    return Case(
        "gdn_decode",
        sequences,
        {"H": 2, "HV": 4, "K": 32, "V": 32},
        dtype,
        "float32",
        {"amplitude": "unit", "decay": "published", "keys": "random"},
        {"scale": None, "float32_gates": False},
        pool_slots=_pool(sequences, ragged),
        choice=n,
        seed=n,
    )


def _convolution(operator: str) -> Callable[[int, str, bool], AnyCase]:
    def case(n: int, dtype: str, ragged: bool) -> AnyCase:
        sequences = _rows(ragged) if operators.get(operator).decode else _segments(n, ragged)
        return Case(
            operator,
            sequences,
            {"D": 64, "W": 4},
            dtype,
            dtype,
            {"amplitude": "unit"},
            {"activation": "silu" if n < 2 else None, "bias": n != 1},
            pool_slots=_pool(sequences, ragged),
            seed=n,
        )

    return case


def _norm(n: int, dtype: str, ragged: bool) -> AnyCase:
    return Case(
        "gated_rmsnorm",
        tuple(Segment(length) for length in (RAGGED if ragged else LENGTHS)[n]),
        {"HV": 4, "V": 64},
        dtype,
        dtype,
        {"amplitude": "unit", "gate": "random", "rows": "random"},
        {"eps": None, "float32_weight": False},
        seed=n,
    )


def _routing(n: int, dtype: str, ragged: bool) -> AnyCase:
    """As Qwen3-Next routes, and once as DeepSeek-V3; sizes of FlashInfer's and vLLM's tests, made smaller."""
    options = {"method": ("renormalize", "default", "deepseek_v3")[n], "bias": ("small" if n == 2 else None)}
    groups = (
        {"n_group": 4, "topk_group": 2, "scaling": 2.5} if n == 2 else {"n_group": 1, "topk_group": 1, "scaling": 1.0}
    )
    return Case(
        "moe_routing",
        tuple(Segment(length) for length in (RAGGED if ragged else LENGTHS)[n]),
        {"E": (64, 128, 32)[n], "k": (4, 8, 6)[n]},
        dtype,
        dtype,
        {"logits": "random", "load": "random"},
        {**options, **groups},
        seed=n,
    )


def _mixture(n: int, dtype: str, ragged: bool) -> AnyCase:
    """https://github.com/vllm-project/vllm/blob/main/tests/kernels/moe/test_moe.py: eight experts, standard normal values."""
    return Case(
        "moe",
        tuple(Segment(length) for length in (MIXED_RAGGED if ragged else MIXED)[n]),
        {"E": 8, "El": 8, "k": (2, 2, 4)[n], "I": 32, "Hd": 64},
        dtype,
        dtype,
        {"amplitude": "unit", "contents": "random", "logits": "random", "load": "random"},
        {
            "method": ("renormalize", "default", "renormalize")[n],
            "bias": None,
            "n_group": 1,
            "topk_group": 1,
            "scaling": 1.0,
            "first": 0,
            "logits_dtype": dtype,
        },
        seed=n,
    )


def _chunks(n: int, dtype: str, ragged: bool) -> AnyCase:
    sequences = tuple(Segment(length) for length in (RAGGED if ragged else LENGTHS)[n])
    return Case("chunk_metadata", sequences, {"C": (64, 64, 8)[n]}, dtype, options={"hints": n == 1})


def _step(n: int, dtype: str, ragged: bool) -> AnyCase:
    """One step of a fresh builder: prompts, then two decodes where ragged; the last of the three decodes only."""
    lengths = [] if n == 2 else list((RAGGED if ragged else LENGTHS)[n])
    decodes = ROWS if n == 2 else 2 * ragged
    cached = [5 * (i % 2) if ragged else 0 for i in range(len(lengths))] + [9 + i for i in range(decodes)]
    size = len(cached)
    numbers = tuple((7 * i + 2) % 16 for i in range(size)) if ragged else tuple(range(size))
    step = Step((*lengths, *[1] * decodes), len(lengths), tuple(cached), numbers)
    return StepCase("step_metadata", (step,), 16, (64, 64, 8)[n], seed=n)


_USUAL: dict[str, Callable[[int, str, bool], Any]] = {
    "chunk_metadata": _chunks,
    "step_metadata": _step,
    "conv_prefill": _convolution("conv_prefill"),
    "conv_update": _convolution("conv_update"),
    "gdn_decode": _decode,
    "gdn_prefill": _prefill,
    "gated_rmsnorm": _norm,
    "moe_routing": _routing,
    "moe": _mixture,
}
