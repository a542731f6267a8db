"""Bad arguments: each must raise a ValueError that names what was wrong, before anything is written (design decision 9)."""

from __future__ import annotations

import inspect
import operator as operator_module
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness import bounds, execution, inflight
from harness.case import Case
from harness.context import Context, Property
from harness.execution import Call, require_device, synchronize
from harness.failure import Failure, fail
from harness.memory import Arena
from harness.operators.chunk_metadata import ChunkMetadata
from references.moe import METHODS, SCALED

#: Names of the positional arguments, by operator.
POSITIONAL = {
    "chunk_metadata": ("cu_seqlens", "chunk_size"),
    "conv_prefill": ("x", "weight"),
    "conv_update": ("x", "weight"),
    "gdn_decode": ("q", "k", "v"),
    "gdn_prefill": ("q", "k", "v"),
    "gated_rmsnorm": ("x", "z", "weight"),
    "moe_routing": ("logits",),
    "moe": ("x", "router_logits", "w_gate_up", "w_down"),
}


@dataclass(frozen=True)
class Breakage:
    """One way to get a call wrong. ``exact``: the message must name this very argument; otherwise any argument will do."""

    what: str
    argument: str
    value: Callable[[Any], Any]
    exact: bool = True
    strict: bool = False
    #: Optional arguments left out of the call, lest they be found to contradict the broken one.
    without: tuple[str, ...] = ()
    #: Further arguments that change in the same way, lest this one be found to contradict them.
    also: tuple[str, ...] = ()
    #: Other arguments' values, so that a call is broken that a case need not have been drawn for.
    beside: Mapping[str, Any] = field(default_factory=dict)


def shape_and_type_breakages(call: dict[str, Any]) -> Iterator[Breakage]:
    """Rank, width, dtype, device and kind of every tensor argument: visible without reading the device."""
    tensors = {name: value for name, value in call.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        yield Breakage(f"{name} with one dimension more", name, lambda t: t.unsqueeze(0))
        # Logits of one expert more are as good, where no bias says how many there are: the others may be somewhere else.
        if value.dim() > 1 and (name not in ("logits", "router_logits") or "bias" in tensors):
            yield Breakage(f"{name} one element too wide", name, _widened, exact=False)
        wrong = torch.int32 if value.is_floating_point() else torch.float32
        yield Breakage(f"{name} of dtype {wrong}", name, partial(_zeros_like, dtype=wrong))
        if len(tensors) > 1:
            yield Breakage(f"{name} on another device", name, lambda t: t.to("meta"), exact=False)
        if name != "bias":
            yield Breakage(f"{name} missing", name, lambda t: None)
    if {"q", "k", "v"} <= set(tensors):
        heads = tensors["v"].shape[1]
        grown = partial(_with_heads, heads=heads + 1)
        yield Breakage(f"{heads} value heads for {heads + 1} heads of q and k", "q", grown, exact=False, also=("k",))


def _zeros_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)


def _with_heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor[:, torch.arange(heads, device=tensor.device) % tensor.shape[1]]


def _instead(value: Any, _: Any) -> Any:
    return value


def _end_moved(starts: Tensor) -> Tensor:
    return torch.cat([starts[:-1], starts[-1:] + 1])


def _dip(starts: Tensor) -> Tensor:
    """All tokens in the first sequence, and the last start one before their end."""
    return torch.cat([starts[:1], starts[-1:].expand(len(starts) - 2), starts[-1:] - 1])


def _widened(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[..., :1]], dim=-1)


def value_breakages(operator: str, call: dict[str, Any], methods: tuple[str, ...] = METHODS) -> Iterator[Breakage]:
    """What only the device knows: seen in strict mode. methods: of routing, those that the subject claims."""
    slots = next((call[name].shape[0] for name in ("conv_state", "state") if name in call), 0)
    if "state_indices" in call:
        yield Breakage(f"a slot {slots} in a pool of {slots}", "state_indices", lambda t: t * 0 + slots, strict=True)
        if call["state_indices"].numel() > 1:
            yield Breakage("two active rows in slot 0", "state_indices", lambda t: t * 0, strict=True)
    if "cu_seqlens" in call and call["cu_seqlens"].numel() > 1:
        hints = tuple(name for name in ("total_seqlens", "extra_chunks") if name in call)
        yield Breakage("starts that do not begin with 0", "cu_seqlens", lambda t: t + 1, strict=True, without=hints)
        if int(call["cu_seqlens"][-1]) > int(call["cu_seqlens"][1]):
            yield Breakage(
                "starts that decrease",
                "cu_seqlens",
                lambda t: torch.cat([t[:1], t[1:].flip(0)]),
                strict=True,
                without=hints,
            )
            yield Breakage("starts that decrease by one", "cu_seqlens", _dip, strict=True, without=hints)
        # Tokens in slots: the starts count them, and can count too many. Metadata is made from the starts alone.
        if "state_indices" in call:
            yield Breakage("starts that end beyond the last token", "cu_seqlens", _end_moved, strict=True)
    if "max_seqlen" in call:
        yield Breakage("max_seqlen one too low", "max_seqlen", lambda longest: longest - 1, strict=True)
    if "method" in call:
        yield from routing_breakages(call, methods)
    if operator == "chunk_metadata":
        for size in (0, -1):
            yield Breakage(f"chunk_size {size}", "chunk_size", partial(_instead, size))
    if operator == "chunk_metadata" and "total_seqlens" in call:
        for name in ("total_seqlens", "extra_chunks"):
            for delta in (1, -1):
                yield Breakage(f"{name} off by {delta:+d}", name, partial(operator_module.add, delta), strict=True)


def routing_breakages(call: dict[str, Any], methods: tuple[str, ...]) -> Iterator[Breakage]:
    """What a mixture of experts cannot be asked for: numbers of experts and groups, a method, a part of the experts."""
    logits = call["logits"] if "logits" in call else call["router_logits"]
    experts = logits.shape[1]
    for value in (0, -1, experts + 1, 1.0):
        yield Breakage(f"top_k {value!r} of {experts}", "top_k", partial(_instead, value))
    for value in ("softmax", 1, None):
        yield Breakage(f"method {value!r}", "method", partial(_instead, value))
    # Whichever way the case is routed: a few cases would not meet every method.
    for method in methods:
        yield from method_breakages(method, experts)
    if isinstance(call.get("bias"), Tensor):
        yield Breakage("a bias of an expert too few", "bias", lambda bias: bias[:-1], exact=False)
    if "w_down" in call:
        yield Breakage(
            "w_gate_up of a row too many", "w_gate_up", lambda w: torch.cat([w, w[:, :1]], dim=1), exact=False
        )
        yield Breakage("w_down of an expert too few", "w_down", lambda w: w[1:], exact=False)
        yield Breakage("x of a token too many", "x", lambda x: x.new_zeros(x.shape[0] + 1, x.shape[1]), exact=False)
        for offset in (-1, experts - call["w_down"].shape[0] + 1, 0.0):
            yield Breakage(f"expert_offset {offset!r}", "expert_offset", partial(_instead, offset))


def method_breakages(method: str, experts: int) -> Iterator[Breakage]:
    """What one method cannot be asked for."""
    plain = {"method": method, "top_k": 1, "n_group": 1, "topk_group": 1, "scaling": 1.0}
    grouped = method == "deepseek_v3"

    def broken(name: str, value: Any, exact: bool = True, **beside: Any) -> Breakage:
        return Breakage(
            f"{name} {value!r} for {method}", name, partial(_instead, value), exact=exact, beside=plain | beside
        )

    for name in ("n_group", "topk_group"):
        for value in (0, experts + 1) if grouped else (2,):
            yield broken(name, value, exact=not grouped)
    yield broken("scaling", "2" if method in SCALED else 2.5)
    if method == "llama4":
        yield broken("top_k", 2)
    if not grouped:
        return
    if experts > 2:
        yield broken("n_group", experts - 1)
    for groups in (n for n in (2, experts) if n > 1 and experts % n == 0):
        # One group more than there are, and an expert more than the kept ones have.
        yield broken("topk_group", groups + 1, exact=False, n_group=groups)
        yield broken("top_k", experts // groups + 1, exact=False, n_group=groups)


@contextmanager
def strict_mode(enabled: bool) -> Iterator[None]:
    before = os.environ.get("SLUICEGATE_STRICT")
    os.environ["SLUICEGATE_STRICT"] = "1" if enabled else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SLUICEGATE_STRICT"]
        else:
            os.environ["SLUICEGATE_STRICT"] = before


def arguments_body(context: Context, case: Case) -> None:
    probe = _hinted(context, named_arguments(context, _packed(context, case)))
    methods = context.capabilities.routing_methods or METHODS
    for breakage in (*shape_and_type_breakages(probe), *value_breakages(case.operator, probe, methods)):
        call = _packed(context, case)
        named = _hinted(context, named_arguments(context, call))
        changed = (breakage.argument, *breakage.also)
        broken = {**named, **breakage.beside, **{name: breakage.value(named.get(name)) for name in changed}}
        broken |= dict.fromkeys(breakage.without)
        _require_rejected(context, breakage, call, broken)
        context.cases += 1


def _hinted(context: Context, call: dict[str, Any]) -> dict[str, Any]:
    """The call, with a true hint about the longest sequence where the subject takes one."""
    if "max_seqlen" not in inspect.signature(context.function).parameters or "cu_seqlens" not in call:
        return call
    return call | {"max_seqlen": int(call["cu_seqlens"].diff().max())}


def _packed(context: Context, case: Case) -> Call:
    operator = context.operator
    if isinstance(operator, ChunkMetadata):
        return operator.pack(case.with_(options={"hints": True}), context.device)
    return context.tokens.pack(context.batch(case), Arena(context.device))


def named_arguments(context: Context, call: Call) -> dict[str, Any]:
    return dict(zip(POSITIONAL[context.operator.name], call.arguments, strict=True)) | call.keywords


def _require_rejected(context: Context, breakage: Breakage, call: Call, broken: dict[str, Any]) -> None:
    names = POSITIONAL[context.operator.name]
    call.arena.arm()
    for buffer in call.arena.buffers:
        buffer.writable_rows.clear()
    try:
        # That it went outside its buffers says less than that it was accepted.
        with bounds.watched(), strict_mode(breakage.strict), torch.no_grad(), inflight.watched():
            context.function(*(broken[n] for n in names), **{k: v for k, v in broken.items() if k not in names})
            synchronize(context.device)
    except ValueError as error:
        text = str(error)
        wanted = (breakage.argument,) if breakage.exact else tuple(broken)
        if not any(re.search(rf"\b{re.escape(name)}\b", text) for name in wanted):
            fail(
                "not rejected",
                f"{breakage.what}: the ValueError does not name {breakage.argument!r}: {text.splitlines()[0] if text else '(empty)'}",
                mark=breakage.what,
            )
    except Failure:
        raise
    except Exception as error:  # noqa: BLE001 - any other type than ValueError is the finding
        require_device(error)
        fail(
            "not rejected",
            f"{breakage.what}: raised {type(error).__name__} ({str(error).splitlines()[0] if str(error) else ''}), expected"
            f" a ValueError that names {breakage.argument!r}",
            mark=breakage.what,
        )
    else:
        mode = " in strict mode (SLUICEGATE_STRICT=1)" if breakage.strict else ""
        fail(
            "not rejected",
            f"{breakage.what} was accepted{mode}, expected a ValueError that names {breakage.argument!r}",
            mark=breakage.what,
        )
    call.arena.check()


def strict_body(context: Context, case: Case) -> None:
    """Strict mode looks at values and refuses none that are right."""
    with strict_mode(enabled=True):
        call = _packed(context, case)
        execution.invoke(context.function, call, check_memory=context.check_memory, what=context.operator.name)


class _Refused(BaseException):
    """The subject raised what it may. No `Exception`, so that nothing on the way takes it for a crash."""


def unless_refused(
    function: Callable[..., Any], run: Callable[[Callable[..., Any]], Any], refusal: type[Exception] = ValueError
) -> Any:
    """What ``run`` makes of the function; None when the function raises a ``refusal``, as it may at false values."""

    def attempt(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except refusal as error:
            raise _Refused from error

    try:
        return run(attempt)
    except _Refused:
        return None


def false_starts_body(context: Context, case: Case, *, negative: bool = False) -> None:
    """Starts that count more tokens than there are (a step's padding gone wrong) lead to no access outside.

    ``negative``: nor does a start below 0.
    """
    batch = context.batch(case)
    for first, last in {(0, None), (case.choice % (batch.size + 1), None), (batch.size, None), *([(0, 1)] * negative)}:
        call = context.tokens.pack(batch, Arena(context.device))
        # The first start of all behind a block of any kernel: searches that count on its being 0 then find nothing.
        shift = 1 + case.choice % 97 + (0 if first else 256)
        call.keywords["cu_seqlens"][first:last] += -shift if last else shift
        # A sequence without tokens may own some by such starts, and its slot then changes.
        call.arena.permit(context.sequences.state_name, [s.slot for s in batch.segments if s.active])
        what, check = context.operator.name, context.check_memory
        judged = partial(execution.invoke, call=call, check_memory=check, what=what)
        # False starts are the caller's error: whatever is raised is as good as any result.
        unless_refused(context.function, judged, Exception)
        call.arena.check()
        context.cases += 1


def false_starts(strategy: Callable[..., Any] | None = None, *, negative: bool = False) -> Property:
    """On a CPU, where every address is known: on a GPU an access outside leaves no trace, or takes the process with it."""
    return Property(
        "false_starts_stay_inside",
        "arguments",
        partial(false_starts_body, negative=negative),
        weight=0.25,
        devices=("cpu",),
        strategy=strategy,
    )


strict_accepts = Property("strict_mode_accepts", "arguments", strict_body, weight=0.25)
bad_arguments = Property("bad_arguments", "arguments", arguments_body, examples=3)
