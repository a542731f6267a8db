"""What a session leaves: report.json, report.md, and a page that needs no script, with every interval drawn against the margin."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import harness.report
from accuracy import words
from accuracy.drawing import draw
from accuracy.gate import Comparison, Counts, Rule
from accuracy.outcome import Run
from accuracy.session import Judged, overall
from accuracy.tasks import Task
from accuracy.tokens import TokenCheck
from harness.files import write_whole
from harness.report.text import cleaned

SCHEMA_VERSION = 1
#: More flips than these are in report.json only.
MOST_FLIPS = 40


@dataclass(frozen=True)
class Session:
    """All that a report is made of. runs: by name. beforehand: what was said before anything ran."""

    command: str
    task: Task
    rule: Rule
    beforehand: str
    runs: Mapping[str, Run]
    judged: Sequence[Judged]
    tokens: TokenCheck | None = None


def record(session: Session) -> dict[str, Any]:
    """The report. No clock but each run's own date is in it: a session that was interrupted reports the same as one that was not."""
    rule = session.rule
    return {
        "schema_version": SCHEMA_VERSION,
        "command": session.command,
        "task": {"name": session.task.name, "version": session.task.version, "questions": len(session.task.asked)},
        "rule": {"margin": rule.margin, "alpha": rule.alpha, "noise": rule.noise, "metric": rule.metric},
        "beforehand": session.beforehand,
        "verdict": overall(session.judged),
        "runs": [_run(name, run) for name, run in session.runs.items()],
        "comparisons": [_comparison(one) for one in session.judged],
        "tokens": _tokens(session.tokens),
    }


def _tokens(found: TokenCheck | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "words": words.tokens(found),
        "questions": len(found.questions),
        "tokens": found.tokens,
        "mean_kl": found.mean_kl,
        "worst_kl": found.worst_kl if math.isfinite(found.worst_kl) else None,
        "agreement": found.agreement,
        "first_divergences": [one.first_divergence for one in found.questions],
    }


def _run(name: str, run: Run) -> dict[str, Any]:
    counts = Counts.of(run)
    told = [o.tokens for o in run.outcomes.values() if o.tokens >= 0]
    info = run.info
    return {
        "name": name,
        "strict": run.accuracy(),
        "flexible": run.accuracy(flexible=True),
        "truncated": counts.truncated,
        "empty": counts.empty,
        "disagree": counts.disagree,
        "tokens": sum(told) / len(told) if told else -1.0,
        "model": info.model,
        "tokenizer": info.tokenizer,
        "kernels": info.kernels,
        "cache": info.cache,
        "concurrency": info.concurrency,
        "seed": info.seed,
        "versions": dict(info.versions),
        "environment": dict(info.environment),
        "date": info.date,
    }


def _comparison(one: Judged) -> dict[str, Any]:
    found = one.found
    common = {
        "new": one.new,
        "baseline": one.baseline,
        "paired": isinstance(found, Comparison),
        "verdict": found.verdict,
        "why": found.why,
        "low": found.low,
        "high": found.high,
        "detectable": None if math.isnan(found.detectable) else found.detectable,
    }
    if not isinstance(found, Comparison):
        return common | {"accuracy": found.accuracy, "note": found.note, "source": found.reference.source}
    pairs = found.pairs
    return common | {
        "both": pairs.both,
        "lost": pairs.lost,
        "won": pairs.won,
        "neither": pairs.neither,
        "difference": pairs.difference,
        "p_loss": found.p_loss,
        "p_two_sided": found.p_two_sided,
        "p_inferior": found.p_inferior,
        "p_different": found.p_different,
        "power_at_margin": found.power_at_margin,
        "false_alarm_rate": found.false_alarm_rate,
        "same_text": found.same_text,
        "changed": [list(change) for change in found.changed],
        "flips": [
            {
                "index": flip.new.index,
                "lost": flip.lost,
                "baseline": flip.baseline.answer,
                "new": flip.new.answer,
            }
            for flip in found.flips
        ],
    }


def said(one: Judged, flips: int = 20) -> str:
    """A comparison in words, with so many flips."""
    if isinstance(one.found, Comparison):
        return words.afterwards(one.found, flips)
    return words.unpaired(one.found)


def headline(session: Session) -> str:
    return overall(session.judged) or "no verdict: nothing to compare with"


def save(session: Session, folder: Path) -> Path:
    """Write the report in its three forms and a drawing for each comparison; returns the path of report.json."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for number, one in enumerate(session.judged):
        path = folder / f"interval-{number}.svg"
        draw(one.found, session.rule.margin, path)
        drawings.append(path)
    found = record(session)
    path = folder / "report.json"
    write_whole(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / "report.md", _markdown(session, drawings))
    write_whole(folder / "report.html", _page(session, found, drawings))
    return path


def _markdown(session: Session, drawings: Sequence[Path]) -> str:
    task = session.task
    lines = [
        f"# {headline(session)}",
        "",
        f"{task.name}, version {task.version}, {len(task.asked)} questions; `{session.command}`",
        "",
        *(f"- {line}" for line in session.beforehand.split("\n")),
        "",
        "| run | strict | flexible | disagree | truncated | empty |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in session.runs.items():
        counts = Counts.of(run)
        shares = f"{100 * run.accuracy():.2f} % | {100 * run.accuracy(flexible=True):.2f} %"
        lines.append(f"| {name} | {shares} | {counts.disagree} | {counts.truncated} | {counts.empty} |")
    if session.tokens is not None:
        lines += ["", words.tokens(session.tokens)]
    for one, path in zip(session.judged, drawings, strict=True):
        lines += ["", f"## {one.new} against {one.baseline}", "", f"![interval]({path.name})", ""]
        lines += ["```text", said(one).replace("```", "'''"), "```"]
    return "\n".join(lines) + "\n"


def _page(session: Session, found: dict[str, Any], drawings: Sequence[Path]) -> str:
    folders = [Path(__file__).with_name("templates"), Path(harness.report.__file__).with_name("templates")]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdict = overall(session.judged)
    state = {"regression": "failed", "as before": "held", "improved": "held"}.get(str(verdict), "incomplete")
    shown = []
    for one, told, path in zip(session.judged, found["comparisons"], drawings, strict=True):
        svg = path.read_text(encoding="utf-8")
        shown.append(
            {
                "new": one.new,
                "baseline": one.baseline,
                "words": said(one, 0),
                "flips": sorted(told.get("flips", []), key=lambda flip: not flip["lost"])[:MOST_FLIPS],
                "drawing": Markup(svg[svg.index("<svg") :]),  # our own drawing; it quotes nobody
            }
        )
    return environment.get_template("accuracy.html.j2").render(
        report=cleaned(found), headline=headline(session), state=state, comparisons=cleaned_all(shown)
    )


def cleaned_all(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without characters that a page must not hold; drawings stay as they are."""
    return [{key: value if key == "drawing" else cleaned(value) for key, value in one.items()} for one in shown]
