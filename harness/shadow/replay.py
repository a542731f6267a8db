"""A recorded mismatch again: what was seen is judged anew, and the function is called again on copies of its arguments."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.failure import Failure
from harness.shadow import files, patching, signatures
from harness.shadow.observation import Observation, judge
from harness.shadow.seen import NotJudged, Opaque, Seen, clone, map_tensors, rows
from harness.shadow.signature import Signature
from harness.subjects import load_target


@dataclass
class Again:
    """recorded: the failure of the recorded result, None where it is within its budget now. called: the failure of a new
    call, None where it holds or where there was none; ``not_called`` says why."""

    record: dict[str, Any]
    recorded: Failure | None
    called: Failure | None = None
    not_called: str = ""


def replay(path: Path, *, target: str | None = None, device: str = "cpu") -> Again:
    """Judge the record at ``path`` again; then call its target, or the one given here, on ``device``.

    Raises:
        ValueError: no such record, or one whose translation cannot be imported.
    """
    record, seen, observation = files.load(path)
    signature = _signature(record)
    if signature is not None:
        observation = signature.translate(seen)
    assert observation is not None
    again = Again(record, _failure(observation))
    try:
        if signature is None:
            raise NotJudged("adapt= of the record cannot be imported, so a new result cannot be translated")
        again.called = _call(record, target or record["target"], seen, signature, torch.device(device))
    except NotJudged as reason:
        again.not_called = str(reason)
    return again


def _failure(observation: Observation) -> Failure | None:
    try:
        judge(observation)
    except Failure as failure:
        return failure
    return None


def _signature(record: dict[str, Any]) -> Signature | None:
    if record["signature"] != "adapt":
        if record["signature"] not in signatures.BY_NAME:
            raise ValueError(f"signature: {record['signature']!r} of the record is not known to this version")
        return signatures.BY_NAME[record["signature"]]
    if record["adapt"] is None:
        return None
    kept = record["seen"]
    pools = {name: pool["indices"] for name, pool in kept["pools"].items()}
    translate = load_target(record["adapt"])
    return Signature("adapt", (record["operator"],), "", translate, pools=pools, updated=tuple(_names(kept["after"])))


def _names(encoded: dict[str, Any]) -> list[str]:
    return list(encoded["dict"])


def _call(
    record: dict[str, Any], target: str, seen: Seen, signature: Signature, device: torch.device
) -> Failure | None:
    """The failure of a new call; `NotJudged` where the call cannot be made."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = patching.find(target).function
    except ValueError as error:
        raise NotJudged(str(error)) from error
    opaque = [name for name in seen.given if isinstance(seen.arguments[name], Opaque)]
    if opaque or signature.reads:
        raise NotJudged(f"the target was called on objects that are not in the record ({', '.join(opaque)})")
    live = {name: _live(name, seen, signature, device) for name in seen.given}
    before = {name: map_tensors(value, lambda t: t.to(device)) for name, value in seen.arguments.items()}
    result = function(
        *(live[name] for name in seen.given[: seen.positional]),
        **{name: live[name] for name in seen.given[seen.positional :]},
    )
    after = {}
    for name in signature.updated:
        if name not in live:
            raise NotJudged(f"the argument {name}, which the call changes, was not given")
        after[name] = rows(live[name], before[signature.pools[name]]) if name in seen.pools else clone(live[name])
    cpu = [map_tensors(value, lambda t: t.detach().cpu()) for value in (result, after)]
    return _failure(signature.translate(Seen(dict(seen.arguments), result=cpu[0], after=cpu[1])))


def _live(name: str, seen: Seen, signature: Signature, device: torch.device) -> Any:
    """The argument as the host had it: strides too, and a pool around its rows."""
    value = seen.arguments[name]
    if name in seen.pools:
        shape, stride = seen.pools[name].shape, seen.pools[name].stride
        # Pages of zeros that nobody touches take no memory on a CPU, however large the pool was.
        pool = torch.zeros(
            1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)), dtype=value.dtype, device=device
        )
        pool = pool.as_strided(shape, stride)
        slots = seen.arguments[signature.pools[name]].long()
        own = slots >= 0
        pool[slots[own].to(device)] = value[own].to(device)
        return pool

    def lay_out(tensor: Tensor) -> Tensor:
        stride = seen.strides.get(id(tensor), tensor.stride())
        overlapping = any(step == 0 and size > 1 for step, size in zip(stride, tensor.shape, strict=True))
        if overlapping or tensor.dim() == 0:
            return tensor.to(device)
        return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=device).copy_(tensor)

    return map_tensors(value, lay_out)
