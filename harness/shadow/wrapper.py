"""The stand-in for one function: it calls the function, and has every n-th call compared with the reference."""

from __future__ import annotations

import functools
import inspect
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.failure import Failure
from harness.shadow import files, patching
from harness.shadow.counts import Counts
from harness.shadow.observation import Observation, judge
from harness.shadow.seen import NotJudged, Pool, Seen, clone, map_tensors, nbytes, row_bytes, rows
from harness.shadow.signature import Signature
from harness.shadow.worker import WORKER, busy, own_work

#: Of mismatches, the sentences that a report repeats.
SHOWN = 20


class Shadow:
    """What `shadow` returns: a context manager, and the counts of its target."""

    def __init__(
        self,
        target: patching.Target,
        signature: Signature,
        place: patching.Place,
        parameters: inspect.Signature,
        *,
        every: int,
        out: Path,
        everywhere: bool,
        inline: bool,
        queue: int,
        max_bytes: int,
        keep: int,
        where: str,
    ) -> None:
        self.target, self.signature = patching.describe(target), signature
        self.every, self.out, self.keep, self.where = every, out, keep, where
        self.counts = Counts()
        self.first_error = ""
        self.mismatches: list[dict[str, Any]] = []
        self.worst_share = 0.0
        self.active = True
        self.notes: list[str] = []
        self._inline, self._queue, self._max_bytes = inline, queue, max_bytes
        self._waiting = self._waiting_bytes = 0
        self._lock = threading.Condition()
        self._parameters = parameters
        self._function = place.function
        self._places = [place, *(patching.elsewhere(place.function, place) if everywhere else [])]
        wrapper = self._wrapper()
        for each in self._places:
            each.put(wrapper)

    # -- in the host's way ------------------------------------------------------------------------------------------

    def _wrapper(self) -> Callable[..., Any]:
        function = self._function

        @functools.wraps(function)
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            call = self._due()
            return self._observe(call, args, kwargs) if call else function(*args, **kwargs)

        setattr(stand_in, patching.MARK, self)
        return stand_in

    def _due(self) -> int:
        """The number of this call, from 1; 0 where it is not to be observed."""
        if not self.active or busy():
            return 0
        with self._lock:
            self.counts.calls += 1
            if (self.counts.calls - 1) % self.every:
                return 0
            self.counts.observed += 1
            return self.counts.calls

    def _observe(self, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen, live = self._before(call, args, kwargs)
        try:
            result = self._function(*args, **kwargs)
        except BaseException:
            if seen is not None:
                with self._lock:
                    self.counts.raised += 1
                self._release(seen.cost)
            raise
        if seen is not None:
            self._after(seen, live, result)
        return result

    def _before(self, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Seen | None, dict[str, Any]]:
        """Copies of the arguments, and the arguments themselves; no copies where this call is not compared."""
        with own_work():
            try:
                if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                    raise NotJudged("CUDA graph capture")
                live = self._bind(args, kwargs)
                cost = self._cost(live)
                if not self._reserve(cost):
                    return None, {}
                positional = list(self._parameters.parameters)[: len(args)]
                seen = Seen({}, (*positional, *kwargs), len(args), call=call, cost=cost)
                try:
                    for name, value in live.items():
                        seen.arguments[name] = self._copy(value, self._indices(name, live), seen)
                        if self._indices(name, live) is not None:
                            seen.pools[name] = Pool(tuple(value.shape), value.stride())
                except BaseException:
                    self._release(cost)
                    raise
                return seen, live
            except NotJudged as reason:
                self._skip(reason)
            except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
                self._error(error)
        return None, {}

    def _after(self, seen: Seen, live: dict[str, Any], result: Any) -> None:
        with own_work():
            try:
                fields = self.signature.fields
                got = {name: getattr(result, name) for name in fields} if fields else result
                seen.result = map_tensors(got, clone)
                # The slots are those from before the call: the host may have changed their buffer too.
                for name in self.signature.updated:
                    seen.after[name] = self._copy(live[name], self._indices(name, {**live, **self._slots(seen)}), seen)
                job = functools.partial(self._compare, seen, _event(seen))
                if self._inline:
                    job()
                else:
                    WORKER.put(job)
            except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
                self._release(seen.cost)
                self._error(error)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        live: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self._parameters.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                live |= value
            else:
                live[name] = value
        for name, attributes in self.signature.reads.items():
            live |= {f"{name}.{attribute}": getattr(live[name], attribute) for attribute in attributes}
        return live

    def _indices(self, name: str, arguments: dict[str, Any]) -> Tensor | None:
        """Where to find the rows of a pool; None where the argument is no pool in this call."""
        indices = arguments.get(self.signature.pools.get(name, ""))
        is_pool = isinstance(indices, Tensor) and indices.dim() == 1 and isinstance(arguments[name], Tensor)
        return indices if is_pool else None

    def _cost(self, live: dict[str, Any]) -> int:
        """Bytes of the copies, but for the result's."""
        total = 0
        for name, value in live.items():
            indices = self._indices(name, live)
            size = nbytes(value) if indices is None else row_bytes(value, indices)
            total += size * (2 if name in self.signature.updated else 1)
        return total

    def _slots(self, seen: Seen) -> dict[str, Any]:
        return {name: seen.arguments[name] for name in self.signature.pools.values() if name in seen.arguments}

    @staticmethod
    def _copy(value: Any, indices: Tensor | None, seen: Seen) -> Any:
        if indices is not None:
            return rows(value, indices)

        def keep(tensor: Tensor) -> Tensor:
            copy = clone(tensor)
            seen.strides[id(copy)] = tensor.stride()
            return copy

        return map_tensors(value, keep)

    # -- room -------------------------------------------------------------------------------------------------------

    def _reserve(self, size: int) -> bool:
        with self._lock:
            if not self._inline and (self._waiting >= self._queue or self._waiting_bytes + size > self._max_bytes):
                self.counts.dropped += 1
                return False
            self._waiting += 1
            self._waiting_bytes += size
            return True

    def _release(self, cost: int) -> None:
        with self._lock:
            self._waiting -= 1
            self._waiting_bytes -= cost
            self._lock.notify_all()

    # -- out of the host's way --------------------------------------------------------------------------------------

    def _compare(self, seen: Seen, event: Any) -> None:
        observation: Observation | None = None
        try:
            seen = _moved(seen, self.where, event)
            observation = self.signature.translate(seen)
            share = judge(observation)
            with self._lock:
                self.counts.compared += 1
                self.worst_share = max(self.worst_share, share)
        except NotJudged as reason:
            self._skip(reason)
        except Failure as failure:
            self._mismatch(failure, seen, observation)
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
            self._error(error)
        finally:
            self._release(seen.cost)

    def _mismatch(self, failure: Failure, seen: Seen, observation: Observation | None) -> None:
        with self._lock:
            self.counts.compared += 1
            self.counts.mismatches += 1
            kept = self.counts.mismatches <= self.keep
        entry: dict[str, Any] = {"call": seen.call, "symptom": failure.symptom, "message": failure.message}
        try:
            if kept:
                entry["file"] = str(files.save(self.out, self, failure, seen, observation))
        except Exception as error:  # noqa: BLE001 - a full disk must not end the host
            self._error(error)
        with self._lock:
            if len(self.mismatches) < SHOWN:
                self.mismatches.append(entry)

    def _skip(self, reason: NotJudged) -> None:
        with self._lock:
            self.counts.skipped[str(reason)] += 1

    def _error(self, error: Exception) -> None:
        with self._lock:
            self.counts.errors += 1
            self.first_error = self.first_error or "".join(traceback.format_exception(error))

    # -- for whoever put it there -----------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every copied call is compared; false if that takes longer than ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while self._waiting:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._lock.wait(left)
        return True

    def remove(self) -> None:
        """Put the function back. Calls through references to the stand-in pass straight through from now on."""
        if not self.active:
            return
        self.active = False
        for place in self._places:
            if not place.restore():
                self.notes.append(f"{place.name} was replaced by somebody else meanwhile and was left as it is")

    def __enter__(self) -> Shadow:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
        self.flush()

    def report(self) -> dict[str, Any]:
        """Counts, the first error's traceback, mismatches and their files, as plain data."""
        with self._lock:
            return {
                "target": self.target,
                "signature": self.signature.name,
                "operators": list(self.signature.operators),
                "every": self.every,
                "active": self.active,
                "counts": self.counts.to_json(),
                "waiting": self._waiting,
                "worst_share": self.worst_share,
                "mismatches": [dict(entry) for entry in self.mismatches],
                "first_error": self.first_error,
                "notes": list(self.notes),
            }

    def forked(self) -> None:
        """In a forked child: observe nothing any more.

        torch's CPU threads do not survive a fork, so that a comparison there may wait forever. What waited is the parent's.
        """
        self._lock = threading.Condition()
        self._waiting = self._waiting_bytes = 0
        self.active = False
        self.notes.append(
            "off in this process, which was forked; a process that is spawned can have shadows of its own"
        )


def _event(seen: Seen) -> Any:
    """What to wait for until the copies are made; None on a CPU."""
    devices: list[torch.device] = []
    map_tensors([seen.arguments, seen.result, seen.after], lambda tensor: devices.append(tensor.device))
    cuda = next((device for device in devices if device.type == "cuda"), None)
    return None if cuda is None else torch.cuda.current_stream(cuda).record_event()


def _moved(seen: Seen, where: str, event: Any) -> Seen:
    """The copies where they are compared, through a stream of their own."""
    if event is None:
        return seen
    event.synchronize()
    if where != "cpu":
        return seen
    strides: dict[int, tuple[int, ...]] = {}

    def move(tensor: Tensor) -> Tensor:
        there = tensor.cpu()
        if id(tensor) in seen.strides:
            strides[id(there)] = seen.strides[id(tensor)]
        return there

    with torch.cuda.stream(torch.cuda.Stream(event.device)):
        arguments, result, after = (map_tensors(x, move) for x in (seen.arguments, seen.result, seen.after))
    return replace(seen, arguments=arguments, result=result, after=after, strides=strides)
