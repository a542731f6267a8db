"""A request on its way: its tokens are its prompt's and its answer's."""

from __future__ import annotations

import itertools

import pytest

from serving.request import Request, Tracked


@pytest.mark.parametrize("answered", [0, 1, 4])
def test_between_is_a_slice_of_all_tokens(answered: int) -> None:
    tracked = Tracked(Request("a", (10, 11, 12), 9), 0, outputs=list(range(20, 20 + answered)))
    assert tracked.tokens == [10, 11, 12, *range(20, 20 + answered)]
    for start, end in itertools.combinations_with_replacement(range(10), 2):
        assert tracked.between(start, end) == tracked.tokens[start:end]
