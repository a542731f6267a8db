"""The gate in words: what it can see before a run, and what it saw after."""

from __future__ import annotations

import math

from accuracy.gate import Comparison, Flip, Rule
from accuracy.tokens import TokenCheck
from accuracy.unpaired import Unpaired


def points(share: float) -> str:
    return f"{100 * share:.2f} points"


def beforehand(n: int, rule: Rule) -> str:
    """What the gate will be able to see, printed before anything is run."""
    design = rule.design(n)
    least = design.detectable()
    seen = (
        f"a loss of {points(least)} is reported in 80 % of all runs"
        if not math.isnan(least)
        else "no loss is ever reported"
    )
    lines = [
        f"{n} questions, compared one by one; {100 * rule.noise:g} % of the answers expected to flip between right runs",
        f"detects: {seen}; the margin, {points(rule.margin)}, in {100 * design.power(rule.margin):.0f} %",
        f"false alarms: {100 * design.false_alarm_rate:.1f} % of right runs, at most {100 * rule.alpha:g} %",
        f"a right run is found as before in {100 * design.as_before_rate:.0f} %; in 95 % with a margin of"
        f" {points(design.affordable_margin())}",
    ]
    return "\n".join(lines)


def afterwards(found: Comparison, flips: int = 20) -> str:
    """The verdict and what it rests on; so many flips with both answers, lost ones first."""
    pairs, rule = found.pairs, found.rule
    base, new = (pairs.both + pairs.lost) / pairs.n, (pairs.both + pairs.won) / pairs.n
    lines = [
        f"{found.verdict}: {found.why}",
        f"accuracy ({rule.metric}): {100 * new:.2f} %, baseline {100 * base:.2f} %, difference {100 * pairs.difference:+.2f}"
        f" points, {100 * (1 - 2 * rule.alpha):g} % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}",
        f"p of no difference {found.p_two_sided:.3g}, of a loss by the margin {found.p_inferior:.3g}, of a difference by"
        f" the margin {found.p_different:.3g}",
        f"{pairs.flips} of {pairs.n} flipped ({100 * pairs.flip_rate:.2f} %), {found.same_text} answers the same to the letter",
    ]
    for name in ("truncated", "empty", "disagree"):
        words = "strict and flexible disagree" if name == "disagree" else name
        lines.append(f"{words}: {getattr(found.new, name)}, baseline {getattr(found.baseline, name)}")
    lines += [f"changed {name}: {old} -> {now}" for name, old, now in found.changed]
    ordered = sorted(found.flips, key=lambda flip: (not flip.lost, flip.new.index))
    lines += [_flip(flip) for flip in ordered[:flips]]
    if len(ordered) > flips:
        lines.append(f"and {len(ordered) - flips} flips more")
    if pairs.flip_rate > 2 * rule.noise and pairs.flips > 5:
        lines.append(
            f"flips are {pairs.flip_rate / max(rule.noise, 1e-9):.1f} times what right runs show: something changed,"
            " whatever the accuracy says"
        )
    return "\n".join(lines)


def _flip(flip: Flip) -> str:
    what = "lost" if flip.lost else "won"
    return f"{what} {flip.new.index}:\n  baseline: {flip.baseline.answer!r}\n  new: {flip.new.answer!r}"


def tokens(found: TokenCheck) -> str:
    """What two models think of the same answers."""
    whole = len(found.questions) - found.diverging
    return (
        f"made to say {len(found.questions)} worked solutions, {found.tokens} tokens: KL {found.mean_kl:.2g} on average,"
        f" {found.worst_kl:.2g} at worst; the likeliest token is the same in {100 * found.agreement:.2f} %, in all of"
        f" {whole} solutions"
    )


def unpaired(found: Unpaired) -> str:
    return f"{found.verdict}: {found.why}\n{found.note}\nreference: {found.reference.source}"
