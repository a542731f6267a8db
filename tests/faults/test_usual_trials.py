"""Faults before the rules: what only our inputs show, what only our rule shows, what dies, and the command."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from harness import interpreter
from harness.cli.rules import command
from harness.faults import injection, model
from harness.faults.model import Fault
from harness.faults.usual import demonstration, preparing, rules, runner, table, trial
from harness.faults.usual.inputs import KINDS, Kind
from harness.faults.usual.preparing import Bench
from harness.faults.usual.trial import Outcome, Settings
from harness.subjects import load_target
from tests.faults.test_injection import FAULT

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter's tier; a GPU's own is `sluicegate faults`"
)


@pytest.fixture(autouse=True, scope="module")
def _repaired() -> None:
    """As every process of a trial does: without it the interpreter rounds bfloat16 in its own way."""
    interpreter.repair()


def tried(fault: Fault, kind: Kind, folder: Path, *, calls: int) -> Outcome:
    prepared = list(islice(preparing.prepare(Bench.of(fault, kind), calls, 1), calls))
    with injection.injected(fault, folder) as target:
        return trial.run(fault, kind, load_target(target), prepared)


def catalogued(name: str) -> Fault:
    (fault,) = model.select(model.load(), ids=[name])
    return fault


def test_what_only_our_inputs_show(tmp_path: Path) -> None:
    fault = catalogued("step-flags-only-ever-set")
    assert tried(fault, "usual", tmp_path, calls=3).caught == {}
    assert tried(fault, "ragged", tmp_path, calls=3).caught == {}
    ours = tried(fault, "ours", tmp_path, calls=30)
    assert "budget" in ours.caught
    assert "allclose" in ours.caught
    assert ours.example["sentence"].startswith("builder for")


def test_what_only_our_rule_shows(tmp_path: Path) -> None:
    outcome = tried(catalogued("norm-gate-rounded"), "usual", tmp_path, calls=2)
    assert set(outcome.caught) == {"budget"}
    assert set(outcome.example["passed"]) == set(rules.NAMES) - {"budget"}
    assert outcome.example["figures"]["output"]["largest_error"] > 0


def test_a_rule_that_rejects_the_unchanged_subject_catches_nothing() -> None:
    def wrong(*arguments: object, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)

    prepared = list(preparing.prepare(Bench.of(FAULT, "usual"), 2, 1))[:1]
    assert prepared[0].passes["allclose"]
    everywhere = trial.run(FAULT, "usual", wrong, prepared)
    assert set(everywhere.caught) >= {"allclose", "budget"}
    alarmed = [replace(prepared[0], passes={**prepared[0].passes, "allclose": False})]
    assert set(trial.run(FAULT, "usual", wrong, alarmed).caught) == set(everywhere.caught) - {"allclose"}
    assert preparing.false_alarms(alarmed)["allclose"] == 1


def test_what_raises_is_caught_by_every_rule() -> None:
    def raising(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no")

    prepared = list(preparing.prepare(Bench.of(FAULT, "usual"), 2, 1))
    prepared = [replace(one, passes=dict.fromkeys(rules.NAMES, True)) for one in prepared]
    outcome = trial.run(FAULT, "usual", raising, prepared)
    assert (set(outcome.caught), outcome.calls) == (set(rules.NAMES), 1)
    assert "ZeroDivisionError" in outcome.message


def test_what_dies_is_caught_by_every_rule_and_ends_nothing_else(tmp_path: Path) -> None:
    deadly = replace(FAULT, id="test-deadly", replace=".sub_(opened), __import__('os').abort()")
    seen: list[tuple[str, int, int]] = []
    settings = Settings(1, tmp_path / "trials", cases=4)
    measured = runner.run([deadly, FAULT], settings, workers=2, listener=lambda *now: seen.append(now))
    assert [(o.fault, o.kind) for o in measured.outcomes] == [(f.id, kind) for f in (deadly, FAULT) for kind in KINDS]
    for outcome in measured.outcomes[:3]:
        assert (outcome.status, set(outcome.caught)) == ("died", set(rules.NAMES))
        assert "SIGABRT" in outcome.message
    assert {outcome.status for outcome in measured.outcomes[3:]} == {"ran"}
    assert seen[-1] == ("faults tried", 6, 6)


def test_results_that_nobody_computed() -> None:
    bench = Bench("gdn_decode", "optimized.gdn_decode:gdn_decode", "usual")
    shown = {s.name: s for s in demonstration.show(bench, list(preparing.prepare(bench, 2, 1))[:2])}
    assert set(shown) == set(demonstration.WRONG)
    assert shown["twice the result"].passed["cosine"] == shown["twice the result"].calls == 2
    assert shown["all zero"].passed == dict.fromkeys(rules.NAMES, 0)
    assert shown["state never written"].passed["budget"] == 0
    assert shown["outputs zero, states right"].passed["budget"] == 0


def test_the_command_writes_the_table_and_the_figure(tmp_path: Path) -> None:
    name = "chunk-host-offsets-overwritten"
    verdicts = tmp_path / "faults.json"
    found = {"id": name, "operator": "chunk_metadata", "status": "killed"}
    witness = {"property": "equivalence", "symptom": "wrong metadata"}
    verdicts.write_text(json.dumps({"faults": [{**found, "witnesses": [witness]}]}))
    application = typer.Typer()
    application.command()(command)
    arguments = ["--fault", name, "--seed", "3", "--cases", "8", "--out", str(tmp_path), "--verdicts", str(verdicts)]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    assert "the whole gate" in result.output
    report = json.loads((tmp_path / "rules.json").read_text())
    assert report["summary"]["faults"] == 1
    assert report["summary"]["gate"] == {"known": 1, "killed": 1}
    (group,) = report["summary"]["groups"]
    assert (group["group"], group["faults"]) == ("equivalence", 1)
    caught = {rule["name"]: rule["caught"] for rule in report["summary"]["rules"]}
    assert caught["budget"] == {"usual": 0, "ragged": 0, "ours": 1}
    words = ["".join(t.itertext()) for t in ET.parse(tmp_path / "rules.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert "Of 1 planted faults, caught" in words
    assert {rule.title for rule in rules.RULES} <= set(words)


@pytest.mark.parametrize("arguments", [["--fault", "no-such-fault"], ["--verdicts", "no-such-file.json"]])
def test_an_unknown_name_is_wrong_usage(arguments: list[str], tmp_path: Path) -> None:
    application = typer.Typer()
    application.command()(command)
    result = CliRunner().invoke(application, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "sluicegate rules:" in result.output


def test_verdicts_of_both_shapes_are_read(tmp_path: Path) -> None:
    entry = {"id": "a", "operator": "chunk_metadata", "status": "killed"}
    found = {"property": "no_host_sync", "symptom": "host sync"}
    old, new, alive = (
        {**entry, **found},
        {**entry, "id": "b", "witnesses": [found]},
        {**entry, "id": "c", "status": "survived"},
    )
    (tmp_path / "faults.json").write_text(json.dumps({"faults": [old, new, alive]}))
    gates = table.gates([tmp_path / "faults.json"])
    assert [gates[name].group for name in "abc"] == ["cost", "cost", ""]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"expected a faults\.json"):
        table.gates([tmp_path / "other.json"])


def test_without_a_verdict_the_gate_is_known_to_find_what_its_budget_catches_here() -> None:
    caught, missed = (
        Outcome("a", "ours", "ran", rules_that_did) for rules_that_did in ({"budget": 3}, {"allclose": 3})
    )
    known = table._gate(None, caught)
    assert known is not None
    assert (known["status"], known["group"]) == ("killed", "equivalence")
    assert table._gate(None, missed) is None
    alive = table.Gate("survived", "", "", "")
    assert table._gate(alive, caught) == vars(alive)
