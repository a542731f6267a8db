"""The miniature's tokenizer, its rows, its schedule; and a few steps of training whose checkpoint both sides read alike."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from accuracy.answering import Answering, Prompt, Tokenizer, settings_for
from accuracy.miniature import quick
from accuracy.miniature import tokenizer as words
from accuracy.miniature.quick import MODULE, OPERATORS, torch_only
from accuracy.miniature.rows import IGNORED, Rows, spoken
from accuracy.miniature.train import (
    Point,
    answered,
    configuration,
    draw,
    factor,
    loss_of,
    measured,
    pace,
    questions,
    save,
    train,
)
from accuracy.problems.generator import held_out
from serving import presets
from serving.truth import passes

transformers = pytest.importorskip("transformers", reason="transformers (a development dependency) is not installed")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return words.trained(sample=600, vocabulary=500)


@pytest.fixture
def small(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A miniature's miniature, on torch alone; afterwards transformers is as it was."""
    module = importlib.import_module(MODULE)
    for name in OPERATORS:
        monkeypatch.setattr(module, name, getattr(module, name))
    torch_only()
    torch.manual_seed(3)
    config = configuration(tokenizer.get_vocab_size(), tokenizer.token_to_id(words.END), layers=4, hidden=32)
    return transformers.Qwen3_5MoeForCausalLM._from_config(config, experts_implementation="eager")


def test_tokenizer_is_the_same_every_time_and_splits_digits(tokenizer: Any) -> None:
    assert words.trained(sample=600, vocabulary=500).to_str() == tokenizer.to_str()
    text = "So 1234 + 5 = 1239, isn't it?\n#### 1239\n\n é"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert not [t for t in tokenizer.get_vocab() if len(re.findall("[0-9]", t)) and len(t) > 1]


def test_rows_teach_the_answers(tokenizer: Any) -> None:
    end = tokenizer.token_to_id(words.END)
    rows = list(islice(Rows(tokenizer, 2000, 0, annotations=False), 3))
    for tokens, labels in rows:
        assert tokens.shape == labels.shape == (2000,)
        assert bool(((labels == tokens) | (labels == IGNORED)).all())
        assert tokenizer.decode(tokens.tolist()).startswith("Question: ")
        assert end in tokens.tolist()
    tokens, labels = (part.tolist() for part in rows[0])
    last = len(tokens) - tokens[::-1].index(end)
    text = tokenizer.decode(tokens[:last], skip_special_tokens=False)
    taught = tokenizer.decode([label for label in labels[:last] if label != IGNORED], skip_special_tokens=False)
    documents = [document.split("Question: ")[1:] for document in text.split(words.END)[:-1]]
    assert max(map(len, documents)) > 1
    # Only the questions after the first are foretold: their opening words.
    expected = "".join(
        "Question:".join(part.split("Answer:")[1] for part in document) + words.END for document in documents
    )
    assert taught == expected
    again = next(iter(Rows(tokenizer, 2000, 0, annotations=False)))
    assert torch.equal(again[0], rows[0][0])
    assert not torch.equal(next(iter(Rows(tokenizer, 2000, 1, annotations=False)))[0], rows[0][0])


def test_schedule_ends_by_steps_or_by_time() -> None:
    assert pace(50, 100, 1.0, 10.0) == 0.5
    assert pace(50, 100, 8.0, 10.0) == 0.8
    assert pace(101, 100, 0.0, 10.0) == 1.0
    assert factor(0.0) < 0.05
    assert factor(0.03) == pytest.approx(1.0)
    assert factor(1.0) == pytest.approx(0.02)
    falling = [factor(done / 100) for done in range(3, 101)]
    assert falling == sorted(falling, reverse=True)


def test_padding_and_questions_do_not_count(small: Any, tokenizer: Any) -> None:
    """The held-out loss of a batch is that of its answers alone, each computed by itself."""
    batches = questions(tokenizer, 3, False, CPU)
    loss, exact = measured(small, batches)
    assert exact == 0.0
    total, count = 0.0, 0
    for problem in held_out(3, annotations=False):
        question, answer = spoken(tokenizer, problem)
        with torch.no_grad():
            logits = small(input_ids=torch.tensor([[*question, *answer]]), use_cache=False).logits[0].log_softmax(-1)
        total -= sum(float(logits[len(question) - 1 + i, token]) for i, token in enumerate(answer))
        count += len(answer)
    assert loss == pytest.approx(total / count, rel=1e-4)


def test_exact_is_every_token(tokenizer: Any) -> None:
    """A model that knows the answers by heart is exact; with one token wrong in one answer, all but that one are."""

    class Parrot(torch.nn.Module):
        wrong: tuple[int, int] | None = None

        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            following = torch.cat([input_ids[:, 1:], input_ids[:, :1]], 1)
            if self.wrong:
                following[self.wrong] += 1
            logits = torch.nn.functional.one_hot(following, 600).float() * 99
            return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    parrot, batches = Parrot(), questions(tokenizer, 4, False, CPU)
    assert measured(parrot, batches)[1] == 1.0
    told = (batches[0][1][2] != IGNORED).nonzero().flatten().tolist()
    parrot.wrong = (2, told[-1] - 1)
    assert measured(parrot, batches)[1] == 0.75
    parrot.wrong = (2, told[0] - 2)
    assert measured(parrot, batches)[1] == 1.0


def test_balance_is_part_of_what_is_minimised(small: Any, tokenizer: Any) -> None:
    tokens, labels = questions(tokenizer, 2, False, CPU)[0]
    plain, whole = loss_of(small, tokens, labels, 0.5)
    # Two of eight experts a token, evenly used: the auxiliary loss is then 2.
    assert float((whole - plain).detach()) == pytest.approx(0.5 * 2, rel=0.3)
    assert loss_of(small, tokens, labels, 0.0)[1] == loss_of(small, tokens, labels, 0.0)[0]


def test_a_few_steps_learn_and_both_sides_read_the_checkpoint(small: Any, tokenizer: Any, tmp_path: Path) -> None:
    def rows() -> Iterator[list[Tensor]]:
        endless = iter(Rows(tokenizer, 64, 0, annotations=False))
        while True:
            yield [torch.stack(part) for part in zip(*islice(endless, 4), strict=True)]

    asked = questions(tokenizer, 4, False, CPU)
    before, _ = measured(small, asked)
    points = list(train(small, rows(), asked, steps=30, seconds=600.0, rate=1e-2, every=0.0))
    assert [point.step for point in points] == [20, 30]
    assert not [point for point in points if math.isnan(point.exact)]
    assert points[-1].held_out_loss < before - 1
    draw(points, tmp_path / "train.svg")
    assert b"held out" in (tmp_path / "train.svg").read_bytes()

    folder = tmp_path / "checkpoint"
    save(small, tokenizer, folder)
    theirs = transformers.Qwen3_5MoeForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager"
    )
    ours = presets.model(str(folder), "oracle", dtype=torch.float32, device=CPU, seed=0)
    text = Tokenizer(folder / "tokenizer.json")
    tokens = text.encode(words.text("What is 1 + 1?"))
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    (got,) = passes(ours, [tokens])
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4
    answers = dict(Answering(ours, text, settings_for(ours, 64, 2))([Prompt(words.text("What?"), max_new_tokens=3)]))
    assert answers[0].tokens == 3
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert loaded("What is 12?")["input_ids"] == text.encode("What is 12?")
    assert loaded.eos_token == words.END


def test_too_large_a_checkpoint_is_refused(
    small: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuracy.miniature.train.LARGEST", 1 << 20)
    with pytest.raises(ValueError, match="expected at most 1"):
        save(small, tokenizer, tmp_path)


def test_default_size_fits() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        one = transformers.Qwen3_5MoeForCausalLM(configuration(words.VOCABULARY, 0))
    count = sum(p.numel() for p in one.parameters())
    assert 5e6 <= count <= 15e6
    assert 2 * count < 32 * 2**20


def test_a_loss_that_is_not_finite_ends_the_run(small: Any, tokenizer: Any) -> None:
    asked = questions(tokenizer, 1, False, CPU)
    with torch.no_grad():
        small.lm_head.weight.fill_(math.nan)
    row = next(iter(Rows(tokenizer, 64, 0, annotations=False)))
    endless = iter(lambda: [part[None] for part in row], None)
    with pytest.raises(RuntimeError, match="the loss is nan at step 1; lower the rate"):
        list(train(small, endless, asked, steps=1, seconds=60.0, rate=1e-3))


def test_points_without_measures_are_drawn_as_such(tmp_path: Path) -> None:
    draw([Point(20, 1.0, 0.1, 2.0)], tmp_path / "a.svg")
    draw([Point(20, 1.0, 0.1, 2.0)], tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_quick_functions_are_the_same_functions(small: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient, with transformers' own code and with what training puts in its place."""
    module = importlib.import_module(MODULE)
    tokens, labels = questions(tokenizer, 3, False, CPU)[0]

    def found() -> tuple[Tensor, dict[str, Tensor]]:
        small.zero_grad()
        _, whole = loss_of(small, tokens, labels, 0.1)
        whole.backward()
        return whole.detach(), {name: p.grad.clone() for name, p in small.named_parameters() if p.grad is not None}

    with torch.no_grad():
        for name, p in small.named_parameters():
            if p.ndim > 1:
                p.mul_(10 if "gate.weight" in name else 3)
    loss, gradients = found()
    monkeypatch.setattr(module.Qwen3_5MoeExperts, "forward", module.Qwen3_5MoeExperts.forward)
    quick.installed()
    quick_loss, quick_gradients = found()
    assert float(quick_loss) == pytest.approx(float(loss), rel=1e-5)
    assert gradients.keys() == quick_gradients.keys()
    for name, gradient in gradients.items():
        assert float((gradient - quick_gradients[name]).norm() / gradient.norm().clamp_min(1e-6)) < 1e-3, name


def test_greedy_is_what_the_engine_answers(small: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Whole passes without a cache, ragged questions, and an answer that ends."""
    with torch.no_grad():
        small.lm_head.weight.mul_(20)
    small.float()
    asked = [tokenizer.encode(words.text(text)).ids for text in ("What?", "How many apples are 3 apples?", "Why 12?")]
    whole = quick.greedy(small, asked, {-1}, longest=12)
    assert [len(one) for one in whole] == [12, 12, 12]
    stop = whole[1][5]
    cut = quick.greedy(small, asked, {stop}, longest=12, batch=2)
    assert cut == [one[: one.index(stop)] if stop in one else one for one in whole]
    save(small, tokenizer, tmp_path)
    ours = presets.model(str(tmp_path), "oracle", dtype=torch.float32, device=CPU, seed=0)
    again = quick.greedy(small.float(), asked, {-1}, longest=12)
    histories = [[*question, *answer] for question, answer in zip(asked, again, strict=True)]
    for question, history, logits in zip(asked, histories, passes(ours, histories), strict=True):
        assert logits.argmax(-1).tolist()[len(question) - 1 : -1] == history[len(question) :]
    share, texts = answered(small, tokenizer, 3, False)
    assert share == 0.0
    assert len(texts) == 3


def test_states_remember_from_the_start(small: Any) -> None:
    quick.remembering(small, 0)
    steps = [F.softplus(p) for name, p in small.named_parameters() if name.endswith("dt_bias")]
    assert all(bool(((step > 0.9e-3) & (step < 0.11)).all()) for step in steps)
