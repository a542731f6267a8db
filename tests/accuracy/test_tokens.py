"""The teacher-forced check: exact on logits by hand, silent on the same model, and loud on a fault that flips little."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import references
from accuracy.answering import Answering, Prompt, Tokenizer, settings_for
from accuracy.tokens import QuestionCheck, TokenCheck, Told, check, compared, forced, packs, through_engine
from serving.truth import one_pass
from tests.accuracy import models

TOLD = [
    Told(tuple(range(40 + 3 * n, 60 + 5 * n)), tuple((17 * n + 7 * i) % 256 for i in range(6 + 4 * n)))
    for n in range(5)
]


def test_divergence_by_hand() -> None:
    old = torch.tensor([[0.0, math.log(3.0)], [2.0, 1.0], [0.0, 0.0]])
    new = torch.tensor([[0.0, 0.0], [1.0, 2.0], [5.0, 5.0]])
    found = compared(old, new)
    first = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    e = math.exp(1)
    second = e / (1 + e) - 1 / (1 + e)
    assert found.worst_kl == pytest.approx(second, rel=1e-6)
    assert found.mean_kl == pytest.approx((first + second) / 3, rel=1e-6)
    assert (found.tokens, found.agreed, found.first_divergence) == (3, 1, 0)


def test_nothing_finite_is_infinitely_far() -> None:
    new = torch.zeros(2, 3)
    new[1, 0] = torch.nan
    found = compared(torch.zeros(2, 3), new)
    assert (found.worst_kl, found.agreed, found.first_divergence) == (math.inf, 1, 1)


def test_sums_count_every_token_once() -> None:
    found = TokenCheck((QuestionCheck(3, 0.2, 0.5, 3, None), QuestionCheck(1, 0.6, 0.6, 0, 0)))
    assert (found.tokens, found.worst_kl, found.agreement, found.diverging) == (4, 0.6, 0.75, 1)
    assert found.mean_kl == pytest.approx(0.3)


def test_rows_are_those_that_choose_the_answer() -> None:
    one = models.model()
    for told, logits in zip(TOLD, forced(one, TOLD, most_tokens=90), strict=True):
        alone = one_pass(one, (*told.prompt, *told.answer))
        first = len(told.prompt) - 1
        assert logits.shape == (len(told.answer), 257)
        assert torch.allclose(logits, alone[first : first + len(told.answer)], atol=1e-5)


def test_the_same_model_is_the_same() -> None:
    found = check(models.model(), models.model(), TOLD, most_tokens=60)
    assert found.worst_kl < 1e-9
    assert (found.agreement, found.diverging, found.tokens) == (1.0, 0, sum(len(t.answer) for t in TOLD))


def test_planted_fault_shows_without_a_flip() -> None:
    """A decay that is a hundredth too strong: far above rounding, though few tokens change."""
    right = check(models.model(), models.model(gdn_prefill=models.rounded), TOLD)
    wrong = check(models.model(), models.model(gdn_prefill=models.forgetful), TOLD)
    assert wrong.mean_kl > 100 * right.mean_kl
    assert wrong.agreement >= 0.9


def test_another_model_diverges() -> None:
    found = check(models.model(), models.model(seed=1), TOLD)
    assert found.diverging == len(TOLD)
    assert found.agreement < 0.5
    assert all(q.first_divergence is not None and q.first_divergence < 5 for q in found.questions)


def test_packs() -> None:
    assert list(packs([5, 5, 5, 20, 1, 1], 10)) == [[0, 1], [2], [3], [4, 5]]
    assert list(packs([], 10)) == []


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="got no question"):
        check(models.model(), models.model(), [])
    with pytest.raises(ValueError, match="0 tokens of prompt"):
        Told((), (1,))
    with pytest.raises(ValueError, match="expected the same"):
        compared(torch.zeros(1, 2), torch.zeros(1, 3))


def test_an_engine_that_says_the_answers_has_the_logits_of_a_whole_pass(tmp_path: Path) -> None:
    """Prefill, decode and batches of different lengths; and the engine answers as before afterwards."""
    one = models.model()
    told = [Told((1, 2, 3 + n, 4), tuple(range(10 + n, 16 + 2 * n))) for n in range(5)]
    answering = Answering(one, Tokenizer(models.tokenizer(tmp_path)), settings_for(one, 64, 2))
    before = dict(answering([Prompt("What?", max_new_tokens=5)]))
    through = through_engine(answering, told)
    for got, expected in zip(through, forced(one, told), strict=True):
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) < 1e-4
    assert dict(answering([Prompt("What?", max_new_tokens=5)])) == before
    assert answering.engine.unfinished == []
    # A decode that forgets shows, where a whole pass through the prefill's kernel sees nothing of it.
    bad = models.model(gdn_decode=_forgetting)
    worse = through_engine(Answering(bad, answering.tokenizer, answering.settings), told)
    assert max(compared(old, new).worst_kl for old, new in zip(through, worse, strict=True)) > 1e-6
    assert check(one, bad, told).worst_kl == 0


def _forgetting(*tokens: Any, **others: Any) -> Any:
    return references.gdn_decode(*tokens, **{**others, "A_log": others["A_log"] + 1}, compute_dtype=torch.float64)
