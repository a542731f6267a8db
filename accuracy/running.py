"""A file of questions through the engine, each answer stored as it comes: the miniature's task, without lm-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accuracy.answering import Answering, Prompt
from accuracy.outcome import Run, Writer, hashed, outcome

#: What ends an answer, and what surrounds a question: lm-eval's task `gsm8k` without examples.
UNTIL = ("Question:", "<|endoftext|>")
TASK_VERSION = "1"
Listener = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    """A question and its worked solution."""

    question: str
    answer: str

    @property
    def prompt(self) -> str:
        return f"Question: {self.question}\nAnswer:"


def read(path: Path, limit: int | None = None) -> list[Question]:
    """Questions in GSM8K's format, the first `limit` of them.

    Raises ValueError that names the file and line which is not what it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ValueError(f"questions: cannot read {path} ({error.strerror})") from error
    found: list[Question] = []
    for number, line in enumerate(lines, 1):
        if line and (limit is None or len(found) < limit):
            try:
                record = json.loads(line)
                found.append(Question(record["question"], record["answer"]))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f'questions: {path}, line {number}: expected {{"question": ..., "answer": ...}} ({error!r})'
                ) from error
    if not found:
        raise ValueError(f"questions: {path} has none")
    return found


def answer_all(
    questions: Sequence[Question],
    answering: Answering,
    writer: Writer,
    *,
    most_tokens: int = 256,
    listener: Listener | None = None,
) -> Run:
    """Answer what the writer does not have yet, and return the whole run.

    Args:
        listener: told how many are done, of how many, after each answer.

    Raises:
        ValueError: the writer's run has another number of questions, or was asked others.
    """
    if len(questions) != writer.info.questions:
        raise ValueError(f"questions: got {len(questions)}, expected the {writer.info.questions} of {writer.path}")
    for index, done in writer.done.items():
        asked = questions[index]
        if (done.prompt_hash, done.target_hash) != (hashed(asked.prompt), hashed(asked.answer)):
            raise ValueError(
                f"questions: number {index} is not the one that {writer.path} has an answer to; name another file"
            )
    missing = writer.missing
    prompts = (Prompt(questions[index].prompt, UNTIL, most_tokens) for index in missing)
    for place, answer in answering(prompts):
        index = missing[place]
        one = questions[index]
        writer.add(
            outcome(index, one.prompt, one.answer, answer.text, truncated=answer.truncated, tokens=answer.tokens)
        )
        if listener is not None:
            listener(len(writer.done), len(questions))
    return writer.run
