"""Questions to whoever answers, each answer stored as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from accuracy.answering import Answer, Prompt
from accuracy.outcome import Run, Writer, hashed, outcome
from accuracy.tasks import Asked

#: Told how many are done, and of how many.
Listener = Callable[[int, int], None]
#: The engine, a server, a library: answers, each with its prompt's place, in the order in which they are done.
Answerer = Callable[[Iterable[Prompt]], Iterator[tuple[int, Answer]]]


def answer_all(
    questions: Sequence[Asked], answering: Answerer, writer: Writer, *, listener: Listener | None = None
) -> Run:
    """Answer what the writer does not have yet, and return the whole run.

    Args:
        listener: told after each answer.

    Raises:
        ValueError: the writer's run has another number of questions, or was asked others.
    """
    if len(questions) != writer.info.questions:
        raise ValueError(f"questions: got {len(questions)}, expected the {writer.info.questions} of {writer.path}")
    for index, done in writer.done.items():
        asked = questions[index]
        if (done.prompt_hash, done.target_hash) != (hashed(asked.prompt), hashed(asked.target)):
            raise ValueError(
                f"questions: number {index} is not the one that {writer.path} has an answer to; name another file"
            )
    missing = writer.missing
    for place, answer in answering(prompt_of(questions[index]) for index in missing):
        index = missing[place]
        one = questions[index]
        writer.add(
            outcome(index, one.prompt, one.target, answer.text, truncated=answer.truncated, tokens=answer.tokens)
        )
        if listener is not None:
            listener(len(writer.done), len(questions))
    return writer.run


def prompt_of(asked: Asked) -> Prompt:
    return Prompt(asked.prompt, asked.until, asked.most_tokens)
