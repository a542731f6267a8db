"""The gate: its verdicts, what it refuses, and how often it is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accuracy import words
from accuracy.gate import Rule, comparable, compare, judge
from accuracy.outcome import Run
from accuracy.statistics import Pairs
from accuracy.unpaired import Published, against, published
from tests.accuracy.runs import answered, run

N = 1319


def marks(right: int, of: int = N) -> list[bool]:
    return [index < right for index in range(of)]


def flipped(lost: int, won: int, right: int = 1000) -> list[bool]:
    found = marks(right)
    found[:lost] = [False] * lost
    found[right : right + won] = [True] * won
    return found


@pytest.mark.parametrize(
    ("lost", "won", "verdict"),
    [
        (0, 0, "as before"),
        (3, 3, "as before"),
        (12, 11, "as before"),
        (20, 4, "regression"),
        (6, 0, "regression"),
        (5, 0, "as before"),
        (4, 20, "improved"),
        (60, 50, "too little power to say"),
    ],
)
def test_verdicts(lost: int, won: int, verdict: str) -> None:
    found = compare(run(marks(1000)), run(flipped(lost, won)))
    assert found.verdict == verdict
    assert found.red == (verdict in ("regression", "too little power to say"))
    assert found.pairs == Pairs(1000 - lost, lost, won, N - 1000 - won)
    assert [flip.new.index for flip in found.flips if flip.lost] == list(range(lost))
    assert found.same_text == N - lost - won
    assert found.low <= found.pairs.difference <= found.high


def test_too_few_questions_are_no_pass() -> None:
    assert compare(run([True] * 50), run([True] * 50)).verdict == "too little power to say"


def test_a_baseline_with_nothing_to_lose_is_no_pass() -> None:
    """A model that knows next to nothing answers as before whatever is broken."""
    found = compare(run(marks(12)), run(marks(12)))
    assert found.verdict == "too little power to say"
    assert "the baseline has 12 right" in found.why
    assert compare(run(marks(14)), run(marks(14))).verdict == "as before"
    assert Rule().margin == 0.01


def test_metric_chooses_the_filter() -> None:
    new = run(marks(N))
    outcomes = {i: answered(i, text=f"it is {i}") if i < 30 else o for i, o in new.outcomes.items()}
    changed = Run(new.info, outcomes)
    assert compare(run(marks(N)), changed).verdict == "regression"
    flexible = compare(run(marks(N)), changed, Rule(metric="flexible"))
    assert (flexible.verdict, flexible.new.disagree, flexible.baseline.disagree) == ("as before", 30, 0)


def test_counts_of_what_accuracy_hides() -> None:
    base = run(marks(5, 10))
    outcomes = dict(base.outcomes)
    outcomes[7] = answered(7, text="")
    outcomes[8] = answered(8, text="going on and on 3", truncated=True)
    found = compare(base, Run(base.info, outcomes))
    assert (found.new.empty, found.new.truncated, found.new.disagree) == (1, 1, 1)
    assert (found.baseline.empty, found.baseline.truncated, found.baseline.disagree) == (0, 0, 0)


def test_other_text_with_the_same_number_is_no_flip() -> None:
    base = run(marks(5, 10))
    found = compare(base, Run(base.info, {**base.outcomes, 2: answered(2, text="then\n#### 2")}))
    assert (found.same_text, found.flips) == (9, ())


def test_other_questions_are_refused() -> None:
    base = run(marks(5, 10))

    def refused(new: Run, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            comparable(base, new)

    refused(run(marks(5, 9)), "its questions is 10, that of the run 9")
    refused(run(marks(5, 10), task_version="2"), "its task_version is '1', that of the run '2'")
    refused(run(marks(5, 10), task="gsm8k"), "its task is 'miniature'")
    refused(Run(base.info, {k: v for k, v in base.outcomes.items() if k != 4}), "run: 9 of 10 questions are answered")
    refused(Run(base.info, {**base.outcomes, 3: answered(3, prompt="other")}), "prompt_hash of question 3")
    other = replace(base.outcomes[3], target_hash="0")
    refused(Run(base.info, {**base.outcomes, 3: other}), "target_hash of question 3")
    comparable(base, run(marks(1, 10), kernels="optimized", concurrency=64, date="later"))


def test_what_changed_is_listed() -> None:
    found = compare(run(marks(5, 10)), run(marks(5, 10), kernels="optimized", concurrency=64))
    assert found.changed == (("kernels", "references", "optimized"), ("concurrency", "4", "64"))


def test_rates_of_the_verdicts_are_those_printed() -> None:
    """What `Design` says of the gate, against the gate's own verdicts on simulated counts."""
    rule, runs = Rule(noise=0.02, margin=0.01), 20_000
    design = rule.design(N)
    random = np.random.default_rng(11)
    for loss in (0.0, 0.01):
        drawn = random.multinomial(N, [0.01 + loss, 0.01, 0.98 - loss], size=runs)
        verdicts: Counter[str] = Counter()
        for (lost, won), count in Counter((int(a), int(b)) for a, b, _ in drawn).items():
            verdicts[judge(Pairs(N - lost - won, lost, won, 0), rule)[0]] += count
        assert verdicts["regression"] / runs == pytest.approx(design.power(loss), abs=0.012)
        if loss == 0:
            assert verdicts["regression"] / runs <= rule.alpha
            # A run that is found better is not inferior either.
            assert (verdicts["as before"] + verdicts["improved"]) / runs == pytest.approx(
                design.as_before_rate, abs=0.02
            )


def test_words_before_and_after() -> None:
    rule = Rule()
    said = words.beforehand(N, rule)
    assert f"a loss of {100 * rule.design(N).detectable():.2f} points is reported in 80 %" in said
    assert "at most 2.5 %" in said
    assert "no loss is ever reported" in words.beforehand(4, Rule(noise=0.0))
    found = compare(run(marks(1000)), run(flipped(30, 2), kernels="optimized"))
    said = words.afterwards(found, flips=31)
    assert said.startswith("regression: 30 lost, 2 won of 1319")
    assert "changed kernels: references -> optimized" in said
    assert "lost 0:\n  baseline: 'so\\n#### 0'\n  new: 'so\\n#### 1'" in said
    assert "won 1000" in said
    assert "and 1 flips more" in said
    assert "times what right runs show" in words.afterwards(compare(run(marks(1000)), run(flipped(40, 40))))


REFERENCE = Published("r", "m", "gsm8k", 0.9, N, "strict", "", "somewhere")


@pytest.mark.parametrize(
    ("right", "verdict"),
    [(1187, "too little power to say"), (1120, "regression"), (1250, "improved"), (1210, "as before")],
)
def test_unpaired_verdicts(right: int, verdict: str) -> None:
    found = against(REFERENCE, run(marks(right), task="gsm8k"))
    assert found.verdict == verdict
    assert "weaker" in words.unpaired(found)


def test_unpaired_is_weaker() -> None:
    """The loss that the unpaired gate sees as often is more than twice what the paired one does."""
    assert against(REFERENCE, run(marks(1187), task="gsm8k")).detectable > 2 * Rule().design(N).detectable()


def test_unpaired_refuses_another_task() -> None:
    with pytest.raises(ValueError, match="of task gsm8k, the run of miniature"):
        against(REFERENCE, run(marks(5, 10)))


def test_published_references_have_sources() -> None:
    found = published()
    assert found["qwen3-next-80b-a3b-instruct-tensorrt-llm"].accuracy == 0.9272
    assert all(one.task == "gsm8k" and one.n == N for one in found.values())


def test_reference_without_a_source_is_refused(tmp_path: Path) -> None:
    entry = "a:\n  model: m\n  task: t\n  accuracy: 0.5\n  n: 10\n  metric: strict\n  prompting: p\n"
    (tmp_path / "a.yaml").write_text(entry)
    with pytest.raises(ValueError, match=r"a\.yaml: a has not exactly"):
        published(tmp_path)
    (tmp_path / "a.yaml").write_text(entry + "  source: ' '\n")
    with pytest.raises(ValueError, match="needs an accuracy"):
        published(tmp_path)
