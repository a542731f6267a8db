"""Made-up runs for tests."""

from __future__ import annotations

from collections.abc import Iterable

from accuracy.outcome import Outcome, Run, RunInfo, outcome


def info(questions: int, **changes: object) -> RunInfo:
    known: dict[str, object] = {
        "task": "miniature",
        "task_version": "1",
        "questions": questions,
        "model": "m",
        "tokenizer": "t",
        "kernels": "references",
        "concurrency": 4,
    }
    return RunInfo(**{**known, **changes})  # type: ignore[arg-type]


def answered(index: int, right: bool = True, **changes: object) -> Outcome:
    text = str(changes.pop("text", f"so\n#### {index if right else index + 1}"))
    truncated = bool(changes.pop("truncated", False))
    prompt = str(changes.pop("prompt", f"Question: {index}?"))
    return outcome(index, prompt, f"as\n#### {index}", text, truncated=truncated)


def run(marks: Iterable[bool], **changes: object) -> Run:
    """A run whose question i is right where mark i says so."""
    outcomes = {index: answered(index, right) for index, right in enumerate(marks)}
    return Run(info(len(outcomes), **changes), outcomes)
