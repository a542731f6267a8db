"""Runs of several tiers put together, and what the matrix then says of a survivor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import matrix as command
from harness.cli.faults import command as faults_command
from harness.faults import matrix as one_run
from harness.faults import merge, page, reverse
from harness.faults.verdict import Settings, Verdict
from tests.faults.planted import FAULTS, IDS, killed, run, survived, witness

FIRST, SECOND, THIRD = IDS[:3]


def save(verdicts: list[Verdict], path: Path, tier: str = "premerge") -> str:
    one_run.Saved(Settings("cpu", 5, path.parent / "trials", tier=tier, witnesses=2), len(verdicts), path).write(
        verdicts
    )
    return str(path)


def invoke(*arguments: str) -> tuple[int, str]:
    import typer

    application = typer.Typer()
    application.command("faults")(faults_command)
    application.command("matrix")(command.command)
    result = CliRunner().invoke(application, list(arguments))
    return result.exit_code, result.output


def test_tiers_stand_side_by_side_in_their_order() -> None:
    runs = [
        run([killed(FIRST, witness("equivalence", 0.5))], device="cuda"),
        run([killed(FIRST, witness("equivalence", 2.0)), killed(SECOND, witness("repeated"))], tier="nightly"),
        run([survived(FIRST)], tier="quick", name="q.json"),
        run([killed(SECOND, witness("repeated"))], tier="quick", name="r.json"),
    ]
    merged = merge.merge(runs)
    assert [c.name for c in merged.columns] == ["cpu quick", "cpu nightly", "cuda premerge"]
    assert [sorted(c.verdicts) for c in merged.columns] == [sorted([FIRST, SECOND])] * 2 + [[FIRST]]
    assert [(c.summary["killed"], c.summary["survived"]) for c in merged.columns] == [(1, 1), (2, 0), (1, 0)]
    assert [(c.name, v.fault.id) for c, v in merged.survivors] == [("cpu quick", FIRST)]
    faults = {entry["id"]: entry for entry in merged.to_json()["faults"]}
    assert {name: of["status"] for name, of in faults[FIRST]["verdicts"].items()} == {
        "cpu quick": "survived",
        "cpu nightly": "killed",
        "cuda premerge": "killed",
    }


def test_one_verdict_must_not_hide_another() -> None:
    runs = [run([survived(FIRST)], name="a.json"), run([killed(FIRST, witness("equivalence"))], name="b.json")]
    with pytest.raises(ValueError, match=rf"b\.json: got fault {FIRST} on cpu premerge, which a\.json has as well"):
        merge.merge(runs)


def test_one_id_means_one_change() -> None:
    other = survived(FIRST)
    other.fault = replace(other.fault, replace="something else")
    with pytest.raises(ValueError, match=r"b\.json: fault .* is another change than in a\.json"):
        merge.merge([run([survived(FIRST)]), run([other], tier="quick", name="b.json")])


@pytest.mark.parametrize(
    ("verdicts", "planned", "status"),
    [
        ([killed(FIRST, witness("equivalence"))], 1, 0),
        ([killed(FIRST, witness("equivalence")), survived(SECOND)], 2, 1),
        ([killed(FIRST, witness("equivalence")), Verdict(FAULTS[SECOND], "error", message="went wrong")], 2, 1),
        ([killed(FIRST, witness("equivalence")), Verdict(FAULTS[SECOND], "unseen", message="no GPU")], 2, 0),
        ([Verdict(FAULTS[SECOND], "unseen", message="no GPU")], 1, 3),
        # An interrupted run: nothing survived, but nobody knows.
        ([killed(FIRST, witness("equivalence"))], 2, 3),
    ],
)
def test_exit_status(verdicts: list[Verdict], planned: int, status: int) -> None:
    merged = merge.merge([run(verdicts, planned=planned)])
    assert merged.exit_status == status
    assert page.headline(merged)[0] == {0: "held", 1: "failed", 3: "incomplete"}[status]


@pytest.mark.parametrize(
    ("verdicts", "planned", "sentence"),
    [
        ([Verdict(FAULTS[SECOND], "unseen", message="no GPU")], 1, "No fault counts on cpu quick"),
        ([Verdict(FAULTS[SECOND], "equivalent", message="the same")], 1, "No fault counts on cpu quick"),
        ([killed(FIRST, witness("equivalence"))], 2, "No fault survived, but 1 were not tried"),
    ],
)
def test_one_column_does_not_hide_that_nothing_is_known_of_another(
    verdicts: list[Verdict], planned: int, sentence: str
) -> None:
    whole = run([killed(FIRST, witness("equivalence"))])
    merged = merge.merge([whole, run(verdicts, tier="quick", planned=planned)])
    assert merged.exit_status == 3
    status, said = page.headline(merged)
    assert status == "incomplete"
    assert said.startswith(sentence)


def test_the_command_merges_two_runs_and_is_red_for_a_survivor(tmp_path: Path) -> None:
    good = save([killed(FIRST, witness("equivalence"))], tmp_path / "good.json")
    bad = save([survived(FIRST)], tmp_path / "bad.json", tier="quick")
    code, output = invoke("matrix", good, "--out", str(tmp_path / "one"))
    assert code == 0, output
    assert "All 1 visible fault killed" in output
    code, output = invoke("matrix", good, bad, "--out", str(tmp_path / "both"))
    assert code == 1
    assert f"survived  {FIRST} on cpu quick" in output
    assert "1 of 1 visible fault survived or went wrong" in output
    data = json.loads((tmp_path / "both" / "matrix.json").read_text())
    assert [column["name"] for column in data["columns"]] == ["cpu quick", "cpu premerge"]
    assert data["reverse"]["asked"] is True
    assert '<header class="failed">' in (tmp_path / "both" / "matrix.html").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "expected a faults.json, got other JSON"),
        ("no json", "expected a faults.json, got"),
        ('{"faults": [], "schema_version": 1}', "got schema version 1, expected"),
        (None, "expected a faults.json, got"),
    ],
)
def test_another_file_is_wrong_usage(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    code, output = invoke("matrix", str(path), "--out", str(tmp_path))
    assert (code, words in output) == (2, True), output


def test_a_verdict_that_was_saved_is_the_same_again() -> None:
    verdict = killed(FIRST, witness("equivalence"), witness("repeated", 2.0))
    assert Verdict.from_json(verdict.to_json()) == verdict


# -- an interrupted run, and a list of faults -------------------------------------------------------------------------


def test_an_interrupted_run_leaves_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.faults import runner

    def interrupted(faults: list[object], settings: Settings, *, workers: int, listener: runner.Listener) -> None:
        on_disk = json.loads((tmp_path / "faults.json").read_text())
        # Not the older run's, which was there before.
        assert (on_disk["planned"], on_disk["faults"]) == (len(faults), [])
        listener(killed(FIRST, witness("equivalence")))
        raise KeyboardInterrupt

    (tmp_path / "faults.json").write_text("older")
    monkeypatch.setattr(runner, "run", interrupted)
    code, output = invoke("faults", "--device", "cpu", "--operator", "chunk_metadata", "--out", str(tmp_path))
    assert code == 130, output
    assert f"interrupted after 1 of {len(IDS)} faults" in output
    report = json.loads((tmp_path / "faults.json").read_text())
    assert (report["planned"], [entry["id"] for entry in report["faults"]]) == (len(IDS), [FIRST])
    assert '<header class="incomplete">' in (tmp_path / "matrix.html").read_text()


def test_verdicts_reach_the_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    saved = one_run.Saved(Settings("cpu", 5, tmp_path), 2, path, every=0.0)
    saved.add(survived(FIRST))
    assert [entry["id"] for entry in json.loads(path.read_text())["faults"]] == [FIRST]


def test_a_list_chooses_the_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.faults import runner

    seen: list[str] = []

    def note(faults: list[object], settings: Settings, *, workers: int, listener: runner.Listener) -> list[Verdict]:
        seen.extend(fault.id for fault in faults)  # type: ignore[attr-defined]
        return [killed(name, witness("equivalence")) for name in seen]

    monkeypatch.setattr(runner, "run", note)
    (tmp_path / "list.txt").write_text(f"# some\n{FIRST}  # why\n\n  {SECOND}\n")
    code, output = invoke("faults", "--device", "cpu", "--list", str(tmp_path / "list.txt"), "--out", str(tmp_path))
    assert code == 0, output
    assert sorted(seen) == sorted([FIRST, SECOND])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{FIRST}\nno-such-fault\n", "got no-such-fault, which are no faults here"),
        (f"{FIRST}\n{FIRST}\n", f"got {FIRST} twice"),
        ("# nothing\n", "got no id at all"),
        (None, "cannot read"),
    ],
)
def test_a_list_with_a_mistake_is_wrong_usage(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    code, output = invoke("faults", "--device", "cpu", "--list", str(path), "--out", str(tmp_path))
    assert (code, words in output) == (2, True), output


def test_nothing_is_killed_twice_by_one_property() -> None:
    merged = merge.merge([run([killed(THIRD, witness("equivalence"), witness("repeated"))])])
    assert [(s.property, s.first, s.further) for s in reverse.standings(merged) if s.first or s.further] == [
        ("equivalence", [THIRD], []),
        ("repeated", [], [THIRD]),
    ]
