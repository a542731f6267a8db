"""A planted fault shrinks to the schedule that one would write by hand; and it never reaches the oracle."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import serving
from harness import operators, strategies
from harness.cell import CellSpec
from harness.context import Context
from harness.draws import draws
from harness.failure import Failure
from harness.faults import injection, model
from harness.faults.trial import TrialCell
from harness.isolation import find_property
from harness.subjects import load_target
from properties.test_engine import OPTIMIZED, captured_models
from serving.engine import Engine
from serving.engine_case import Action, EngineCase, Size
from serving.life import Life
from serving.lives import crowds, families
from serving.settings import EngineSettings
from tests.serving.engines import TOY

FAULTS = {fault.id: fault for fault in model.read(model.CATALOGUE / "engine.yaml")}
OPERATOR = operators.get("engine")
#: What runs an engine and is planted with faults: imported from beside itself, so that a changed copy is one whole.
UNDER_TEST = (
    "engine",
    "scheduler",
    "state",
    "prefix_cache",
    "request",
    "sampling",
    "graphs",
    "step_inputs",
    "settings",
)


def smallest(fault: model.Fault, folder: Path) -> EngineCase:
    """The case to which a cell shrinks its first failure."""
    with injection.injected(fault, folder) as target:
        spec = CellSpec("engine", "planted", target, "engine_life", "cpu", "float32", examples=500, seed=3)
        cell = TrialCell(spec, find_property("engine", "engine_life"))
        # What is found in time is kept: on a busy machine a limit that fits an idle one would cut it short.
        cell.shrink_seconds, cell.polish_seconds = 20.0, 20.0
        failure = cell.run().failure
    assert failure is not None
    return EngineCase.from_json({name: value for name, value in failure.case.items() if name != "target"})


def life(*actions: Action, **size: object) -> EngineCase:
    return EngineCase("engine", actions, replace(Size(), **size))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        # One token, alone, is a prompt.
        ("engine-last-context-token-as-decode", life(Action("submit"))),
        # Two decodes, the second at the first place where they meet padding.
        ("engine-padding-in-slot-zero", life(Action("submit", new=2), graph_sizes=(4,))),
        ("engine-aborted-while-waiting-runs", life(Action("submit"), Action("abort", 0))),
    ],
)
def test_a_fault_shrinks_to_the_shortest_schedule(fault: str, expected: EngineCase, tmp_path: Path) -> None:
    assert smallest(FAULTS[fault], tmp_path) == expected


def test_what_a_hit_needs_is_a_prompt_and_the_same_again(tmp_path: Path) -> None:
    found = smallest(FAULTS["engine-hit-without-its-state"], tmp_path)
    # One token more than a snapshot's place, so that there is a token left to compute.
    assert found.actions == (Action("submit", 5), Action("later", 0))
    assert found.size == replace(Size(), interval=4)


def test_the_operator_says_what_happened() -> None:
    case = life(
        Action("submit", 9, shared=4, new=2, sampling=1, stop=2),
        Action("step", 2),
        Action("again", 0),
        Action("preempt", 1),
        Action("abort", 0),
        Action("budget", 3),
        Action("finish"),
        slots=1,
        interval=4,
        graphs=True,
        graph_sizes=(1, 2),
    )
    assert OPERATOR.describe(case) == (
        "engine (toy) of 1 slot, 48 pages of 4 tokens, steps of 16 tokens, decodes replayed at 1, 2 rows,"
        " snapshots each 4 tokens; submit request 0, a prompt of 9 (4 shared), up to 2 new, drawn, 2 stop tokens; 2 steps;"
        " submit request 1, a prompt of 9 as before, up to 2 new, drawn, 2 stop tokens; preempt one 1 before the newest;"
        " abort the newest; 3 tokens a step from here; until all is finished"
    )


def test_lives_meet_what_engines_meet() -> None:
    """Of 150 lives, many preempt, share prefixes, wait for slots, replay decodes and compute prompts in pieces."""
    met: dict[str, int] = {}
    for case in draws(OPERATOR.cases(strategies.CPU, "float32"), 150, seed=1):
        lived = Life(load_target("serving.engine:Engine"), TOY, case.size.settings(case.seed)).live(case)
        reports, books = lived.reports, list(lived.watch.books.values())
        seen = {
            "preempted for pages": any(report.preempted for report in reports),
            "prefix hit": lived.watch.saved > 0,
            "budget changed": any(action.what == "budget" for action in case.actions),
            "preempted by hand": any(action.what == "preempt" for action in case.actions),
            "drawn": any(not request.sampling.greedy for request in case.requests(16)),
            "random slots": case.size.random_slots,
            "short hashes": bool(case.size.interval) and case.size.hash_bits < 8,
            "others begin alike": any(
                a[:8] == b[:8] and a != b for a, b in combinations((book.request.prompt for book in books), 2)
            ),
            "replayed": any(report.replayed for report in reports),
            "padded": any(report.padding for report in reports),
            "mixed": any(len({row.is_context for row in report.rows}) == 2 for report in reports),
            "continued context": any(row.is_context and row.cached for report in reports for row in report.rows),
            "stopped": any(book.reason == "stop" for book in books),
            "aborted": any(book.reason == "aborted" for book in books),
        }
        for name, yes in seen.items():
            met[name] = met.get(name, 0) + yes
    assert {name for name, count in met.items() if count < 8} == set(), met


@pytest.mark.parametrize(
    ("fault", "property", "least"),
    [
        # One block behind two prefixes, taken for one: hashes of three bits, and twins. Without twins it is 0 to 10.
        ("engine-parent-not-compared", "prefixes_compete", 11),
        # The youngest decodes already when an older one's prompt needs its pages.
        ("engine-preempted-row-stays-in-the-step", "pages_run_out", 15),
    ],
)
def test_trouble_is_met_on_purpose(fault: str, property: str, least: int, tmp_path: Path) -> None:
    """Of 300 lives drawn for it 15 to 32 and 29 to 43 meet a fault (eight seeds) that 300 of any kind do not."""
    prop, met = find_property("engine", property), 0
    assert prop.strategy is not None
    with injection.injected(FAULTS[fault], tmp_path) as target:
        context = Context(OPERATOR, load_target(target), TOY.device)
        for case in draws(prop.strategy(strategies.CPU, "float32"), 300, seed=1):
            try:
                prop.body(context, case)
            except Failure:
                met += 1
    assert met >= least


def test_a_prompt_that_ends_at_a_snapshot_is_asked_for_again(tmp_path: Path) -> None:
    """29 tokens in steps of 16: the snapshot of the whole prompt has no use, and one must stand a block before it."""
    with injection.injected(FAULTS["engine-aligned-prompt-never-hits"], tmp_path) as target:
        context = Context(OPERATOR, load_target(target), TOY.device)
        with pytest.raises(Failure, match="a prompt of 28 that comes again"):
            find_property("engine", "prefixes_are_reused").body(context, life(Action("submit", 29)))


def test_crowds_are_made_smaller_by_hand_too() -> None:
    cases = draws(crowds(strategies.CPU, "float32"), 60, seed=1)
    met = {
        "preempted by hand": sum(any(action.what == "preempt" for action in case.actions) for case in cases),
        "random slots": sum(case.size.random_slots for case in cases),
        "no prefix cache": sum(not case.size.interval for case in cases),
    }
    assert min(met.values()) >= 6, met


@pytest.mark.parametrize("what", ["later", "again"])
def test_families_ask_the_same_again(what: str) -> None:
    cases = draws(families(strategies.CPU, "float32"), 60, seed=1)
    assert sum(any(action.what == what for action in case.actions) for case in cases) >= 15


def test_what_is_captured_can_be() -> None:
    for case in draws(captured_models(strategies.CPU, "float32"), 60, seed=1):
        assert case.model == OPTIMIZED
        assert case.size.graphs
        assert case.size.graph_sizes


# -- careless engines --------------------------------------------------------------------------------------------------


def eager(model: Any, settings: EngineSettings) -> Engine:
    """One that has graphs and uses none."""
    return Engine(model, replace(settings, graphs="off"))


def hoarder(model: Any, settings: EngineSettings) -> Engine:
    """One that captures a graph for which no step has come."""
    engine = Engine(model, settings)
    engine.graphs._graphs[7] = None  # type: ignore[assignment]
    return engine


def block_short(model: Any, settings: EngineSettings) -> Engine:
    """One that restores the last snapshot but one."""
    engine = Engine(model, settings)
    assert engine.cache is not None
    find = engine.cache.find
    engine.cache.find = lambda tokens: find(tokens[: -settings.snapshot_interval])  # type: ignore[method-assign]
    return engine


def same_again_only(model: Any, settings: EngineSettings) -> Engine:
    """One that finds no prefix of a prompt that is longer than those before."""
    engine = Engine(model, settings)
    assert engine.cache is not None
    find, longest = engine.cache.find, [0]

    def known(tokens: Any) -> Any:
        longer, longest[0] = longest[0] and len(tokens) > longest[0], max(longest[0], len(tokens))
        return None if longer else find(tokens)

    engine.cache.find = known  # type: ignore[method-assign]
    return engine


@pytest.mark.parametrize(
    ("engine", "property", "model", "said"),
    [
        (eager, "decodes_are_replayed", "toy", "replayed is False, expected True"),
        (eager, "model_life", "references", "replayed is False, expected True"),
        (hoarder, "decodes_are_replayed", "toy", r"graphs were captured for \[1, 7\] rows, expected \[1\]"),
        (block_short, "prefixes_are_reused", "toy", "a prompt of 22 that comes again saves 16 tokens, expected 20"),
        (same_again_only, "prefixes_are_reused", "toy", "a prompt of 23 that comes again saves 0 tokens, expected 20"),
    ],
)
def test_a_careless_engine_is_seen(engine: Any, property: str, model: str, said: str) -> None:
    case = life(Action("submit", 22, new=3), graphs=True, graph_sizes=(1, 2, 4)).with_(model=model)
    with pytest.raises(Failure, match=said):
        find_property("engine", property).body(Context(OPERATOR, engine, TOY.device), case)


def test_a_planted_fault_does_not_reach_the_oracle(tmp_path: Path) -> None:
    fault = FAULTS["engine-shared-page-freed"]
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "serving"}
    with injection.injected(fault, tmp_path) as target:
        context = Context(OPERATOR, load_target(target), TOY.device)
        changed = {name for name in sys.modules if name.startswith(injection.alias(fault))}
        assert f"{injection.alias(fault)}.state" in changed
        assert not any(name.rpartition(".")[2] in ("oracle", "answers", "life", "toy", "truth") for name in changed)
        case = life(Action("submit", 5), Action("again", 0), interval=4)
        with pytest.raises(Failure, match="free, yet"):
            find_property("engine", "engine_life").body(context, case)
    after = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "serving"}
    assert after == before


@pytest.mark.parametrize("name", UNDER_TEST)
def test_what_is_under_test_imports_what_lies_beside_it(name: str) -> None:
    """An absolute import would take the unchanged module into the changed copy, and the fault would not be met."""
    source = (Path(serving.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    absolute = [
        node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("serving")
    ]
    assert absolute == []
