"""What must hold of an engine over its life: every step, slot, page and answer, whatever is done to it in whatever order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st

from harness.context import Context, Property
from harness.execution import require_device
from harness.failure import fail
from harness.pytest_plugin import CheckedCell
from harness.strategies import SEEDS, Scale
from serving.config import ModelConfig
from serving.engine_case import SUBMITTING, Action, EngineCase, Size
from serving.kernel_set import KernelSet
from serving.life import Life, ask, say
from serving.lives import crowds, families, lives, sizes, submissions
from serving.model import HybridModel
from serving.recorder import Recorder
from serving.request import Request, Sampling
from serving.toy import HOST, REFERENCES, Toy
from serving.truth import ModelTruth, ToyTruth
from serving.weights import random_weights

OPERATOR = "engine"
VOCABULARY = Toy.config.vocab_size
OPTIMIZED = "optimized,moe=references"
TINY = ModelConfig(
    vocab_size=24,
    hidden_size=16,
    layers=("linear_attention", "full_attention"),
    key_heads=1,
    value_heads=2,
    key_dim=4,
    value_dim=8,
    conv_width=4,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rotary_dim=4,
    rope_theta=1e4,
    intermediate_size=16,
)


@cache
def builder() -> KernelSet:
    """Kernels of which an engine takes the builder of metadata, by name and late: without them there is still a suite to look at."""
    return KernelSet.named(OPTIMIZED).replaced(chunk_size=4)


def toyed(context: Context, size: Size, seed: int) -> Life:
    """A new engine on the toy, whose memory is on the device; there, with the builder that brings a step over in one copy."""
    model = Toy() if context.device == HOST else Toy(context.device, builder())
    return Life(context.function, model, size.settings(seed))


def lived(context: Context, case: EngineCase) -> Life:
    """The case, lived through on the toy by a new engine."""
    return toyed(context, case.size, case.seed).live(case)


# -- each answer is that of the request alone ------------------------------------------------------------------------


def life_body(context: Context, case: EngineCase) -> None:
    """Every step follows from the requests' histories, nothing is lost or shared, and every answer is exact."""
    lived(context, case).require_right(ToyTruth())


def models(scale: Scale, dtype: str) -> Any:
    """Lives on a tiny hybrid model: kernels that go on from any token, so that snapshots may stand anywhere."""
    return st.builds(
        EngineCase,
        operator=st.just(OPERATOR),
        actions=lives(2, 6),
        size=sizes(),
        model=st.sampled_from(["references", "references", OPTIMIZED]),
        seed=SEEDS,
    )


def captured_models(scale: Scale, dtype: str) -> Any:
    """Those on kernels that a graph can capture, by engines that replay graphs."""
    return models(scale, dtype).map(lambda case: case.with_(model=OPTIMIZED, size=replaying(case.size)))


@cache
def _hybrid(kernels: str, device: str) -> tuple[HybridModel, ModelTruth]:
    weights = random_weights(TINY, 0, torch.float32, torch.device(device))
    model = HybridModel(TINY, weights, KernelSet.named(kernels).replaced(chunk_size=4))
    return model, ModelTruth(model)


def model_body(context: Context, case: EngineCase) -> None:
    """The same on a hybrid model: logits within the budget, tokens as they follow from them."""
    model, truth = _hybrid(case.model, context.device.type)
    # The references read indices back, which no graph can capture.
    capturable = context.device.type == "cuda" and case.model == OPTIMIZED
    graphs = "cuda" if capturable else "emulated"
    settings = case.size.settings(case.seed, graphs=graphs, state_dtype=torch.float32)
    life = Life(context.function, model, settings).live(case)
    if settings.graphs != "off":
        require_replayed(life, case.size)
    life.require_right(truth)


def require_replayed(life: Life, size: Size) -> None:
    """Steps of decodes that a graph fits are replayed, and no others; there are graphs for the sizes that came."""
    for number, report in enumerate(life.reports):
        decodes = bool(report.rows) and not any(row.is_context for row in report.rows)
        fits = decodes and len(report.rows) + report.padding in size.graph_sizes
        if report.replayed != fits:
            fail(
                "not capturable",
                f"step {number}: replayed is {report.replayed}, expected {fits}; {len(report.rows)} rows",
            )
    captured = list(life.engine.graphs.captured)
    sizes_used = sorted({len(r.rows) + r.padding for r in life.reports if r.replayed})
    if captured != sizes_used:
        fail(
            "not capturable",
            f"graphs were captured for {captured} rows, expected {sizes_used}: once for each that came",
        )


# -- what changes no answer ------------------------------------------------------------------------------------------


def plenty(size: Size, **changes: Any) -> Size:
    """An engine in which nothing runs out and nothing is remembered."""
    more = {"slots": 64, "pages": 64 * size.pages, "max_batch_size": 16, "interval": 0}
    return replace(size, **more | changes)


def replaying(size: Size) -> Size:
    """An engine that has graphs."""
    return replace(size, graph_sizes=size.graph_sizes or (1, 2, 4), graphs=True)


def only(case: EngineCase, *kept: str) -> EngineCase:
    return case.with_(actions=tuple(action for action in case.actions if action.what in kept))


def require_same(got: dict[str, list[int]], expected: dict[str, list[int]], what: str) -> None:
    """The answers of the requests that both have; where one was cut off, as far as it got."""
    for name in sorted(set(got) & set(expected), key=int):
        length = min(len(got[name]), len(expected[name]))
        if got[name][:length] != expected[name][:length]:
            fail(
                "wrong answer", f"request {name}: {what} changed its answer: got {got[name]}, expected {expected[name]}"
            )


def alone_body(context: Context, case: EngineCase) -> None:
    """A request beside others answers as it does in an engine of its own."""
    together = lived(context, case)
    answers = together.answers()
    for request in case.requests(VOCABULARY):
        by_itself = toyed(context, plenty(case.size), case.seed)
        by_itself.submit(request)
        by_itself.finish()
        require_same({request.id: answers[request.id]}, by_itself.answers(), "the others")


def order_body(context: Context, case: EngineCase) -> None:
    """Who comes first does not matter to what is answered."""
    forwards, backwards = (toyed(context, case.size, case.seed) for _ in range(2))
    requests = case.requests(VOCABULARY)
    for life, ordered in ((forwards, requests), (backwards, requests[::-1])):
        for request in ordered:
            life.submit(request)
        life.finish()
    require_same(backwards.answers(), forwards.answers(), "the order of arrival")


def resources_body(context: Context, case: EngineCase) -> None:
    """Neither the budget of tokens nor pages, slots or the prefix cache change an answer."""
    expected = lived(context, case).answers()
    budget = replace(plenty(case.size), max_tokens=1 + case.choice % 32)
    got = lived(context, only(case, *SUBMITTING, "step", "finish").with_(size=budget)).answers()
    require_same(got, expected, f"{budget.max_tokens} tokens a step, and pages and slots for all,")


def warm_body(context: Context, case: EngineCase) -> None:
    """The same requests again, when their prefixes are remembered, answer the same."""
    size = case.size if case.size.interval else replace(case.size, interval=4)
    life = toyed(context, size, case.seed)
    requests = case.requests(VOCABULARY)
    for again in (0, 1000):
        for request in requests:
            life.submit(replace(request, id=str(int(request.id) + again)))
        life.finish()
    answers = life.answers()
    second = {str(int(name) - 1000): answer for name, answer in answers.items() if int(name) >= 1000}
    require_same(second, answers, "that it had been asked before")
    context.note("tokens saved", life.watch.saved)


def neighbours_body(context: Context, case: EngineCase) -> None:
    """What is done to others, aborted or preempted, is nothing to a request."""
    left_alone = only(case, *SUBMITTING, "step", "finish", "budget")
    require_same(lived(context, case).answers(), lived(context, left_alone).answers(), "what was done to others")


# -- what a step brings to the device ---------------------------------------------------------------------------------

#: Some 10 ms of a GPU's clock: the host makes several steps meanwhile.
LATE = 20_000_000
#: Steps without a token chosen that a case begins with, at least: two buffers take turns, so the third overwrites the first.
UNSAMPLED = 3


def unsampled(scale: Scale, dtype: str) -> Any:
    """A prompt in many pieces, of which the last one alone has a token chosen: before that, nothing makes the host wait."""

    def of(most: int) -> Any:
        # No graphs: each step is one call of the model.
        size = sizes().map(
            lambda size: plenty(size, max_tokens=most, max_length=48, pages=512, graphs=False, graph_sizes=())
        )
        first = st.builds(
            Action, what=st.just("submit"), count=st.integers(UNSAMPLED * most + 1, 40), new=st.integers(1, 4)
        )
        others = st.lists(submissions(), max_size=2)
        acts = st.builds(lambda begin, rest: (begin, *rest), first, others)
        return st.builds(EngineCase, operator=st.just(OPERATOR), actions=acts, size=size, seed=SEEDS)

    return st.sampled_from([2, 4, 8]).flatmap(of)


def recorded(context: Context, case: EngineCase, model: Recorder) -> list[dict[str, Any]]:
    """All that the model was given until every request had its answer, as lists; nobody looked at it before that."""
    requests = case.requests(VOCABULARY)
    engine = ask(lambda: context.function(model, case.size.settings(case.seed)))
    for request in requests:
        ask(lambda request=request: engine.submit(request))
    most = 20 + sum(len(request.prompt) + request.max_new_tokens for request in requests)
    for _ in range(most):
        if not ask(lambda: engine.unfinished):
            break
        ask(engine.step)
    left = ask(lambda: engine.unfinished)
    if left:
        fail("stuck", f"{say(left)} unfinished after {most} steps")
    return [{name: None if value is None else value.tolist() for name, value in call.items()} for call in model.seen]


def late_body(context: Context, case: EngineCase) -> None:
    """What a step is given reaches the device whole, however far the host has run ahead; the truth is an engine on the host."""
    cycles = LATE if context.device.type == "cuda" else 0
    expected = recorded(context, case, Recorder(REFERENCES, HOST))
    got = recorded(context, case, Recorder(builder(), context.device, cycles))
    if len(got) != len(expected):
        fail(
            "wrong schedule", f"the model is called {len(got)} times on a device that is late, expected {len(expected)}"
        )
    for number, (here, right) in enumerate(zip(got, expected, strict=True)):
        for name, values in right.items():
            if here[name] != values:
                fail(
                    "wrong inputs",
                    f"step {number}, on a device that is late: {name} is {here[name]}, expected {values}",
                    mark=name,
                )


# -- what it costs ---------------------------------------------------------------------------------------------------


def replays_body(context: Context, case: EngineCase) -> None:
    """A step of decodes for which there is a graph is replayed, each graph is captured once, and no other step is padded."""
    size = replaying(case.size)
    require_replayed(lived(context, case.with_(size=size)), size)


def saves_body(context: Context, case: EngineCase) -> None:
    """A prompt that comes again is computed from its last snapshot on, if there is room to remember it."""
    interval = case.size.interval or 4
    size = replace(plenty(case.size), interval=interval, cut=True, hash_bits=64)
    requests = case.requests(VOCABULARY)
    # Prompts that end where a snapshot may stand, too: among others they would find what those have left.
    whole = (request.prompt[: len(request.prompt) // interval * interval] for request in requests)
    aligned = [replace(request, prompt=prompt) for request, prompt in zip(requests, whole, strict=True) if prompt]
    for asked in (requests, aligned):
        life = toyed(context, size, case.seed)
        for request in asked:
            life.submit(request)
            life.finish()
            # As it is, and longer: at least its last token is computed, and a snapshot stands at the last boundary before it.
            for more in ((), (0,)) if len(request.prompt) + request.max_new_tokens < size.capacity else ((),):
                before, prompt = life.watch.saved, (*request.prompt, *more)
                life.submit(replace(request, id=f"{request.id} again{'and longer' * len(more)}", prompt=prompt))
                life.finish()
                got, least = life.watch.saved - before, (len(prompt) - 1) // interval * interval
                if got < least:
                    fail(
                        "recomputed", f"a prompt of {len(prompt)} that comes again saves {got} tokens, expected {least}"
                    )


# -- what is refused -------------------------------------------------------------------------------------------------


def bad_requests(size: Size) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """What a message must name, and what is asked."""
    fine = Request("fine", (1, 2), 2)

    def submitted(**changes: Any) -> Callable[[Any], Any]:
        return lambda engine: engine.submit(replace(fine, **changes))

    yield "prompt", submitted(prompt=())
    yield "prompt", submitted(prompt=(1, -1))
    yield "prompt", submitted(prompt=(VOCABULARY,))
    yield "prompt", submitted(prompt=(1,) * size.capacity, max_new_tokens=1)
    yield "prompt", submitted(max_new_tokens=size.capacity - 1)
    yield "max_new_tokens", submitted(max_new_tokens=0)
    yield "sampling", submitted(sampling=Sampling(temperature=-1.0))
    yield "sampling", submitted(sampling=Sampling(temperature=1.0, top_p=0.0))
    yield "sampling", submitted(sampling=Sampling(temperature=1.0, top_k=-1))
    yield "id", submitted(id="taken")
    yield "id", lambda engine: engine.abort("nobody")
    yield "id", lambda engine: engine.preempt("nobody")
    yield "id", lambda engine: engine.forget("taken")
    yield "token_budget", lambda engine: engine.set_token_budget(0)
    yield "token_budget", lambda engine: engine.set_token_budget(size.max_tokens + 1)


def standing(engine: Any) -> tuple[Any, ...]:
    return engine.ownership(), engine.unfinished, engine.token_budget


def arguments_body(context: Context, case: EngineCase) -> None:
    """A request that is malformed or can never be served is refused at once, by name, and changes nothing."""
    life = toyed(context, case.size, case.seed)
    life.submit(Request("taken", (1, 2, 3), 2))
    life.step()
    for name, asked in bad_requests(case.size):
        before = ask(lambda: standing(life.engine))
        try:
            asked(life.engine)
        except ValueError as error:
            if not str(error).startswith(f"{name}: "):
                fail("not rejected", f"the ValueError does not begin with {name!r}: {error}", mark=name)
        except Exception as error:  # noqa: BLE001 - any other type than ValueError is the finding
            require_device(error)
            fail("not rejected", f"{name}: raised {type(error).__name__}, expected a ValueError", mark=name)
        else:
            fail("not rejected", f"{name}: a bad one was accepted, expected a ValueError that names it", mark=name)
        if before != ask(lambda: standing(life.engine)):
            fail("not rejected", f"{name}: refused, but the engine is not as before", mark=name)
    longest = Request("longest", (1,) * (case.size.capacity - 1), 1)
    life.submit(longest)
    life.finish()
    life.require_right(ToyTruth())


# -- all of it -------------------------------------------------------------------------------------------------------

engine_life = Property("engine_life", "equivalence", life_body, weight=12)
prefixes = Property("prefixes_compete", "equivalence", life_body, weight=10, strategy=families)
pages = Property("pages_run_out", "equivalence", life_body, weight=8, strategy=crowds)
model_life = Property("model_life", "equivalence", model_body, examples=12, strategy=models)
captured_life = Property(
    "captured_life", "equivalence", model_body, weight=2, devices=("cuda",), strategy=captured_models
)
alone = Property("batch_equals_alone", "relations", alone_body)
order = Property("order_of_arrival", "relations", order_body)
resources = Property("resources_change_no_answer", "relations", resources_body)
warm = Property("cold_equals_warm_cache", "relations", warm_body)
neighbours = Property("neighbours_change_no_answer", "relations", neighbours_body)
replays = Property("decodes_are_replayed", "cost", replays_body)
late = Property("late_device", "memory", late_body, devices=("cuda",), strategy=unsampled)
saves = Property("prefixes_are_reused", "cost", saves_body, weight=2)
arguments = Property("bad_requests", "arguments", arguments_body, examples=5)

PROPERTIES = (
    engine_life,
    prefixes,
    pages,
    model_life,
    captured_life,
    alone,
    order,
    resources,
    warm,
    neighbours,
    late,
    replays,
    saves,
    arguments,
)


def test_property(cell: CheckedCell) -> None:
    cell.check()
