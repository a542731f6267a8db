"""Who computes what in which step, said by hand."""

from __future__ import annotations

from serving.engine import Engine, StepReport
from tests.serving.engines import engine, request


def rows(report: StepReport) -> list[tuple[str, str, int, int]]:
    return [(r.request, "context" if r.is_context else "decode", r.new, r.cached) for r in report.rows]


def steps(served: Engine) -> list[list[tuple[str, str, int, int]]]:
    found = []
    while served.unfinished:
        found.append(rows(served.step()))
    return found


def test_a_long_prompt_is_computed_in_pieces_beside_decodes() -> None:
    served = engine(max_tokens=6)
    served.submit(request("a", 2, new=3))
    served.submit(request("b", 9, new=1))
    assert steps(served) == [
        [("a", "context", 2, 0), ("b", "context", 4, 0)],
        # Contexts stand first, but the decode's token is reserved before theirs.
        [("b", "context", 5, 4), ("a", "decode", 1, 2)],
        [("a", "decode", 1, 3)],
    ]


def test_one_token_of_a_prompt_is_a_context() -> None:
    served = engine(max_tokens=4)
    served.submit(request("a", 1))
    served.submit(request("b", 4, new=1))
    assert steps(served) == [
        [("a", "context", 1, 0), ("b", "context", 3, 0)],
        [("b", "context", 1, 3), ("a", "decode", 1, 1)],
    ]


def test_requests_wait_for_a_slot_in_their_order() -> None:
    served = engine(slots=1)
    for name in ("a", "b"):
        served.submit(request(name, 2, new=1))
    first = served.step()
    assert rows(first) == [("a", "context", 2, 0)]
    second = served.step()
    assert rows(second) == [("b", "context", 2, 0)]
    assert second.rows[0].slot == first.rows[0].slot


def test_who_came_last_gives_way_and_computes_everything_anew() -> None:
    served = engine(pages=3, max_tokens=8, max_length=12)
    served.submit(request("a", 4, new=6))
    served.submit(request("b", 4, new=3))
    assert rows(served.step()) == [("a", "context", 4, 0), ("b", "context", 4, 0)]
    # Each needs a page more, and there is one: b's goes to nobody, since b waits until there are two.
    second = served.step()
    assert (rows(second), second.preempted) == ([("a", "decode", 1, 4)], ("b",))
    answered = len(served.requests["b"].outputs)
    assert answered == 1
    rest = steps(served)
    assert rest[-2:] == [[("b", "context", 5, 0)], [("b", "decode", 1, 5)]]


def test_a_context_is_cut_where_a_snapshot_stands() -> None:
    served = engine(snapshot_interval=4, max_tokens=16)
    served.submit(request("a", 10, new=1))
    assert steps(served) == [[("a", "context", 8, 0)], [("a", "context", 2, 8)]]
    served.submit(request("a2", 10, new=1))
    assert steps(served) == [[("a2", "context", 2, 8)]]


def test_a_prompt_of_whole_blocks_can_be_found_again() -> None:
    served = engine(snapshot_interval=4)
    served.submit(request("a", 8, new=1))
    assert steps(served) == [[("a", "context", 4, 0)], [("a", "context", 4, 4)]]
    served.submit(request("a2", 8, new=1))
    assert steps(served) == [[("a2", "context", 4, 4)]]


def test_without_cuts_a_piece_ends_where_the_budget_does() -> None:
    served = engine(snapshot_interval=4, cut_at_snapshots=False)
    served.submit(request("a", 10, new=1))
    assert steps(served) == [[("a", "context", 10, 0)]]
    served.submit(request("a2", 10, new=1))
    assert steps(served) == [[("a2", "context", 10, 0)]]


def test_the_last_slot_goes_to_a_request_even_if_its_own_prefix_has_it() -> None:
    served = engine(slots=1, snapshot_interval=4)
    served.submit(request("a", 9, new=1))
    assert len(steps(served)) == 2
    assert served.ownership().slot_of.keys() == set()
    served = engine(slots=2, snapshot_interval=4)
    served.submit(request("a", 9, new=1))
    assert len(steps(served)) == 2
    assert len(served.ownership().slot_of) == 1
    for name in ("b", "a2"):
        served.submit(request(name, 9, new=1))
    steps(served)
    assert served.unfinished == []


def test_a_smaller_budget_holds_from_the_next_step() -> None:
    served = engine()
    served.submit(request("a", 6, new=1))
    served.set_token_budget(4)
    assert steps(served) == [[("a", "context", 4, 0)], [("a", "context", 2, 4)]]
