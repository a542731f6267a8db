"""What must hold of a ``step_metadata`` builder over its life (spec 1.7): a state machine of an engine's steps."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st

from harness import equivalence, guards
from harness.arguments import strict_mode
from harness.case import Step, StepCase
from harness.context import Context, Property
from harness.execution import require_device, synchronize
from harness.failure import fail
from harness.operators.step_metadata import LiveBuilder, StepMetadataOperator
from harness.pytest_plugin import CheckedCell
from harness.strategies import SEEDS, Scale

OPERATOR = "step_metadata"
#: About 10 ms on current GPUs: longer than the host takes for dozens of steps.
LAG_CYCLES = 20_000_000


def _operator(context: Context) -> StepMetadataOperator:
    assert isinstance(context.operator, StepMetadataOperator)
    return context.operator


# -- the engine whose steps are drawn -------------------------------------------------------------------------------


class EngineModel:
    """Requests, their lengths so far and their slots: just enough of an engine to form steps that follow each other."""

    def __init__(self, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        self.free = list(range(2 * max_batch_size))
        #: Request to [prompt tokens left, tokens cached, slot].
        self.requests: list[list[int]] = []

    def admit(self, prompt: int, pick: int, cached: int = 0) -> None:
        """A new request takes a free slot, often one that was used before; ``cached`` tokens came from a prefix cache."""
        if self.free and len(self.requests) < self.max_batch_size:
            self.requests.append([prompt, cached, self.free.pop(pick % len(self.free))])

    def finish(self, pick: int) -> None:
        if self.requests:
            self.free.append(self.requests.pop(pick % len(self.requests))[2])

    def step(self, chunk: int, padded_to: int, *, allow_prefill: bool = True) -> Step:
        contexts = [r for r in self.requests if r[0] > 0] if allow_prefill else []
        decodes = [r for r in self.requests if r[0] == 0]
        rows = [(min(r[0], chunk), r[1], r[2]) for r in contexts] + [(1, r[1], r[2]) for r in decodes]
        padding = max(0, min(padded_to, self.max_batch_size) - len(rows)) if not contexts else 0
        # Some engines give a padding row a token, others none.
        rows += [(padded_to % 2, 0, -1)] * padding
        for request, (length, _, _) in zip([*contexts, *decodes], rows, strict=False):
            request[0] = max(0, request[0] - length) if request[0] else 0
            request[1] += length
        return Step(tuple(r[0] for r in rows), len(contexts), tuple(r[1] for r in rows), tuple(r[2] for r in rows))


Action = tuple[str, int, int]


def lives(scale: Scale, dtype: str) -> Any:
    """The actions of an engine: admissions, prefill, mixed and pure decode steps, padded steps, ends, slot reuse."""
    actions = st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.integers(1, 16), st.just(0)),
            st.tuples(st.just("admit"), st.integers(1, 24), st.integers(0, 31)),
            st.tuples(st.just("decode"), st.integers(0, 16), st.just(0)),
            st.tuples(st.just("finish"), st.integers(0, 31), st.just(0)),
            st.tuples(st.just("admit cached"), st.integers(1, 24), st.integers(1, 31)),
        ),
        min_size=1,
        max_size=24,
    )
    return st.builds(_live, actions, st.sampled_from([16, 4, 8]), st.sampled_from([8, 1, 4, 64]), SEEDS)


def _live(actions: list[Action], max_batch_size: int, chunk_size: int, seed: int) -> StepCase:
    engine, taken = EngineModel(max_batch_size), []
    for name, size, pick in actions:
        if name == "admit":
            engine.admit(size, pick)
        elif name == "admit cached":
            engine.admit(size, pick, cached=pick)
        elif name == "finish":
            engine.finish(size)
        else:
            taken.append(engine.step(max(size, 1), padded_to=size, allow_prefill=name == "step"))
    taken = taken or [engine.step(1, padded_to=1)]
    return StepCase(OPERATOR, tuple(taken), max_batch_size, chunk_size, seed=seed)


# -- the properties -------------------------------------------------------------------------------------------------


def life_body(context: Context, case: StepCase) -> None:
    """After every step, every field equals what a builder without memory would say; addresses stay."""
    live = _operator(context).live(context.function, case, context.device)
    for step in case.steps:
        metadata = live.prepare(step)
        live.require_right(step, live.snapshot(metadata))
        live.require_same_addresses(metadata)
        context.cases += 1
    live.poison.check()


def unsynchronized_body(context: Context, case: StepCase) -> None:
    """Steps prepared back to back, read in stream order: staging memory in flight must not be overwritten."""
    live = _operator(context).live(context.function, case, context.device)
    if context.device.type == "cuda":
        # A device that lags behind. An idle one has every copy done before the host can prepare the next step.
        torch.cuda._sleep(LAG_CYCLES)
    # Enough steps to go around any ring of staging buffers.
    rounds = list(case.steps) * 3
    seen = [live.snapshot(live.prepare(step)) for step in rounds]
    synchronize(context.device)
    for step, fields in zip(rounds, seen, strict=True):
        live.require_right(step, fields)


def independent_of_history_body(context: Context, case: StepCase) -> None:
    """The last step on a used builder equals the same step on a new one."""
    operator = _operator(context)
    used, new = (operator.live(context.function, case, context.device) for _ in range(2))
    for step in case.steps[:-1]:
        used.prepare(step)
    last = case.steps[-1]
    used.require_right(last, used.snapshot(used.prepare(last)))
    new.require_right(last, new.snapshot(new.prepare(last)))


def bad_steps_body(context: Context, case: StepCase) -> None:
    """Wrong lists raise a ValueError that names them, and the builder stays usable."""
    live = _operator(context).live(context.function, case, context.device)
    step = case.steps[-1]
    arguments = step.arguments()
    rows = len(step.seq_lens)
    strict = [("state_slots", {"state_slots": [0] * rows})] if rows > 1 else []
    broken: list[tuple[str, dict[str, Any]]] = [
        ("num_cached_tokens", {"num_cached_tokens": [*arguments["num_cached_tokens"], 1]}),
        ("state_slots", {"state_slots": [*arguments["state_slots"], 1]}),
        ("num_contexts", {"num_contexts": rows + 1}),
        ("num_contexts", {"num_contexts": -1}),
        ("seq_lens", _rows(case.max_batch_size + 1)),
    ]
    if rows:
        broken += [
            ("seq_lens", {"seq_lens": [-1, *arguments["seq_lens"][1:]]}),
            ("num_cached_tokens", {"num_cached_tokens": [-1, *arguments["num_cached_tokens"][1:]]}),
        ]
    for name, change in [*broken, *strict]:
        try:
            with strict_mode((name, change) in strict):
                live.builder.prepare(**{**arguments, **change})
        except ValueError as error:
            if name not in str(error) and "max_batch_size" not in str(error):
                fail("not rejected", f"{change}: the ValueError does not name {name!r}: {error}", mark=name)
        except Exception as error:  # noqa: BLE001 - any other type than ValueError is the finding
            require_device(error)
            fail(
                "not rejected",
                f"{change}: raised {type(error).__name__}, expected a ValueError naming {name!r}",
                mark=name,
            )
        else:
            fail("not rejected", f"{change} was accepted, expected a ValueError naming {name!r}", mark=name)
        context.cases += 1
    # Still usable, and strict mode refuses nothing that is right.
    for strictly in (False, True):
        with strict_mode(strictly):
            live.require_right(step, live.snapshot(live.prepare(step)))


def exact_limits_body(context: Context, case: StepCase) -> None:
    """A builder as small as its step takes it, one a token smaller refuses it; the largest chunk size is one like any other."""
    step = case.steps[-1]
    tokens, rows = sum(step.seq_lens), len(step.seq_lens)

    def sized(max_num_tokens: int) -> LiveBuilder:
        function = partial(context.function, max_num_tokens=max_num_tokens)
        return _operator(context).live(function, replace(case, max_batch_size=rows), context.device)

    for live in (
        sized(tokens),
        _operator(context).live(context.function, replace(case, chunk_size=2**31 - 1), context.device),
    ):
        live.require_right(step, live.snapshot(live.prepare(step)))
    if tokens:
        try:
            sized(tokens - 1).builder.prepare(**step.arguments())
        except ValueError as error:
            if "seq_lens" not in str(error):
                fail("not rejected", f"{tokens} tokens, one too many: the ValueError does not name 'seq_lens': {error}")
        else:
            fail("not rejected", f"{tokens} tokens were accepted by a builder for {tokens - 1}")


def takes_no_limit(_: str, function: Callable[..., Any]) -> str:
    return "" if "max_num_tokens" in inspect.signature(function).parameters else "it takes no max_num_tokens"


def _rows(count: int) -> dict[str, Any]:
    return {
        "seq_lens": [1] * count,
        "num_contexts": 0,
        "num_cached_tokens": [1] * count,
        "state_slots": list(range(count)),
    }


def agrees_with_device_body(context: Context, case: StepCase) -> None:
    """Host arithmetic against device contents: chunk metadata rebuilt from the starts that the step put on the device."""
    from references.chunk_metadata import chunk_metadata

    live = _operator(context).live(context.function, case, context.device)
    for step in case.steps:
        fields = live.snapshot(live.prepare(step))
        if fields["chunk_indices"] is None:
            continue
        starts = fields["query_start_loc"]
        assert starts is not None
        indices, offsets = chunk_metadata(starts[: step.num_contexts + 1].cpu(), case.chunk_size)
        got = (fields["chunk_indices"].cpu().tolist(), fields["chunk_offsets"].cpu().tolist())  # type: ignore[union-attr]
        if got != (indices.tolist(), offsets.tolist()):
            fail("wrong metadata", f"chunks {got} do not follow from the device's own starts {starts.tolist()}")


def baseline_body(context: Context, case: StepCase) -> None:
    baseline = context.baseline()
    live = _operator(context).live(baseline, case, context.device)
    for step in case.steps:
        live.require_right(step, live.snapshot(live.prepare(step)))


def crowded(scale: Scale, dtype: str) -> Any:
    """Hundreds of rows in one step, more than one block of anything."""
    return st.builds(_crowded, st.integers(1, 256), SEEDS)


def _crowded(rows: int, seed: int) -> StepCase:
    rng = random.Random(seed)
    contexts = rng.randint(0, rows)
    lengths = [rng.choice([0, 1, 7, 8, 9, rng.randint(0, 64)]) for _ in range(contexts)] + [1] * (rows - contexts)
    cached = [rng.choice([0, 0, 5, 4096]) for _ in range(contexts)] + [
        rng.randint(1, 9999) for _ in range(rows - contexts)
    ]
    slots = rng.sample(range(512), rows)
    step = Step(tuple(lengths), contexts, tuple(cached), tuple(slots))
    return StepCase(OPERATOR, (step,), 256, rng.choice([1, 8, 64, 256]), seed=seed)


life = Property("engine_life", "equivalence", life_body, weight=10, strategy=lives)
crowd = Property("crowded_step", "equivalence", life_body, weight=2, strategy=crowded)
arbitrary = Property("arbitrary_steps", "equivalence", life_body, weight=4)
unsynchronized = Property("back_to_back", "relations", unsynchronized_body, strategy=lives)
independent = Property("independent_of_history", "relations", independent_of_history_body, strategy=lives)
host_agrees = Property("host_agrees_with_device", "relations", agrees_with_device_body)
baseline_agrees = Property(
    "agrees_with_baseline", "relations", baseline_body, weight=0.5, nothing_to_check=equivalence.no_baseline
)
exact_limits = Property("limits_are_exact", "arguments", exact_limits_body, weight=0.5, nothing_to_check=takes_no_limit)
bad_steps = Property("bad_arguments", "arguments", bad_steps_body, examples=5)

PROPERTIES = (
    life,
    crowd,
    arbitrary,
    unsynchronized,
    independent,
    host_agrees,
    baseline_agrees,
    bad_steps,
    exact_limits,
    guards.host_sync,
)


def test_property(cell: CheckedCell) -> None:
    cell.check()
