"""Passes over a task, each a file that grows: what is in it is not asked again, so a session that was killed goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accuracy.answering import Answer, Prompt
from accuracy.gate import Comparison, Rule, Verdict, compare
from accuracy.outcome import Run, RunInfo, Writer, hashed
from accuracy.running import Answerer, answer_all, prompt_of
from accuracy.tasks import Task
from accuracy.unpaired import Published, Unpaired, against

PASSES = ("cold", "warm")
#: What a session as a whole says: the first of these that any comparison says.
ORDER: tuple[Verdict, ...] = ("regression", "too little power to say", "as before", "improved")
#: Told what is being done, how much of it is done, and of how much.
Listener = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Party:
    """Who answers. label: names it and its files. info: what is stored with its runs. make: called when it is first needed."""

    label: str
    info: RunInfo
    make: Callable[[], Answerer]

    def file(self, folder: Path, kind: str) -> Path:
        return folder / "runs" / f"{re.sub(r'[^A-Za-z0-9._=-]+', '_', self.label)}-{kind}.jsonl"


@dataclass(frozen=True)
class Judged:
    """A comparison and what was compared: the names of both sides."""

    new: str
    baseline: str
    found: Comparison | Unpaired


def kinds(text: str) -> tuple[str, ...]:
    """From the words of an option. Raises ValueError for none, an unknown one, or one twice."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found or len(set(found)) < len(found) or set(found) - set(PASSES):
        raise ValueError(f"--passes: got {text!r}, expected cold, warm or cold,warm")
    return found


def passes(party: Party, task: Task, folder: Path, kinds: Sequence[str], listener: Listener) -> dict[str, Run]:
    """Answer the task once for each kind of pass; what the folder has of them is taken from there.

    A warm pass meets whatever the pass before it left in the caches. Where that pass was not made in this life, all prompts are
    computed once before it, so that an interruption changes nothing.

    Raises ValueError where the folder holds a run of something else.
    """
    answering: Answerer | None = None
    used = False
    runs: dict[str, Run] = {}
    for kind in kinds:
        words = f"{party.label}, {kind}"
        info = replace(party.info, cache=kind, questions=len(task.asked))
        with Writer(party.file(folder, kind), info) as writer:
            missing = len(writer.missing)
            listener(words, len(writer.done), len(task.asked))
            if missing and answering is None:
                answering = party.make()
            if missing and kind == "warm" and not used:
                assert answering is not None
                _use(answering, task, lambda done, total: listener(f"{party.label}, before the warm pass", done, total))
            runs[kind] = answer_all(
                task.asked,
                answering if answering is not None else _nobody,
                writer,
                listener=lambda done, total, words=words: listener(words, done, total),  # type: ignore[misc]
            )
            used = used or missing == len(task.asked)
    return runs


def _nobody(prompts: Iterable[Prompt]) -> Iterator[tuple[int, Answer]]:
    return iter(())


def _use(answering: Answerer, task: Task, listener: Callable[[int, int], None]) -> None:
    prompts = [replace(prompt_of(asked), max_new_tokens=1) for asked in task.asked]
    for done, _ in enumerate(answering(prompts), 1):
        listener(done, len(prompts))


def judged(runs: dict[str, Run], label: str, baseline: Run | Published, name: str, rule: Rule) -> list[Judged]:
    """Each pass against a stored run, or against a published score.

    Raises ValueError where they did not answer the same questions.
    """
    found: list[Judged] = []
    for kind, run in runs.items():
        one: Comparison | Unpaired
        if isinstance(baseline, Published):
            one = against(baseline, run, rule.margin, rule.alpha, rule.metric)
        else:
            one = compare(baseline, run, rule)
        found.append(Judged(f"{label}, {kind}", name, one))
    return found


def overall(found: Sequence[Judged]) -> Verdict | None:
    """The worst verdict; None where nothing was compared."""
    said = {one.found.verdict for one in found}
    return next((verdict for verdict in ORDER if verdict in said), None)


def early(baseline: Run, task: Task) -> None:
    """What can be known of a baseline before anything is run.

    Raises ValueError that says how it differs from the task.
    """
    ours = {"task": task.name, "task_version": task.version, "questions": len(task.asked)}
    for name, value in ours.items():
        if (theirs := getattr(baseline.info, name)) != value:
            raise ValueError(f"--baseline: its {name} is {theirs!r}, asked for is {value!r}; make a new baseline")
    if not baseline.complete:
        raise ValueError(
            f"--baseline: {len(baseline.outcomes)} of {baseline.info.questions} questions are answered; let it go on"
        )
    for index, one in baseline.outcomes.items():
        if one.prompt_hash != hashed(task.asked[index].prompt):
            raise ValueError(f"--baseline: question {index} was asked with another prompt; make a new baseline")
