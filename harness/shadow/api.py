"""`shadow` itself, and the report of all shadows of a process."""

from __future__ import annotations

import atexit
import importlib.util
import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from harness import operators
from harness.shadow import patching, signatures
from harness.shadow.observation import Observation
from harness.shadow.seen import Seen
from harness.shadow.signature import Signature
from harness.shadow.worker import WORKER
from harness.shadow.wrapper import Shadow

#: Seconds that the end of the process waits for comparisons.
EXIT_SECONDS = 60.0

_shadows: list[Shadow] = []
_at_exit: list[bool] = []


def shadow(
    target: patching.Target,
    operator: str | None = None,
    *,
    every: int = 1,
    out: str | Path = "shadow",
    signature: str = "auto",
    adapt: Callable[[Seen], Observation] | Signature | None = None,
    pools: Mapping[str, str] | None = None,
    updated: tuple[str, ...] = (),
    everywhere: bool = False,
    inline: bool = False,
    queue: int = 8,
    max_bytes: int = 1 << 30,
    keep: int = 20,
    where: Literal["cpu", "device"] = "cpu",
    report_at_exit: bool = False,
    quiet: bool = False,
) -> Shadow:
    """Put a stand-in in the place of ``target`` that has the first and every n-th further call compared.

    Args:
        target: ``module:function``, ``module:Class.method``, or ``(object, "attribute")``.
        operator: what calls are judged as; None: what the signature says.
        every: compare one call in so many.
        out: folder of the mismatches' files, made at the first one.
        signature: of `harness.shadow.signatures`; ``auto`` goes by the target's parameter names, and says which.
        adapt: for any other target: from copies of a call to an `Observation`, or a whole `Signature`.
        pools, updated: with a function as ``adapt``: which parameters are state pools, with the parameters that hold the
            slots, so that only these rows are copied; which parameters the call changes in place.
        everywhere: also in every loaded module whose global is this very function (``from x import f``).
        inline: compare before the call returns, instead of in a background thread.
        queue, max_bytes: so many calls, and so many bytes of copied arguments, may wait; any more are dropped and counted.
        keep: write so many mismatches at most.
        where: the comparison runs on the CPU, or on the device where the host's tensors are.
        report_at_exit: print a table to stderr when the process ends.
        quiet: do not say on stderr how the target was understood.

    Raises:
        ValueError: an unknown or already shadowed target, operator or signature. Nothing is raised later on.
    """
    _require(every, queue, max_bytes, keep, where)
    if operator is not None:
        operators.get(operator)
    place = patching.find(target)
    what = patching.describe(target)
    try:
        parameters = inspect.signature(place.function)
    except (TypeError, ValueError) as error:
        raise ValueError(f"target: {what} has no signature that Python can see ({error})") from error
    chosen = _signature(parameters, operator, signature, adapt, pools or {}, updated, what)
    options: dict[str, Any] = {"every": every, "out": Path(out).absolute(), "everywhere": everywhere}
    options |= {"inline": inline, "queue": queue, "max_bytes": max_bytes, "keep": keep, "where": where}
    made = Shadow(target, chosen, place, parameters, **options)
    _shadows.append(made)
    if report_at_exit:
        _at_exit.append(True)
    if not quiet:
        others = signatures.alternatives(chosen)
        doubt = f"; if that is wrong, give signature={' or '.join(map(repr, others))}" if others else ""
        sys.stderr.write(f"sluicegate shadow: {what} is taken as {chosen.name}: {chosen.about}{doubt}\n")
    return made


def _require(every: int, queue: int, max_bytes: int, keep: int, where: str) -> None:
    for name, value, least in (
        ("every", every, 1),
        ("queue", queue, 1),
        ("max_bytes", max_bytes, 1),
        ("keep", keep, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected {least} or more")
    if where not in ("cpu", "device"):
        raise ValueError(f"where: got {where!r}, expected cpu or device")
    if importlib.util.find_spec("safetensors") is None:
        raise ValueError(
            "shadow: mismatches are written with safetensors, which is not installed: pip install safetensors"
        )


def _signature(
    parameters: inspect.Signature,
    operator: str | None,
    name: str,
    adapt: Callable[[Seen], Observation] | Signature | None,
    pools: Mapping[str, str],
    updated: tuple[str, ...],
    what: str,
) -> Signature:
    if adapt is None:
        if pools or updated:
            raise ValueError("pools, updated: they belong to adapt=; the known signatures have their own")
        return signatures.choose(parameters, operator, name, what)
    if name != "auto":
        raise ValueError("signature, adapt: give one of them")
    if isinstance(adapt, Signature):
        return adapt
    unknown = {*pools, *pools.values(), *updated} - set(parameters.parameters)
    if unknown:
        raise ValueError(
            f"pools, updated: {what} has no parameters {', '.join(sorted(unknown))}, it has ({', '.join(parameters.parameters)})"
        )
    judged = () if operator is None else (operator,)
    return Signature("adapt", judged or ("?",), "what adapt= makes of it", adapt, pools=pools, updated=updated)


def shadow_report() -> list[dict[str, Any]]:
    """`Shadow.report` of every shadow that this process ever had, in order."""
    return [each.report() for each in _shadows]


def flush_all(seconds: float = EXIT_SECONDS) -> bool:
    """Wait for every comparison, at most so long in all."""
    end = time.monotonic() + seconds
    waited = [each.flush(max(0.0, end - time.monotonic())) for each in _shadows]
    return all(waited)


def _finish() -> None:
    flush_all()
    for each in _shadows:
        each.active = False
    WORKER.stop()
    if _at_exit:
        from rich.console import Console

        from harness.shadow.report import print_report

        print_report(Console(stderr=True), shadow_report())


def _forked() -> None:
    WORKER.reset()
    for each in _shadows:
        each.forked()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
