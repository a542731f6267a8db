"""Sets of questions by name: what is asked, what ends an answer, and what is right.

A task is text and nothing else, so an engine, a server and somebody else's library are asked exactly the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path

from harness.files import write_whole

#: What ends an answer where lm-eval's task does not say: that of its task `gsm8k`.
UNTIL = ("Question:", "<|endoftext|>")
NAMES = ("miniature", "gsm8k", "gsm8k_platinum", "gsm8k_cot")
FORMAT = 1


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        prompt: all that is said. target: the worked solution, ending in ``#### n``, or the number.
        until: texts that end the answer. most_tokens: of the answer.
    """

    prompt: str
    target: str
    until: tuple[str, ...] = UNTIL
    most_tokens: int = 256


@dataclass(frozen=True)
class Task:
    """Questions in their order. Raises ValueError where there are none."""

    name: str
    version: str
    asked: tuple[Asked, ...]

    def __post_init__(self) -> None:
        if not self.asked:
            raise ValueError(f"task: {self.name} has no questions, expected at least one")

    def first(self, limit: int | None) -> Task:
        """The same with no more than so many questions."""
        return self if limit is None else Task(self.name, self.version, self.asked[:limit])


def plain(question: str, solution: str) -> Asked:
    """lm-eval's task `gsm8k` without examples."""
    return Asked(f"Question: {question}\nAnswer:", solution)


def load(name: str, *, limit: int | None = None, gsm8k: Path | None = None) -> Task:
    """A task by its name, or from a file that `save` wrote.

    Args:
        limit: only the first so many questions.
        gsm8k: a folder with train.jsonl and test.jsonl in place of the hub's data.

    Raises:
        ValueError: no task or file of that name; lm-eval is not installed and the task is one of its own.
    """
    if name == "miniature":
        return miniature().first(limit)
    if name in NAMES:
        try:
            from accuracy import lm_eval_tasks
        except ImportError as error:
            raise ValueError(f"--task {name}: {error}; install the extra `accuracy`") from error
        return lm_eval_tasks.asked(name, gsm8k, limit)
    path = Path(name)
    if path.is_file():
        return read(path).first(limit)
    raise ValueError(f"--task: got {name!r}, expected one of {', '.join(NAMES)}, or a file of questions")


def miniature(shots: int = 0) -> Task:
    """The held-out problems of the project's own.

    Args:
        shots: worked problems before each question, as the miniature's rows of training had them. Each question has others, so
            no prefix cache spares a prompt's computation; none of them is held out.
    """
    from accuracy.problems.generator import generate, held_out

    examples = (plain(p.question, p.solution) for p in generate(0, "train", annotations=False))
    asked = []
    for problem in held_out(annotations=False):
        one = plain(problem.question, problem.solution)
        before = "".join(f"{shown.prompt} {shown.target}\n\n" for shown in islice(examples, shots))
        asked.append(replace(one, prompt=before + one.prompt))
    return Task("miniature", f"1, {shots} examples" if shots else "1", tuple(asked))


def read_gsm8k(path: Path, limit: int | None = None) -> list[Asked]:
    """Questions in GSM8K's format, the first `limit` of them, without examples.

    Raises ValueError that names the file and line which is not what it should be.
    """
    found: list[Asked] = []
    for number, line in _lines(path):
        if limit is None or len(found) < limit:
            try:
                record = json.loads(line)
                found.append(plain(record["question"], record["answer"]))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f'questions: {path}, line {number}: expected {{"question": ..., "answer": ...}} ({error!r})'
                ) from error
    if not found:
        raise ValueError(f"questions: {path} has none")
    return found


def save(task: Task, path: Path) -> None:
    """Write the questions as they are asked, so that a machine without lm-eval can ask them."""
    head = {"format": FORMAT, "task": task.name, "version": task.version}
    write_whole(path, "".join(json.dumps(record) + "\n" for record in [head, *(asdict(one) for one in task.asked)]))


def read(path: Path) -> Task:
    """What `save` wrote; a file of GSM8K's format is a task of that file's name, without examples.

    Raises ValueError that names the file and line which is not what it should be.
    """
    lines = _lines(path)
    if not lines:
        raise ValueError(f"questions: {path} is empty")
    try:
        head = json.loads(lines[0][1])
        if "question" in head:
            return Task(path.stem, "0", tuple(read_gsm8k(path)))
        if head["format"] != FORMAT:
            raise ValueError(f"questions: {path} is of format {head['format']}, expected {FORMAT}")
        return Task(str(head["task"]), str(head["version"]), tuple(_asked(path, *line) for line in lines[1:]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"questions: {path}, line 1: expected the head of a task ({error!r})") from error


def _asked(path: Path, number: int, line: str) -> Asked:
    try:
        record = json.loads(line)
        return Asked(**{**record, "until": tuple(record["until"])})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        expected = ", ".join(one.name for one in fields(Asked))
        raise ValueError(f"questions: {path}, line {number}: expected {expected} ({error!r})") from error


def _lines(path: Path) -> Sequence[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"questions: cannot read {path} ({error.strerror})") from error
    # Not splitlines: a question may hold other characters that end a line.
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line]
