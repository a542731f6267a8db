"""Imported once by the server that trials are forked from: what a trial would otherwise spend seconds on importing.

No CUDA call may happen here: a forked process cannot use a context that its parent made.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import interpreter, operators
from harness.faults import trial
from harness.isolation import suite
from harness.subjects import registered

__all__ = ["trial"]

torch.set_num_threads(1)
interpreter.repair()
# What the interpreter may be trusted with is asked by every trial; without the interpreter this does nothing.
interpreter.probe()
for _name in operators.OPERATORS:
    suite(_name)
    for _subject in registered(_name):
        _subject.load()


@settings(max_examples=1, database=None, deadline=None)
@given(st.lists(st.integers(0, 3)))
def _first_draw(_: list[int]) -> None:
    """Hypothesis imports most of itself at its first draw."""


_first_draw()
