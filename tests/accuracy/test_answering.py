"""Text through the engine: the greedy answers of the model alone, ended where they should be, at any concurrency."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accuracy.answering import Answering, Prompt, Tokenizer, cut_at, settings_for
from serving.truth import one_pass
from tests.accuracy import models

TEXTS = ["Question: 1 + 1?", "Question: who is there, and why?", "é", "Question: 1 + 2?", "a much longer question " * 3]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(models.tokenizer(tmp_path_factory.mktemp("tokenizer")))


def answering(tokenizer: Tokenizer, concurrency: int = 3, **changes: object) -> Answering:
    one = models.model()
    return Answering(one, tokenizer, settings_for(one, 128, concurrency, **changes))  # type: ignore[arg-type]


def alone(tokenizer: Tokenizer, text: str, new: int) -> list[int]:
    """Token by token, the whole text again for each."""
    one, tokens = models.model(), tokenizer.encode(text)
    answer: list[int] = []
    for _ in range(new):
        answer.append(int(one_pass(one, (*tokens, *answer))[-1].argmax()))
        if answer[-1] in one.config.eos_token_ids:
            return answer[:-1]
    return answer


def test_tokenizer_is_faithful(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("é")) == 2
    assert tokenizer.decode([*tokenizer.encode("end"), models.END]) == "end"


@pytest.mark.parametrize("prefixes", [True, False])
def test_answers_are_the_models_own(tokenizer: Tokenizer, prefixes: bool) -> None:
    expected = [tokenizer.decode(alone(tokenizer, text, 5)) for text in TEXTS]
    asked = answering(tokenizer, prefixes=prefixes)
    prompts = [Prompt(text, max_new_tokens=5) for text in TEXTS]
    for _ in ("cold", "warm"):
        found = dict(asked(prompts))
        assert [found[index].text for index in range(len(TEXTS))] == expected
        assert all(answer.truncated == (answer.tokens == 5) for answer in found.values())
    assert asked.engine.requests == {}


def test_answer_ends_at_the_first_stop_text(tokenizer: Tokenizer) -> None:
    whole = alone(tokenizer, TEXTS[0], 12)
    text = tokenizer.decode(whole)
    third = text[3:5]
    ended = dict(answering(tokenizer)([Prompt(TEXTS[0], (third, text[6:]), 12)]))[0]
    assert ended.text == text[: text.find(third)]
    assert not ended.truncated
    assert ended.tokens < len(whole)


def test_stop_text_in_the_last_token_is_no_truncation(tokenizer: Tokenizer) -> None:
    text = tokenizer.decode(alone(tokenizer, TEXTS[1], 4))
    ended = dict(answering(tokenizer)([Prompt(TEXTS[1], (text,), 4)]))[0]
    assert (ended.text, ended.tokens, ended.truncated) == ("", 4, False)


def test_listener_that_leaves_leaves_nothing_behind(tokenizer: Tokenizer) -> None:
    asked = answering(tokenizer)
    answers = asked([Prompt(text, max_new_tokens=3) for text in TEXTS])
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert asked.engine.requests == {}
    asked.engine.require_balanced()


def test_prompt_without_room_is_named(tokenizer: Tokenizer) -> None:
    asked = answering(tokenizer)
    with pytest.raises(ValueError, match="may grow to"):
        list(asked([Prompt("short", max_new_tokens=2), Prompt("x" * 200)]))
    assert asked.engine.requests == {}


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_cut_at() -> None:
    assert cut_at("one two three", ["three", "two"]) == ("one ", True)
    assert cut_at("one", ["", "two"]) == ("one", False)


def test_faulty_kernel_changes_answers_or_logits(tokenizer: Tokenizer) -> None:
    """The engine computes with the kernels of the model it is given."""
    seen = []

    def spied(*tokens: torch.Tensor, **others: object) -> object:
        seen.append(len(tokens[0]))
        return models.rounded(*tokens, **others)

    one = models.model(gdn_prefill=spied)
    list(Answering(one, tokenizer, settings_for(one, 64, 2))([Prompt("abc", max_new_tokens=1)]))
    assert seen == [3, 3]
