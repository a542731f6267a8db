"""Every access to memory of a kernel that is interpreted, reported to who watches: `harness.bounds`, `harness.races`."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness import bounds, races


def watch(upstream: Any) -> None:
    """Patch Triton's interpreter, a module. An AttributeError: it has another shape than the ones known here."""
    builder, executor, handle = upstream.InterpreterBuilder, upstream.GridExecutor, upstream.TensorHandle
    launch, raw_load = executor.__call__, upstream._interpreter.load
    load, store, barrier = builder.create_masked_load, builder.create_masked_store, builder.create_barrier
    update, swap = builder.create_atomic_rmw, builder.create_atomic_cas

    def watched_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        if (watching := bounds.current()) is None:
            # One that nobody watches is held to its buffers by itself.
            with bounds.watched() as watching:
                watched_launch(self, *args, **kwargs)
            watching.check()
            return
        name = getattr(self.fn, "__name__", "the kernel")
        watching.launched(name, (*args, *kwargs.values()))
        if race := races.current():
            race.launched(name, watching.buffers)
        launch(self, *args, **kwargs)

    def allowed(pointers: Any, mask: Any, verb: str) -> np.ndarray:
        """The mask of what may be done: what lies in no buffer's storage is not."""
        # Behind a block pointer or a descriptor, 3.6 has the mask as an array of numpy's.
        given: np.ndarray = mask if isinstance(mask, np.ndarray) else mask.data
        watching = bounds.current()
        return given if watching is None else watching.accessed(pointers.data, given, _size(pointers), verb)

    def masked(values: np.ndarray) -> Any:
        return handle(values, upstream.tl.int1)

    def watched_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        active = allowed(pointers, mask, "reads")
        if race := races.current():
            race.accessed(self.grid_idx, pointers.data, active, _size(pointers), writes=False)
        return load(self, pointers, masked(active), *rest, **named)

    def watched_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        active = allowed(pointers, mask, "writes")
        if race := races.current():
            changed = active & _differ(raw_load, pointers.data, value.data, active)
            race.accessed(self.grid_idx, pointers.data, changed, _size(pointers), writes=True)
        return store(self, pointers, value, masked(active), *rest, **named)

    def watched_update(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        if race := races.current():
            race.ordered()
        return update(self, op, pointers, value, masked(allowed(pointers, mask, "updates")), *rest, **named)

    def watched_swap(self: Any, pointers: Any, expected: Any, *rest: Any, **named: Any) -> Any:
        if race := races.current():
            race.ordered()
        active = allowed(pointers, np.ones_like(pointers.data, dtype=bool), "updates")
        if not active.all():
            # There is no mask. What may not be swapped is swapped in a place of nobody's.
            nowhere = np.zeros(1, dtype=np.uint64)
            pointers = handle(np.where(active, pointers.data, np.uint64(nowhere.ctypes.data)), pointers.dtype)
        return swap(self, pointers, expected, *rest, **named)

    def watched_barrier(self: Any) -> Any:
        if race := races.current():
            race.barrier()
        return barrier(self)

    executor.__call__ = watched_launch
    builder.create_masked_load, builder.create_masked_store = watched_load, watched_store
    builder.create_atomic_rmw, builder.create_atomic_cas = watched_update, watched_swap
    builder.create_barrier = watched_barrier


def _size(pointers: Any) -> int:
    """Bytes of an element."""
    return max(pointers.get_element_ty().primitive_bitwidth // 8, 1)


def _differ(raw_load: Any, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Where memory holds other bits than those to be stored."""
    there = raw_load(pointers, mask, np.zeros(pointers.shape, value.dtype), value.dtype)
    bits = np.dtype(f"u{value.itemsize}")
    return np.asarray(np.ascontiguousarray(there).view(bits) != np.ascontiguousarray(value).view(bits)).reshape(
        mask.shape
    )
