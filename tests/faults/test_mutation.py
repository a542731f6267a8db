"""Generated faults: what each mutation operator writes, where it keeps out, how a sample is drawn, what becomes of one."""

from __future__ import annotations

import ast
import struct
import textwrap
import types
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from typer.testing import CliRunner

import optimized
from harness import interpreter, operators, strategies
from harness.case import StepCase
from harness.cell import Cell, CellSpec
from harness.cli import build
from harness.draws import draws
from harness.faults import equivalents, injection, matrix, model, mutation, reach, runner
from harness.faults.mutators import MUTATORS
from harness.faults.verdict import Settings, Verdict, Witness
from harness.isolation import find_property
from harness.memory import same_bits
from harness.operators.base import Operator, TokenOperator
from harness.operators.chunk_metadata import ChunkMetadata
from harness.subjects import load_target
from optimized.functions import unbiased_exp

EVERY = mutation.every()

on_the_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter's tier; a GPU's own is `sluicegate faults`"
)

#: Operator, whether in a kernel, a line, and all that the operator makes of it.
SAMPLES = [
    (
        "mask-dropped",
        True,
        'a = tl.load(p, mask=m, other=0.0, eviction_policy="evict_first")',
        ['a = tl.load(p, eviction_policy="evict_first")'],
    ),
    ("mask-dropped", True, "tl.store(p, (a), mask=m & n)", ["tl.store(p, a)"]),
    ("comparison-relaxed", True, "a = (b) < c", ["a = (b) <= c"]),
    ("comparison-relaxed", False, "a = b >= c", ["a = b > c"]),
    ("comparison-relaxed", False, "a = b == c", ["a = b != c"]),
    ("comparison-relaxed", False, "a = b is c", []),
    ("tail-skipped", True, "m = (i < V)[:, None] & n", ["m = (i < V - 1)[:, None] & n"]),
    ("tail-skipped", True, "m = i < 0", []),
    ("index-shifted", True, "i = tl.arange(0, N)[None, :]", ["i = (tl.arange(0, N) + 1)[None, :]"]),
    ("address-shifted", True, "a = tl.load(p + i)", ["a = tl.load((p + i) + 1)"]),
    ("neighbour-addressed", True, "a = tl.load(p + i * stride_h)", ["a = tl.load((p + i * stride_h) + stride_h)"]),
    ("strides-swapped", True, "p = x + i * stride_t + j * stride_h", ["p = x + i * stride_h + j * stride_t"]),
    ("int64-lost", True, "a = (b // C).to(tl.int64) * s", ["a = (b // C) * s"]),
    ("rounded", True, "a = b.to(tl.float32)", ["a = b.to(tl.float32).to(tl.bfloat16).to(tl.float32)"]),
    ("rounded", True, "a = b.to(tl.float32, bitcast=True)", []),
    ("factor-dropped", True, "a = b / (c + d * e)", ["a = b / (c + d)", "a = b / (c + e)"]),
    ("factor-dropped", True, "a = (b + c) * d", ["a = (b + c)", "a = d"]),
    ("scale-dropped", True, "a = b * scale", ["a = b"]),
    ("decay-dropped", True, "S = S * decay[:, None]", ["S = S"]),
    ("divisor-dropped", False, "a = b // c % d", ["a = (b // c)", "a = b % d"]),
    ("sign-swapped", True, "a = b - (c - d)", ["a = b + (c - d)", "a = b - (c + d)"]),
    ("arguments-swapped", False, "f(*q.stride(), *k.stride(), rows)", ["f(*k.stride(), *q.stride(), rows)"]),
    ("arguments-swapped", True, "a = tl.fma(w1, z1, a)", []),
    ("constant-off-by-one", True, "a = tl.load(p + 2, other=0.0)", ["a = tl.load(p + 3, other=0.0)", "a = tl.load(p + 2, other=1.0)"]),
    ("constant-off-by-one", True, "a = tl.sum(b, axis=1) + tl.sum(b, 0) + 1e-6 + 20.0", []),
    ("condition-negated", False, "a = b if c or d else e", ["a = b if not (c or d) else e"]),
    ("arms-swapped", True, "a = tl.where(b, c, 0.0)", ["a = tl.where(b, 0.0, c)"]),
    ("statement-dropped", True, "a += b", ["pass"]),
    ("statement-dropped", True, "tl.debug_barrier()", []),
    ("clamp-dropped", True, "a = tl.maximum(b - c, 0)", ["a = (b - c)"]),
    ("clamp-dropped", False, "a = max(0, b)", ["a = b"]),
    ("clamp-dropped", False, "a = b.clamp_(0, n)", ["a = b"]),
    ("slice-shifted", False, "a = b[m : m + 1]", ["a = b[m + 1 : m + 1]", "a = b[m : (m + 1) - 1]"]),
    ("slice-shifted", False, "a = b[:-1]", []),
]  # fmt: skip


def function(line: str, *, kernel: bool = False) -> str:
    return ("@triton.jit\n" if kernel else "") + f"def f(a: int = 1) -> None:\n    '''Says 1 < 2.'''\n    {line}\n"


@pytest.mark.parametrize(("name", "kernel", "line", "changed"), SAMPLES)
def test_what_an_operator_writes(name: str, kernel: bool, line: str, changed: list[str]) -> None:
    made = [text for operator, text in mutation.mutate(function(line, kernel=kernel)) if operator == name]
    assert made == [function(one, kernel=kernel) for one in changed]


def test_every_operator_has_a_sample_and_a_place() -> None:
    names = {mutator.name for mutator in MUTATORS}
    assert {name for name, _, _, changed in SAMPLES if changed} == names
    assert {mutation.kind(fault) for fault in EVERY} == names


@pytest.mark.parametrize(
    "line",
    [
        "raise ValueError(f'{1 + 2} < {3}')",
        "tile = Tile(min(1, b), 4)",
        "tl.static_assert(C == 1 << LEVELS)",
        "a: tl.constexpr",
        "a = f'{b + 1}'",
        "'''1 < 2'''",
    ],
)
def test_what_cannot_change_a_result_is_left_alone(line: str) -> None:
    assert list(mutation.mutate(function(line, kernel=True))) == []


def test_only_the_condition_of_an_error_is_changed() -> None:
    text = function("if a > b:\n        got = a + b\n        raise ValueError(got)")
    changed = [made for _, made in mutation.mutate(text)]
    assert changed == [text.replace("a > b", "not (a > b)"), text.replace("a > b", "a >= b")]


def test_tuning_is_left_alone_and_characters_are_counted_as_characters() -> None:
    text = function("kernel[(n,)]('–', a, num_warps=4, SEARCH=2); b = c < d")
    assert {made for name, made in mutation.mutate(text) if name == "comparison-relaxed"} == {
        text.replace("c < d", "c <= d")
    }
    assert [made for name, made in mutation.mutate(text) if name == "constant-off-by-one"] == []


def test_every_generated_fault_is_python_and_its_id_is_its_own() -> None:
    assert len({fault.id for fault in EVERY}) == len(EVERY) > 1000
    changes = Counter((fault.module, fault.span, fault.replace) for fault in EVERY)
    assert max(changes.values()) == 1
    texts = {name: reach.module(name).source.text for name in {fault.module for fault in EVERY}}
    for fault in EVERY:
        assert fault.span is not None
        start, end = fault.span.offsets(texts[fault.module])
        assert texts[fault.module][start:end] == fault.find
    for fault in mutation.sample(EVERY, 200, 1):
        ast.parse(injection.changed_source(fault))


def test_ids_and_samples_are_the_same_every_time() -> None:
    reach.module.cache_clear()
    again = mutation.every()
    assert again == EVERY
    assert mutation.sample(again, 30, 5) == mutation.sample(EVERY, 30, 5) == mutation.sample(EVERY, 60, 5)[:30]
    assert mutation.sample(EVERY, 30, 5) != mutation.sample(EVERY, 30, 6)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sample_is_even_over_modules_and_operators(seed: int) -> None:
    chosen = mutation.sample(EVERY, 80, seed)
    modules = Counter(fault.module for fault in chosen)
    assert set(modules) == {fault.module for fault in EVERY}
    assert max(modules.values()) - min(modules.values()) <= 1
    kinds = Counter(mutation.kind(fault) for fault in chosen)
    assert set(kinds) == {mutator.name for mutator in MUTATORS}
    assert max(kinds.values()) <= 3 * 80 / len(MUTATORS)


def test_a_larger_sample_than_there_is_is_all_there_is() -> None:
    few = EVERY[::200]
    assert sorted(f.id for f in mutation.sample(few, 10**6, 1)) == sorted(f.id for f in few)


def one(module: str, text: str, changed: str) -> model.Fault:
    (fault,) = [f for f in EVERY if (f.module, f.find, f.replace) == (module, text, changed)]
    return fault


def test_the_subject_that_uses_it_most_judges_and_of_those_the_nearest() -> None:
    judges = reach.judges()
    assert judges["optimized.checks", "check_int"].operator == "moe"
    assert judges["optimized.chunk_metadata", "chunk_metadata_kernel"].on_cpu
    kernel = "optimized.chunk_metadata:chunk_metadata_kernel"
    assert judges["optimized.chunk_metadata", "_chunk_kernel"].subject == kernel
    assert (
        judges["optimized.chunk_metadata", "chunk_metadata_host"].subject == "optimized.chunk_metadata:chunk_metadata"
    )
    assert judges["optimized.causal_conv_kernels", "update_kernel"].operator == "conv_update"
    assert judges["optimized.gdn_prefill_kernels", "_chunk_of"].operator == "gdn_prefill"
    assert {name for name, _ in judges if name.startswith(("optimized.peers", "serving"))} == set()


def test_what_only_a_gpu_runs_is_seen_only_there() -> None:
    judges = reach.judges()
    assert not judges["optimized.step_metadata", "_Staging"].on_cpu
    assert not judges["optimized.gdn_prefill", "_aligned"].on_cpu
    assert judges["optimized.step_metadata", "_Fields"].on_cpu
    keys_first = one("optimized.gdn_prefill_kernels", "recalled * recall_scaling[:, None]", "recalled")
    assert (keys_first.tiers, keys_first.reason) == (("cuda",), mutation.UNSEEN)
    assert one("optimized.gdn_prefill_kernels", "recalled * recall_scaling[None, :]", "recalled").tiers == model.TIERS


def test_the_flags_have_on_a_cpu_the_values_that_are_said() -> None:
    tensor, prefill = torch.zeros(4, 2, 128), "optimized.gdn_prefill:_launch"
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        view = tensor.to(dtype)
        launch = load_target(prefill)(view, view, view, view, 3)
        assert launch.values_first == reach.CPU_FLAGS["VALUES_FIRST"]
    assert load_target("optimized.functions:has_ptx")(tensor) == reach.CPU_FLAGS["PTX"]
    assert tensor.is_cuda == reach.CPU_FLAGS["is_cuda"]


def test_interpreted_says_everywhere_that_the_device_is_a_cpu() -> None:
    said = [
        ast.unparse(node.value)
        for path in Path(optimized.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.keyword) and node.arg == "interpreted")
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "interpreted")
    ]
    assert len(said) > 1
    assert all(one.endswith(".type == 'cpu'") for one in said)
    assert reach.CPU_FLAGS["interpreted"] is True


def test_a_condition_on_the_device_ends_what_a_cpu_runs() -> None:
    tree = ast.parse(
        textwrap.dedent("""
            if x.device.type == "cpu":
                both = 1
                return
            gpu = 2
        """)
    )
    names = {node.id for node in reach.cuda_only(tree) if isinstance(node, ast.Name)}
    assert names == {"gpu"}


@pytest.mark.parametrize(
    ("condition", "unseen"),
    [
        ("x.device.type == 'cuda' and other and knobs.interpret", {"other", "knobs"}),
        ("x.device.type == 'cuda' and other and not knobs.interpret", {"x", "other", "knobs"}),
        ("x.device.type == 'cpu' or other", {"other"}),
        ("x.device.type == 'cpu' and other", set()),
        ("one and other", set()),
    ],
)
def test_what_a_cpu_decides_hides_the_rest_of_a_condition(condition: str, unseen: set[str]) -> None:
    tree = ast.parse(f"y = {condition}")
    assert {node.id for node in reach.cuda_only(tree) if isinstance(node, ast.Name)} == unseen


@pytest.mark.parametrize(("start", "end"), [(0, 3), (4, 9), (2, 11), (11, 11)])
def test_a_span_finds_its_text_again(start: int, end: int) -> None:
    text = "a–c\nde\n\nfgh"
    assert model.Span.between(text, start, end).offsets(text) == (start, end)


def test_a_span_whose_text_has_changed_is_an_error() -> None:
    fault = one("optimized.gdn_decode", "S * decay", "S")
    assert fault.span is not None
    elsewhere = replace(fault.span, line=fault.span.line + 1, end_line=fault.span.end_line + 1)
    beyond = replace(fault.span, line=10**6, end_line=10**6)
    for span in (elsewhere, beyond):
        with pytest.raises(injection.AnchorError, match="generate it again"):
            injection.changed_source(replace(fault, span=span))


def test_a_verdict_on_a_generated_fault_survives_its_file(tmp_path: Path) -> None:
    witness = Witness("equivalence", "over budget", "float32", "one row", "too far off", seconds=0.5, cases=3)
    verdict = Verdict(EVERY[0], "killed", [witness])
    verdict.save(tmp_path / "v.json")
    assert Verdict.load(tmp_path / "v.json") == verdict
    assert verdict.to_json()["kind"] == "generated"


def test_an_equivalent_needs_a_proof_and_names_one_thing() -> None:
    with pytest.raises(ValueError, match="proof: got none"):
        equivalents.Equivalent(proof=" ", id="optimized.*")
    with pytest.raises(ValueError, match="expected an id, or module, find and replace"):
        equivalents.Equivalent(proof="Because.", module="optimized.gdn_decode", find="S * decay")


def test_the_listed_equivalents_exist_and_their_checks_too() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for entry in equivalents.load():
        assert any(entry.covers(fault) for fault in EVERY), entry
        assert not entry.check or f"def {entry.check}(" in tests


def checked_by(test: str) -> list[model.Fault]:
    entries = [entry for entry in equivalents.load() if entry.check == test]
    return [fault for fault in EVERY if any(entry.covers(fault) for entry in entries)]


def masked_tokens(target: str) -> list[torch.Tensor]:
    """Outputs and states of sequences that end at every place of a walk, in every width."""
    results = []
    for width in (2, 3, 4):
        seed = torch.Generator().manual_seed(width)
        lengths = torch.tensor([0, *range(1, 20), 63, 64, 65])
        starts = torch.cat([torch.zeros(1), lengths.cumsum(0)]).to(torch.int32)
        state = torch.randn(len(lengths), 5, width - 1, generator=seed)
        y = load_target(target)(
            torch.randn(int(starts[-1]), 5, generator=seed),
            torch.randn(5, width, generator=seed),
            conv_state=state,
            cu_seqlens=starts,
            state_indices=torch.arange(len(lengths)),
            has_initial_state=lengths % 2 == 0,
            activation="silu",
        )
        results += [y, state]
    return results


@on_the_interpreter
def test_what_a_masked_token_reads_is_never_seen(tmp_path: Path) -> None:
    interpreter.repair()
    faults = checked_by("test_what_a_masked_token_reads_is_never_seen")
    assert len(faults) == 4
    expected = masked_tokens(faults[0].subject)
    for fault in faults:
        with injection.injected(fault, tmp_path) as target:
            assert all(map(torch.equal, masked_tokens(target), expected))


def test_the_unit_of_two_views_has_no_order() -> None:
    unit = load_target("optimized.gated_norm:_unit")
    base = torch.zeros(4, 4, 64, dtype=torch.float16)
    views = [base[:, :, :48], base[:, :, 1:49], base[:, ::2], base[:, :, ::2], base[..., :47], base.transpose(0, 1)]
    for x, z in product(views, repeat=2):
        if x.shape == z.shape:
            assert unit(x, z) == unit(z, x)


#: Cases of a dtype for `judged_as_the_right_one`, more where they are cheap.
CASES = {"chunk_metadata": 60, "step_metadata": 60, "moe": 12}
#: What unchanged subjects return, by subject, dtype and number of the case: the same for all of their faults.
UNCHANGED: dict[tuple[str, str, int], list[torch.Tensor]] = {}


def judged_as_the_right_one(fault: model.Fault, target: str, cases: int) -> None:
    """Over so many cases the changed subject gives the bits, or for a builder the metadata, of the unchanged one."""
    operator = operators.get(fault.operator)
    # A launch is chosen by sizes, whatever the dtype is.
    for dtype in operator.dtypes[-1:] if fault.operator == "moe" else operator.dtypes:
        for number, case in enumerate(draws(operator.cases(strategies.CPU, dtype), cases, 7)):
            if isinstance(case, StepCase):
                spec = CellSpec(fault.operator, "x", target, "engine_life", "cpu", dtype, examples=1, seed=0)
                Cell(spec, find_property(fault.operator, "arbitrary_steps")).judge(case)
                continue
            place = fault.subject, dtype, number
            if place not in UNCHANGED:
                UNCHANGED[place] = results(operator, load_target(fault.subject), case)
            got = results(operator, load_target(target), case)
            assert all(map(same_bits, got, UNCHANGED[place])), case


def results(operator: Operator, function: Callable[..., Any], case: Any) -> list[torch.Tensor]:
    if isinstance(operator, ChunkMetadata):
        return [*operator.run(function, operator.pack(case, torch.device("cpu")))]
    assert isinstance(operator, TokenOperator)
    result = operator.run(function, operator.batch(case, torch.device("cpu")), device=torch.device("cpu"))
    return [*result.outputs, *(state for state in result.states if state is not None)]


@on_the_interpreter
@pytest.mark.parametrize("fault", checked_by("test_equivalents_give_the_same_bits"), ids=lambda f: f.id)
def test_equivalents_give_the_same_bits(fault: model.Fault, tmp_path: Path) -> None:
    interpreter.repair()
    with injection.injected(fault, tmp_path) as target:
        judged_as_the_right_one(fault, target, CASES.get(fault.operator, 3))


@on_the_interpreter
@pytest.mark.parametrize("fault", checked_by("test_equivalents_stay_within_the_budget"), ids=lambda f: f.id)
def test_equivalents_stay_within_the_budget(fault: model.Fault, tmp_path: Path) -> None:
    interpreter.repair()
    with injection.injected(fault, tmp_path) as target:
        for dtype in ("float32", "bfloat16"):
            spec = CellSpec(fault.operator, "x", target, "equivalence", "cpu", dtype, examples=15, seed=5)
            result = Cell(spec, find_property(fault.operator, "equivalence")).run()
            assert result.failure is None, result.failure.message


@triton.jit
def _series_of(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, unbiased_exp(tl.load(x + i)))


@on_the_interpreter
@pytest.mark.parametrize("fault", checked_by("test_the_series_keeps_its_digits"), ids=lambda f: f.id)
def test_the_series_keeps_its_digits(fault: model.Fault, tmp_path: Path) -> None:
    """Two ulps at the end of the series, as the instruction that takes over there; half of that halfway to zero."""
    interpreter.repair()
    x = -torch.linspace(0, 0.5, 4097)[:4096]
    exact = x.double().exp()
    with injection.injected(fault, tmp_path) as target:
        changed = load_target(f"{target.partition('.')[0]}.functions:unbiased_exp")
        kernel = type(_series_of)(_with_global(_series_of.fn, unbiased_exp=changed))
        y = torch.empty_like(x)
        kernel[(1,)](x, y, BLOCK=4096)
    ulps = (y.double() - exact).abs() / exact / 2**-24
    assert float(ulps.max()) <= 4
    assert float(ulps[:2048].max()) <= 2


def _with_global(function: Any, **names: Any) -> Any:
    return types.FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)


@pytest.mark.parametrize("dtype", ["I", "Q", "i"])
def test_both_conversions_take_and_refuse_the_same(dtype: str) -> None:
    """What `_column` says of array and struct: the same bytes, or an error that it knows, for the same lists."""
    least, most = np.iinfo(np.dtype(dtype)).min, np.iinfo(np.dtype(dtype)).max
    right: list[list[Any]] = [[], [0, 1], [True, np.int64(3)], [least, most]]
    wrong: list[list[Any]] = [[most + 1], [least - 1], [1.0], ["1"], [None], [2**70]]
    for values in right:
        assert array(dtype, values).tobytes() == struct.pack(f"{len(values)}{dtype}", *values)
    for values in wrong:
        with pytest.raises((TypeError, OverflowError)):
            array(dtype, values)
        with pytest.raises(struct.error):
            struct.pack(f"{len(values)}{dtype}", *values)


def judge(faults: list[model.Fault], folder: Path) -> list[Verdict]:
    return runner.run(faults, Settings("cpu", 1, folder / "trials"), workers=1, listener=lambda _: None)


@on_the_interpreter
def test_killed_equivalent_and_invalid_are_told_apart(tmp_path: Path) -> None:
    fault = one("optimized.gdn_decode", "S * decay", "S")
    equivalent = replace(fault, id="equivalent", equivalent="It is declared so here.")
    broken = replace(fault, id="no-python", replace="S *")
    no_kernel = replace(fault, id="no-kernel", replace="S * no_such_name")
    verdicts = judge([fault, equivalent, broken, no_kernel], tmp_path)
    assert [v.status for v in verdicts] == ["killed", "equivalent", "invalid", "invalid"]
    assert verdicts[1].message == "It is declared so here."
    assert "SyntaxError" in verdicts[2].message
    assert "no_such_name" in verdicts[3].message
    assert matrix.exit_status(verdicts) == 0
    summary = matrix.summary(verdicts)
    assert (summary["score"], summary["equivalent"], summary["invalid"]) == (1.0, 1, 2)
    assert matrix.conclusion(verdicts, 1.0, "cpu").startswith("1 of 1 faults killed")


@on_the_interpreter
def test_the_command_takes_a_generated_fault_by_its_id(tmp_path: Path) -> None:
    name = one("optimized.gdn_decode", "S * decay", "S").id
    arguments = [
        "faults",
        "--device",
        "cpu",
        "--only-generated",
        "--fault",
        name,
        "--seed",
        "3",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == 0, result.output
    assert "1 of 1 faults killed on cpu" in result.output


def test_generated_alone_needs_a_number() -> None:
    result = CliRunner().invoke(build(), ["faults", "--device", "cpu", "--only-generated"])
    assert result.exit_code == 2
    assert "--generated" in result.output
