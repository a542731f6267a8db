"""The engine behind lm-eval's API, and its GSM8K tasks on generated problems. No network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from accuracy.answering import Tokenizer
from accuracy.lm_eval_model import SluicegateLM
from accuracy.lm_eval_tasks import task
from accuracy.outcome import Writer, hashed, load
from accuracy.problems.generator import held_out, write
from serving.truth import one_pass
from tests.accuracy import models
from tests.accuracy.runs import info


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.checkpoint(tmp_path_factory.mktemp("checkpoint"))


def lm(folder: Path, **changes: Any) -> SluicegateLM:
    return SluicegateLM(str(folder), **{"kernels": "oracle", "max_length": 2048, "concurrency": 4, **changes})


def instance(kind: str, *arguments: Any, doc_id: int = 0) -> Any:
    return lm_eval.api.instance.Instance(
        kind, {"answer": f"#### {doc_id}"}, tuple(arguments), 0, metadata=("gsm8k", doc_id, 1)
    )


def test_is_registered_by_name(folder: Path) -> None:
    found = lm_eval.api.registry.get_model("sluicegate")
    made = found.create_from_arg_string(f"pretrained={folder},kernels=oracle,max_length=64", {"batch_size": 2})
    assert isinstance(made, SluicegateLM)
    assert made.answering.settings.max_batch_size == 2


def test_likelihood_is_the_models(folder: Path) -> None:
    one, text = lm(folder), Tokenizer(folder / "tokenizer.json")
    pairs = [("What is 1 + 1?", " 2"), ("", "abc"), ("Who?", " he"), ("x", "")]
    found = one.loglikelihood([instance("loglikelihood", *pair) for pair in pairs])
    for (context, continuation), (score, _) in zip(pairs, found, strict=True):
        tokens = text.encode(context) or [models.END]
        answer = text.encode(continuation)
        chances = torch.log_softmax(one_pass(one.model, (*tokens, *answer)).double(), -1)
        expected = sum(float(chances[len(tokens) - 1 + i, token]) for i, token in enumerate(answer))
        assert score == pytest.approx(expected, abs=1e-4)
    assert found[3] == (0.0, True)
    # A space at the end of a context belongs to what follows.
    assert one.loglikelihood([instance("loglikelihood", "Who? ", "he")]) == [pytest.approx(found[2])]


def test_greedy_answer_is_found_greedy(folder: Path) -> None:
    one = lm(folder)
    logits = one_pass(one.model, tuple(one.tok_encode("What?")))
    best = int(logits[-1].argmax())
    other = (best + 1) % 256
    after = int(one_pass(one.model, (*one.tok_encode("What?"), other))[-1].argmax())
    scored = one._loglikelihood_tokens(
        [(("", ""), one.tok_encode("What?"), answer) for answer in ([best], [other], [other, after])]
    )
    assert [greedy for _, greedy in scored] == [True, False, False]


def test_rolling_likelihood_covers_every_token_once(folder: Path) -> None:
    one = lm(folder, max_length=24)
    (whole,) = one.loglikelihood_rolling([instance("loglikelihood_rolling", "abcdefgh")])
    (expected, _) = one.loglikelihood([instance("loglikelihood", "", "abcdefgh")])[0]
    assert whole == pytest.approx(expected, abs=1e-4)
    text = "abcdefghijklmnop" * 3
    (longer,) = one.loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    parts = one.loglikelihood([instance("loglikelihood", *pair) for pair in (("", text[:24]), (text[23], text[24:]))])
    assert longer == pytest.approx(sum(score for score, _ in parts), abs=1e-3)


def test_options_are_understood_or_refused(folder: Path) -> None:
    one = lm(folder)
    plain = one._prompt("q", {"until": ["Question:"], "do_sample": False, "temperature": 0.0})
    assert (plain.until, plain.max_new_tokens, plain.sampling.greedy) == (("Question:",), 256, True)
    drawn = one._prompt("q", {"until": "\n", "max_gen_toks": 7, "temperature": 0.5, "top_p": 0.9})
    assert (drawn.until, drawn.max_new_tokens) == (("\n",), 7)
    assert (drawn.sampling.temperature, drawn.sampling.top_p) == (0.5, 0.9)
    with pytest.raises(ValueError, match="got num_beams, which the engine does not have"):
        one._prompt("q", {"num_beams": 4})


def test_recorded_answers_are_not_asked_again(folder: Path, tmp_path: Path) -> None:
    one, path = lm(folder), tmp_path / "run.jsonl"
    options = {"until": [], "max_gen_toks": 4}
    asked = [instance("generate_until", f"Question {n}?", options, doc_id=n) for n in range(5)]
    whole = one.generate_until(asked)
    with Writer(path, info(5)) as one.writer:
        assert one.generate_until(asked[:3]) == whole[:3]
    with Writer(path, info(5)) as one.writer:
        before = one.answering._asked
        assert one.generate_until(asked) == whole
        assert one.answering._asked == before + 2
        with pytest.raises(ValueError, match="question 1 was asked with another prompt"):
            one.generate_until([instance("generate_until", "other", options, doc_id=1)])
    stored = load(path)
    assert stored.complete
    assert [o.answer for o in stored.outcomes.values()] == whole
    assert all(o.truncated == (o.tokens == 4) for o in stored.outcomes.values())


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "problems", 20)
    return tmp_path / "problems"


@pytest.mark.filterwarnings("default")
def test_official_task_end_to_end(folder: Path, problems: Path, tmp_path: Path) -> None:
    """The untrained model gets nothing right; that its prompts are the task's and its answers are recorded is what counts."""
    one, path = lm(folder, prefixes=False), tmp_path / "run.jsonl"
    with Writer(path, info(3, task="gsm8k")) as one.writer:
        results = lm_eval.simple_evaluate(
            model=one,
            tasks=[task("gsm8k", problems)],
            num_fewshot=1,
            limit=3,
            gen_kwargs={"max_gen_toks": 6},
            bootstrap_iters=0,
        )
    stored = load(path)
    samples = [s for s in results["samples"]["gsm8k"] if s["filter"] == "strict-match"]
    assert [s["resps"][0][0] for s in samples] == [o.answer for o in stored.outcomes.values()]
    assert results["results"]["gsm8k"]["exact_match,strict-match"] == stored.accuracy()
    asked = [_prompt(sample) for sample in samples]
    assert [hashed(prompt) for prompt in asked] == [o.prompt_hash for o in stored.outcomes.values()]
    assert asked[0].endswith(f"Question: {held_out(1)[0].question}\nAnswer:")
    assert asked[0].count("Question: ") == 2
    assert samples[0]["doc"] == json.loads(held_out(1)[0].line())
    assert results["configs"]["gsm8k"]["metadata"]["version"] == 3.0


def _prompt(sample: Any) -> str:
    return sample["arguments"][0][0]


def test_tasks_are_named(problems: Path, tmp_path: Path) -> None:
    assert task("gsm8k_cot") == "gsm8k_cot"
    found = task("gsm8k_platinum", problems)
    assert isinstance(found, dict)
    assert set(found["dataset_kwargs"]["data_files"]) == {"test"}
    with pytest.raises(ValueError, match="expected one of gsm8k, gsm8k_cot"):
        task("arc")
    with pytest.raises(ValueError, match=r"has no test\.jsonl and no train\.jsonl"):
        task("gsm8k", tmp_path / "nothing")


def test_tasks_are_asked_as_lm_eval_asks_them(problems: Path) -> None:
    """Prompts, targets and stops are those of `simple_evaluate`, examples included."""
    from accuracy import tasks

    found = tasks.load("gsm8k", limit=3, gsm8k=problems)
    assert (found.name, found.version, len(found.asked)) == ("gsm8k", "3.0", 3)
    one = found.asked[0]
    assert one.prompt.count("Question: ") == 6
    assert one.prompt.endswith(f"Question: {held_out(1)[0].question}\nAnswer:")
    assert one.target == held_out(1)[0].solution
    assert "Question:" in one.until
    assert one.most_tokens == 256


def test_a_model_of_lm_eval_answers_like_the_engine(folder: Path) -> None:
    """Our own, through lm-eval's door, is as good a library as any."""
    from accuracy.answerers import Library
    from accuracy.answering import Prompt

    prompts = [Prompt(f"Question {n}?", ("a",), 5) for n in range(5)]
    library = Library("sluicegate", f"pretrained={folder},kernels=oracle,max_length=64", batch=1)
    direct = dict(lm(folder).answering(prompts))
    assert {place: answer.text for place, answer in library(prompts)} == {n: one.text for n, one in direct.items()}
    with pytest.raises(ValueError, match="--lm-eval-model nobody"):
        Library("nobody", "")
