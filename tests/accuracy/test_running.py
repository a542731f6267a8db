"""Questions through the engine into a file, and the same file after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from accuracy import tasks
from accuracy.answering import Answering, Tokenizer, settings_for
from accuracy.drawing import draw
from accuracy.gate import Rule, compare
from accuracy.outcome import Run, Writer, load
from accuracy.problems.generator import held_out
from accuracy.running import answer_all
from accuracy.tasks import plain, read_gsm8k
from accuracy.unpaired import against, published
from tests.accuracy import models
from tests.accuracy.runs import info, run

ASKED = [replace(plain(problem.question, problem.solution), most_tokens=6) for problem in held_out(8)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(models.tokenizer(tmp_path_factory.mktemp("tokenizer")))


def answering(tokenizer: Tokenizer, concurrency: int = 3) -> Answering:
    one = models.model()
    return Answering(one, tokenizer, settings_for(one, 512, concurrency))


def ran(path: Path, tokenizer: Tokenizer, concurrency: int = 3) -> Run:
    with Writer(path, info(len(ASKED))) as writer:
        return answer_all(ASKED, answering(tokenizer, concurrency), writer)


def test_examples_before_a_question_are_others_each_time_and_none_is_held_out() -> None:
    bare, shown = tasks.miniature(), tasks.miniature(2)
    assert bare.version != shown.version
    held = {one.prompt for one in bare.asked}
    seen: set[str] = set()
    for one, with_examples in zip(bare.asked, shown.asked, strict=True):
        *examples, last = with_examples.prompt.split("\n\n")
        assert (last, with_examples.target) == (one.prompt, one.target)
        assert len(examples) == 2
        for example in examples:
            question, solution = example.split("\nAnswer: ")
            assert f"{question}\nAnswer:" not in held
            assert solution.splitlines()[-1].startswith("#### ")
        assert not seen & set(examples)
        seen = set(examples)


def test_questions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(problem.line() + "\n" for problem in held_out(8)))
    asked = [replace(one, most_tokens=256) for one in ASKED]
    assert read_gsm8k(path) == asked
    assert read_gsm8k(path, 3) == asked[:3]
    path.write_text('{"question": "a"}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: expected .*KeyError"):
        read_gsm8k(path)
    path.write_text("")
    with pytest.raises(ValueError, match="has none"):
        read_gsm8k(path)
    with pytest.raises(ValueError, match="cannot read"):
        read_gsm8k(tmp_path / "none")


def test_interrupted_run_ends_as_an_uninterrupted_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = ran(tmp_path / "whole.jsonl", tokenizer)
    assert whole.complete
    told: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        told.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    path = tmp_path / "broken.jsonl"
    with pytest.raises(KeyboardInterrupt):
        with Writer(path, info(len(ASKED))) as writer:
            answer_all(ASKED, answering(tokenizer), writer, listener=interrupt)
    assert told == [(done, 8) for done in range(1, 5)]
    assert len(load(path).outcomes) == 4
    again = ran(path, tokenizer)
    assert again.outcomes == whole.outcomes == load(path).outcomes


def test_concurrency_changes_no_answer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    one, many = (ran(tmp_path / f"{n}.jsonl", tokenizer, n) for n in (1, 5))
    assert one.outcomes == many.outcomes


def test_other_questions_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    ran(path, tokenizer)
    with Writer(path, info(len(ASKED))) as writer:
        with pytest.raises(ValueError, match="number 0 is not the one"):
            answer_all(ASKED[::-1], answering(tokenizer), writer)
        with pytest.raises(ValueError, match=r"got 7, expected the 8 of .*run\.jsonl"):
            answer_all(ASKED[:7], answering(tokenizer), writer)


def test_interval_is_drawn(tmp_path: Path) -> None:
    found = compare(run([True] * 300), run([False] * 20 + [True] * 280))
    draw(found, Rule().margin, tmp_path / "paired.svg")
    draw(found, Rule().margin, tmp_path / "again.svg")
    assert (tmp_path / "paired.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    reference = published()["qwen3.5-35b-a3b-vllm-triton"]
    draw(against(reference, run([True] * 300, task="gsm8k")), 0.01, tmp_path / "unpaired.svg")
    assert (tmp_path / "unpaired.svg").stat().st_size > 1000
