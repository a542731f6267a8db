"""The engine, as the harness sees it: an operator whose cases are lives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.operators.base import Operator
from harness.plural import plural
from harness.strategies import CHOICES, SEEDS, Scale
from serving.engine_case import COUNTED, NAME, SUBMITTING, Action, EngineCase, Size
from serving.lives import lives, sizes


class EngineOperator(Operator):
    name = NAME
    summary = (
        "continuous batching: every step's metadata, every slot and page, every answer as if its request were alone"
    )
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    case_type = EngineCase
    # Most places that a mutation finds in an engine are settings, checks and what reports say, which tests/serving holds on to; its
    # faults are thought of by hand.
    mutated: ClassVar[bool] = False

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[EngineCase]:
        """Lives on the toy model: small engines, so that slots and pages run out."""
        return st.builds(
            EngineCase,
            operator=st.just(self.name),
            actions=lives(4, 14),
            size=sizes(),
            choice=CHOICES,
            seed=SEEDS,
        )

    def describe(self, case: EngineCase) -> str:
        return f"{_say_size(case)}; {'; '.join(_say(case))}"

    def coverage(self, case: EngineCase) -> dict[str, list[str | int]]:
        return {
            "prompt": list(case.lengths),
            "requests": [len(case.submissions)],
            "done": [action.what for action in case.actions],
            "prefix cache": ["on" if case.size.interval else "off"],
            "model": [case.model],
        }

    def smaller(self, case: EngineCase) -> Iterator[EngineCase]:
        """Fewer actions, the boldest first; then plainer ones; then a plainer engine."""
        count = len(case.actions)
        length = count // 2
        while length:
            for start in range(0, count, length):
                kept = (*case.actions[:start], *case.actions[start + length :])
                if kept:
                    yield case.with_(actions=kept)
            length //= 2
        for place, action in enumerate(case.actions):
            for plainer in _plainer(action):
                yield case.with_(actions=(*case.actions[:place], plainer, *case.actions[place + 1 :]))
        plain = Size()
        for name, value in vars(plain).items():
            if getattr(case.size, name) != value:
                yield case.with_(size=replace(case.size, **{name: value}))
        for name in ("choice", "seed"):
            if getattr(case, name):
                yield case.with_(**{name: 0})


def _plainer(action: Action) -> Iterator[Action]:
    if action.what in ("again", "later"):
        yield Action("submit")
    plain = Action(action.what)
    for name in ("times", "sampling", "stop", "differs", "shared"):
        if getattr(action, name) != getattr(plain, name):
            yield replace(action, **{name: getattr(plain, name)})
    for name in ("count", "new"):
        value = getattr(action, name)
        least = 0 if name == "count" and action.what in COUNTED else 1
        smaller = dict.fromkeys((least, 1, value // 2, value - 1))
        yield from (replace(action, **{name: less}) for less in smaller if least <= less < value)


# -- words ----------------------------------------------------------------------------------------------------------


def _say_size(case: EngineCase) -> str:
    size, plain = case.size, Size()
    words = [plural(size.slots, "slot"), f"{size.pages} pages of {plural(size.page_size, 'token')}"]
    words.append(f"steps of {plural(size.max_tokens, 'token')}")
    if size.max_batch_size != plain.max_batch_size:
        words.append(plural(size.max_batch_size, "request") + " at once")
    if size.graph_sizes:
        sizes_said = ", ".join(str(rows) for rows in size.graph_sizes)
        words.append(f"decodes {'replayed' if size.graphs else 'padded'} at {sizes_said} rows")
    if size.interval:
        words.append(
            f"snapshots each {plural(size.interval, 'token')}" + ("" if size.cut else ", where a piece ends by chance")
        )
        words[-1] += "" if size.hash_bits > 32 else f" by hashes of {plural(size.hash_bits, 'bit')}"
    return f"engine ({'toy' if case.model == 'toy' else case.model}) of " + ", ".join(words)


def _say(case: EngineCase) -> Iterator[str]:
    requests = iter(case.requests(16))
    for action in case.actions:
        if action.what in SUBMITTING:
            request, *others = [next(requests) for _ in range(action.times)]
            names = f"request {request.id}" + (f" to {others[-1].id}" if others else "")
            words = f"submit {names}, a prompt of {len(request.prompt)}"
            if action.what != "submit":
                words = ("until all is finished, then " if action.what == "later" else "") + words + " as before"
            elif action.shared:
                but = f" but for number {action.differs}" if 0 < action.differs <= action.shared else ""
                words += f" ({min(action.shared, len(request.prompt))} shared{but})"
            words += f", up to {request.max_new_tokens} new"
            words += "" if request.sampling.greedy else ", drawn"
            yield words + (f", {plural(len(request.stop_tokens), 'stop token')}" if request.stop_tokens else "")
        elif action.what == "step":
            yield plural(action.count, "step")
        elif action.what == "budget":
            yield f"{plural(1 + (action.count - 1) % case.size.max_tokens, 'token')} a step from here"
        elif action.what == "finish":
            yield "until all is finished"
        else:
            yield (
                f"{action.what} the newest"
                if not action.count
                else f"{action.what} one {action.count} before the newest"
            )
