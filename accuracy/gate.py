"""The paired gate: a run is compared question by question with a stored baseline, and the verdict says what it could have seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from accuracy.outcome import Outcome, Run
from accuracy.statistics import Design, Pairs, equivalence, interval, mcnemar, mcnemar_loss, non_inferiority

Verdict = Literal["as before", "regression", "improved", "too little power to say"]
Filter = Literal["strict", "flexible"]


@dataclass(frozen=True)
class Rule:
    """When the gate says what.

    Attributes:
        margin: loss of accuracy that must not be missed: "as before" excludes it.
        alpha: level of each one-sided test: no more right runs than this are called a regression.
        noise: share of the answers expected to flip between right runs; measured by comparing some.
        metric: which of the task's filters counts.
    """

    margin: float = 0.01
    alpha: float = 0.025
    noise: float = 0.02
    metric: Filter = "strict"

    def design(self, n: int) -> Design:
        return Design(n, self.noise, self.alpha, self.margin)


@dataclass(frozen=True)
class Counts:
    """Of one run: what no accuracy shows. disagree: questions whose two filters took different numbers."""

    truncated: int
    empty: int
    disagree: int

    @classmethod
    def of(cls, run: Run) -> Counts:
        found = run.outcomes.values()
        return cls(
            sum(o.truncated for o in found), sum(o.empty for o in found), sum(o.strict != o.flexible for o in found)
        )


@dataclass(frozen=True)
class Flip:
    """A question that one run has right and the other wrong."""

    baseline: Outcome
    new: Outcome
    lost: bool


@dataclass(frozen=True)
class Comparison:
    """A verdict and all that it rests on.

    Attributes:
        low, high: Tango's score interval of the difference, of confidence 1 - 2 alpha.
        p_loss, p_two_sided: McNemar's exact test. p_inferior, p_different: of non-inferiority and of equivalence at the margin.
        same_text: questions with the same answer, letter by letter.
        changed: settings that differ between the runs, each with both values. What is compared on purpose is among them.
        detectable: the smallest loss that this gate reports in 80 % of all runs; nan where there is none.
        power_at_margin: chance of a loss as large as the margin being reported.
    """

    verdict: Verdict
    why: str
    rule: Rule
    pairs: Pairs
    low: float
    high: float
    p_loss: float
    p_two_sided: float
    p_inferior: float
    p_different: float
    flips: tuple[Flip, ...]
    same_text: int
    baseline: Counts
    new: Counts
    changed: tuple[tuple[str, str, str], ...]
    detectable: float
    power_at_margin: float
    false_alarm_rate: float

    @property
    def red(self) -> bool:
        """Whether a job that asks must fail."""
        return self.verdict in ("regression", "too little power to say")


#: What two runs may differ in and still be compared; the rest makes them other questions.
_MAY_DIFFER = ("model", "tokenizer", "kernels", "concurrency", "cache", "seed", "versions", "environment")


def comparable(baseline: Run, new: Run) -> None:
    """Raises ValueError where the two runs did not answer the same questions, all of them."""
    for name in ("task", "task_version", "questions"):
        ours, theirs = getattr(new.info, name), getattr(baseline.info, name)
        if ours != theirs:
            raise ValueError(f"baseline: its {name} is {theirs!r}, that of the run {ours!r}; make a new baseline")
    for what, run in (("baseline", baseline), ("run", new)):
        if not run.complete:
            raise ValueError(
                f"{what}: {len(run.outcomes)} of {run.info.questions} questions are answered; let it go on to its end"
            )
    for index, one in new.outcomes.items():
        other = baseline.outcomes[index]
        for name in ("prompt_hash", "target_hash"):
            if getattr(one, name) != getattr(other, name):
                raise ValueError(
                    f"baseline: {name} of question {index} is {getattr(other, name)}, that of the run"
                    f" {getattr(one, name)}: it was asked something else; make a new baseline"
                )


def compare(baseline: Run, new: Run, rule: Rule | None = None) -> Comparison:
    """Judge a run by a baseline.

    Raises:
        ValueError: they cannot be compared, see `comparable`.
    """
    rule = rule or Rule()
    comparable(baseline, new)
    right = _marker(rule.metric)
    joined = [(baseline.outcomes[index], one) for index, one in new.outcomes.items()]
    flips = tuple(Flip(old, one, right(old)) for old, one in joined if right(old) != right(one))
    lost = sum(flip.lost for flip in flips)
    both = sum(right(old) and right(one) for old, one in joined)
    pairs = Pairs(both, lost, len(flips) - lost, len(joined) - both - len(flips))
    verdict, why = judge(pairs, rule)
    low, high = interval(pairs, 1 - 2 * rule.alpha)
    design = rule.design(pairs.n)
    return Comparison(
        verdict=verdict,
        why=why,
        rule=rule,
        pairs=pairs,
        low=low,
        high=high,
        p_loss=mcnemar_loss(lost, pairs.won),
        p_two_sided=mcnemar(lost, pairs.won),
        p_inferior=non_inferiority(pairs, rule.margin),
        p_different=equivalence(pairs, rule.margin),
        flips=flips,
        same_text=sum(old.answer == one.answer for old, one in joined),
        baseline=Counts.of(baseline),
        new=Counts.of(new),
        changed=tuple(
            (name, str(getattr(baseline.info, name)), str(getattr(new.info, name)))
            for name in _MAY_DIFFER
            if getattr(baseline.info, name) != getattr(new.info, name)
        ),
        detectable=design.detectable(),
        power_at_margin=design.power(min(rule.margin, 1 - rule.noise)),
        false_alarm_rate=design.false_alarm_rate,
    )


def judge(pairs: Pairs, rule: Rule) -> tuple[Verdict, str]:
    """The verdict on these counts, and why.

    A loss that cannot be chance is a regression however small it is; one that is smaller than the margin and may be chance is
    none. Where neither can be said, that is the verdict: it is no pass. Nor is it one where the baseline has hardly anything right.
    """
    lost, won = pairs.lost, pairs.won
    said = f"{lost} lost, {won} won of {pairs.n}"
    if (p := mcnemar_loss(lost, won)) <= rule.alpha:
        return "regression", f"{said}: p = {p:.2g}, at most {rule.alpha:g}"
    if (p := mcnemar_loss(won, lost)) <= rule.alpha:
        return "improved", f"{said}: p = {p:.2g}, at most {rule.alpha:g}"
    if pairs.both + lost < rule.margin * pairs.n:
        return (
            "too little power to say",
            f"{said}: the baseline has {pairs.both + lost} right, so a loss of {100 * rule.margin:g} points cannot happen",
        )
    if (p := non_inferiority(pairs, rule.margin)) <= rule.alpha:
        return "as before", f"{said}: a loss of {100 * rule.margin:g} points is excluded (p = {p:.2g})"
    return (
        "too little power to say",
        f"{said}: neither a loss nor its absence can be shown at {100 * rule.margin:g} points (p = {p:.2g})",
    )


def _marker(metric: Filter) -> Callable[[Outcome], bool]:
    return lambda outcome: outcome.right if metric == "strict" else outcome.right_flexible
