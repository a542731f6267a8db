"""Passes in their order, what a warm pass meets after an interruption, and the verdict over several comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from accuracy.answering import Answer, Prompt
from accuracy.gate import Rule, compare
from accuracy.outcome import Run
from accuracy.running import Answerer
from accuracy.session import Judged, Party, early, judged, kinds, overall, passes
from accuracy.tasks import Asked, Task
from accuracy.unpaired import published
from tests.accuracy.runs import info, run

TASK = Task("miniature", "1", tuple(Asked(f"{n}?", f"#### {n}") for n in range(6)))


class Parrot:
    """Answers rightly, and remembers what it was asked: prompts and how many tokens."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.made = 0

    def make(self) -> Answerer:
        self.made += 1
        return self

    def __call__(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Answer]]:
        for place, prompt in enumerate(prompts):
            self.asked.append((str(prompt.text), prompt.max_new_tokens))
            yield place, Answer(f"#### {str(prompt.text).removesuffix('?')}", 1, False)


def party(parrot: Parrot) -> Party:
    return Party("a b", info(6), parrot.make)


def quiet(what: str, done: int, total: int) -> None:
    """Nobody listens."""


def test_both_passes_in_one_life(tmp_path: Path) -> None:
    parrot = Parrot()
    told: list[tuple[str, int, int]] = []
    found = passes(party(parrot), TASK, tmp_path, ("cold", "warm"), lambda *words: told.append(words))
    assert (parrot.made, len(parrot.asked)) == (1, 12)
    assert {kind: one.info.cache for kind, one in found.items()} == {"cold": "cold", "warm": "warm"}
    assert all(one.accuracy() == 1.0 for one in found.values())
    assert told[0] == ("a b, cold", 0, 6)
    assert told[-1] == ("a b, warm", 6, 6)
    # Once more: everything is there, and nobody is woken.
    again = Parrot()
    assert passes(party(again), TASK, tmp_path, ("cold", "warm"), quiet) == found
    assert again.made == 0


def test_a_warm_pass_meets_used_caches_after_an_interruption_too(tmp_path: Path) -> None:
    first = Parrot()

    def interrupt(what: str, done: int, total: int) -> None:
        if (what, done) == ("a b, warm", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        passes(party(first), TASK, tmp_path, ("cold", "warm"), interrupt)
    second = Parrot()
    found = passes(party(second), TASK, tmp_path, ("cold", "warm"), quiet)
    assert found["warm"].complete
    assert [tokens for _, tokens in second.asked] == [1] * 6 + [256] * 4
    # So does one behind a cold pass of which this life has seen a part.
    path = party(second).file(tmp_path, "cold")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    party(second).file(tmp_path, "warm").unlink()
    third = Parrot()
    passes(party(third), TASK, tmp_path, ("cold", "warm"), quiet)
    assert [tokens for _, tokens in third.asked] == [256] * 3 + [1] * 6 + [256] * 6


def test_kinds_of_passes() -> None:
    assert kinds("cold, warm") == ("cold", "warm")
    for text in ("", "hot", "cold,cold"):
        with pytest.raises(ValueError, match="expected cold, warm or cold,warm"):
            kinds(text)


def test_the_worst_verdict_is_the_sessions() -> None:
    right, worse, better = run([True] * 500), run([False] * 9 + [True] * 491), run([True] * 500)
    few = run([True] * 50)
    found = {
        "as before": Judged("a", "b", compare(right, better)),
        "regression": Judged("a", "b", compare(right, worse)),
        "too little power to say": Judged("a", "b", compare(few, few)),
        "improved": Judged("a", "b", compare(worse, right)),
    }
    assert all(one.found.verdict == name for name, one in found.items())
    assert overall(list(found.values())) == "regression"
    del found["regression"]
    assert overall(list(found.values())) == "too little power to say"
    del found["too little power to say"]
    assert overall(list(found.values())) == "as before"
    assert overall([]) is None


def test_each_pass_is_judged_and_a_published_score_too() -> None:
    runs = {"cold": run([True] * 500, task="gsm8k"), "warm": run([False] * 9 + [True] * 491, task="gsm8k")}
    found = judged(runs, "k", run([True] * 500, task="gsm8k"), "base", Rule())
    assert [(one.new, one.found.verdict) for one in found] == [("k, cold", "as before"), ("k, warm", "regression")]
    reference = published()["qwen3.5-35b-a3b-vllm-triton"]
    assert "improved" in [one.found.verdict for one in judged(runs, "k", reference, "p", Rule())]


def test_a_baseline_is_refused_before_anything_runs(tmp_path: Path) -> None:
    base = passes(party(Parrot()), TASK, tmp_path, ("cold",), quiet)["cold"]
    early(base, TASK)
    with pytest.raises(ValueError, match="its questions is 6, asked for is 2"):
        early(base, TASK.first(2))
    with pytest.raises(ValueError, match="its task_version is '1', asked for is '2'"):
        early(base, Task("miniature", "2", TASK.asked))
    with pytest.raises(ValueError, match="question 0 was asked with another prompt"):
        early(base, Task("miniature", "1", TASK.asked[::-1]))
    with pytest.raises(ValueError, match="0 of 6 questions are answered"):
        early(Run(base.info, {}), TASK)
