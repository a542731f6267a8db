"""The engine as its user sees it."""

from __future__ import annotations

import pytest
import torch

from serving import toy
from serving.engine import Engine
from serving.request import Request, Sampling, Status
from serving.settings import EngineSettings
from tests.serving.engines import TOY, engine, request, settings


def alone(asked: Request) -> list[int]:
    """The greedy answer, worked out token by token from the toy itself."""
    tokens = list(asked.prompt)
    for _ in range(asked.max_new_tokens):
        token = int(toy.alone(tokens)[-1].argmax())
        if token in asked.stop_tokens:
            break
        tokens.append(token)
    return tokens[len(asked.prompt) :]


@pytest.mark.parametrize("graphs", ["off", "emulated"])
def test_a_batch_answers_as_each_alone(graphs: str) -> None:
    asked = [request(name, length, new=4) for name, length in (("a", 1), ("b", 9), ("c", 17), ("d", 4), ("e", 3))]
    served = engine(graph_sizes=(1, 2, 4), graphs=graphs, snapshot_interval=4)
    assert served.run(asked) == {one.id: alone(one) for one in asked}
    assert {served.requests[one.id].reason for one in asked} == {"length"}
    assert (served.graphs.replays > 0) == (graphs == "emulated")


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it() -> None:
    free = request("a", 5, new=6)
    answer = alone(free)
    for place, token in enumerate(answer):
        stopped = request("a", 5, new=6, stop_tokens=frozenset({token}))
        served = engine()
        assert served.run([stopped]) == {"a": answer[: answer.index(token)]}, place
        assert served.requests["a"].reason == "stop"
        # The row that the stop token was chosen from is recorded too.
        assert len(served.requests["a"].logits) == answer.index(token) + 1


def test_drawn_answers_do_not_depend_on_the_batch() -> None:
    asked = [
        request(name, 3 + place, new=5, sampling=Sampling(temperature=1.0, seed=place))
        for place, name in enumerate("abcd")
    ]
    together = engine().run(asked)
    assert together == {one.id: engine().run([one])[one.id] for one in asked}
    assert together == engine(slots=2, max_tokens=3).run(asked[::-1])


def test_logits_are_those_of_the_model() -> None:
    served = engine()
    served.run([request("a", 5, new=3)])
    tracked = served.requests["a"]
    assert torch.equal(torch.stack(tracked.logits), toy.alone(tracked.tokens)[4:7])


def test_abort_ends_a_request_wherever_it_is() -> None:
    served = engine(slots=1)
    for name in ("a", "b"):
        served.submit(request(name, 4, new=8))
    served.step()
    assert served.abort("b")
    assert served.abort("a")
    assert not served.abort("a")
    assert (served.unfinished, served.step().rows) == ([], ())
    assert [served.requests[name].reason for name in ("a", "b")] == ["aborted", "aborted"]
    accounts = served.ownership()
    assert (len(accounts.free_slots), len(accounts.free_pages)) == (1, 16)


def test_a_preempted_request_keeps_its_answer_and_goes_on() -> None:
    served = engine()
    asked = request("a", 5, new=6)
    served.submit(asked)
    served.step()
    served.step()
    so_far = list(served.requests["a"].outputs)
    assert served.preempt("a")
    assert not served.preempt("a")
    assert served.requests["a"].status is Status.PREEMPTED
    assert served.requests["a"].outputs == so_far
    assert served.run() == {"a": alone(asked)}


def test_a_report_says_what_the_step_was() -> None:
    served = engine(graph_sizes=(2, 4))
    for name in ("a", "b", "c"):
        served.submit(request(name, 2, new=2))
    first, second = served.step(), served.step()
    assert first.arguments == {
        "seq_lens": [2, 2, 2],
        "num_contexts": 3,
        "num_cached_tokens": [0, 0, 0],
        "state_slots": [0, 1, 2],
    }
    assert (first.padding, second.padding, first.replayed) == (0, 1, False)
    assert second.arguments["state_slots"] == [0, 1, 2, -1]
    assert second.metadata.state_indices.tolist() == [0, 1, 2, -1]
    assert second.finished == (("a", "length"), ("b", "length"), ("c", "length"))
    assert list(second.seconds) == ["plan", "build", "forward", "choose", "account"]


def test_a_finished_request_can_be_forgotten() -> None:
    served = engine()
    served.run([request("a", 2)])
    served.forget("a")
    assert served.requests == {}
    with pytest.raises(ValueError, match="id: got 'a', which is no request"):
        served.forget("a")


def test_no_progress_is_an_error_and_not_a_hang() -> None:
    served = engine()
    served.submit(request("a", 2))
    served._scheduler.waiting.clear()
    with pytest.raises(RuntimeError, match="no progress: a wait"):
        served.run()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"slots": 0}, "slots: got 0"),
        ({"graphs": "always"}, "graphs: got 'always'"),
        ({"graphs": "emulated"}, "graph_sizes: got none"),
        ({"graph_sizes": (2, 1)}, "graph_sizes: got"),
        ({"token_budget": 17}, "token_budget: got 17, expected 1 to 16"),
        ({"snapshot_interval": 6}, "snapshot_interval: got 6"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        engine(**change)


def test_padding_is_to_the_next_size_and_no_further_than_the_last() -> None:
    made = settings(graph_sizes=(2, 8), max_batch_size=12)
    assert [made.padded(rows) for rows in (1, 2, 3, 8, 9)] == [2, 2, 8, 8, 9]
    assert made.max_rows == 12
    assert isinstance(made, EngineSettings)
    assert Engine(TOY, made).token_budget == 16
