"""The contract between an operator and everything generic: strategies, execution, judging, words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from harness import execution
from harness.batch import Batch, Result
from harness.case import AnyCase, Case, Layout, Segment
from harness.failure import Row, fail
from harness.memory import Arena, Fill, poisoned
from harness.plural import plural
from harness.strategies import Scale

#: 4 x 600M elements: beyond 2^31, with a stride that still fits an int32.
HIGH_SLOT = 4
HIGH_STRIDE = 600_000_000

AMPLITUDES = {"unit": 1.0, "tiny": 1e-4, "large": 30.0}


def torch_dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


class Operator(ABC):
    """One operator of the field, as the harness sees it."""

    name: ClassVar[str]
    #: One line for ``sluicegate list``.
    summary: ClassVar[str]
    #: dtypes of its cells; metadata operators have one.
    dtypes: ClassVar[tuple[str, ...]]
    case_type: ClassVar[Any]
    #: Rows are single tokens with an existing state: no flags, no lengths.
    decode: ClassVar[bool] = False
    #: Kernels that one call may launch.
    max_launches: ClassVar[int] = 1
    #: Whether the sources of its subjects are changed for generated faults, too.
    mutated: ClassVar[bool] = True

    @abstractmethod
    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Any]:
        """Cases of this dtype for this scale."""

    def compile_cases(self, dtype: str) -> Iterator[AnyCase]:
        """Cases at the shapes of real models: `harness.compiling` compiles the kernels that they launch. None by default."""
        return iter(())

    @abstractmethod
    def describe(self, case: Any) -> str:
        """The case in a sentence that a person would say."""

    def smaller(self, case: Any) -> Iterator[Any]:
        """Smaller cases, the boldest first, of an operator that has a kind of case of its own."""
        return iter(())

    def case_from_json(self, data: Mapping[str, Any]) -> AnyCase:
        case: AnyCase = self.case_type.from_json(data)
        return case

    def coverage(self, case: Any) -> dict[str, list[str | int]]:
        """What this case adds to the report's coverage drawings: axis to values."""
        return {"length": list(case.lengths), "sequences": [len(case.lengths)], "dtype": [case.dtype]}


class TokenOperator(Operator):
    """An operator over packed tokens. Its batches hold them in segments, so that relations can pack, permute and perturb.

    This class knows no state: a segment is some tokens, and nothing else about it matters.
    """

    case_type = Case
    dtypes = ("float32", "float16", "bfloat16")
    token_inputs: ClassVar[tuple[str, ...]]
    #: Results hold integers where others have states: what was chosen for each token. They must equal the reference's.
    chooses: ClassVar[bool] = False
    #: For `run_far_apart`: how many of the first arguments are placed so, the elements from one row to the next, and the
    #: tokens that it takes until an offset needs more than 31 bits.
    far_arguments: ClassVar[int] = 0
    far_pitch: ClassVar[int] = HIGH_STRIDE
    far_tokens: ClassVar[int] = 5

    # -- contents ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def batch(self, case: Case, device: torch.device) -> Batch:
        """The contents of a case on a device: same case, same device type, same bits."""

    @abstractmethod
    def output_shape(self, batch: Batch, tokens: int) -> tuple[int, ...]: ...

    def output_dtype(self, batch: Batch) -> torch.dtype:
        return batch.tokens[0][self.token_inputs[0]].dtype

    @abstractmethod
    def pack(self, batch: Batch, arena: Arena) -> execution.Call:
        """Place the batch into hostile memory in the operator's calling convention."""

    # -- truth ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def reference(self, batch: Batch, *, compute: torch.dtype, storage: torch.dtype | None) -> Result:
        """The naive reference on this batch, in ``compute``; ``storage`` None keeps the batch's dtypes, else casts all."""

    @abstractmethod
    def magnitude(self, batch: Batch) -> Result:
        """|terms| of `harness.budget`, in the shapes of a result."""

    def oracle(self, batch: Batch) -> Result:
        return self.reference(batch, compute=torch.float64, storage=torch.float64)

    def model(self, batch: Batch) -> Result:
        return self.reference(batch, compute=torch.float32, storage=None)

    def operand_noise(self, batch: Batch) -> Result | None:
        """What rounding operands to their dtype does, in the shapes of a result (`harness.budget`); None: nothing is."""
        return None

    # -- relations --------------------------------------------------------------------------------------------------

    def perturbed(self, name: str, tensor: Tensor) -> Tensor:
        """Other contents for this input or state: finite, everywhere different, of the same dtype and size class."""
        return (tensor.float() * -0.75 + 0.5).to(tensor.dtype)

    # -- one call ---------------------------------------------------------------------------------------------------

    def run(
        self,
        function: Callable[..., Any],
        batch: Batch,
        *,
        device: torch.device,
        check_memory: bool = True,
        fill: Fill = poisoned,
    ) -> Result:
        """Call ``function`` on the batch in hostile memory; check shape, dtype and memory."""
        call = self.pack(batch, Arena(device, fill))
        out = execution.invoke(function, call, check_memory=check_memory, what=self.name)
        return self.unpack(out, call, batch)

    def run_far_apart(self, function: Callable[..., Any], batch: Batch, *, device: torch.device) -> Result:
        """Call ``function`` on views whose last token lies more than 2^31 elements behind the first.

        They are column slices of one huge buffer; its pages between the tokens are never touched on a CPU, where as many lie
        before the first one, so that an offset that wraps around still hits mapped memory.
        """
        call = self.pack(batch.with_layout(Layout(wide_indices=batch.layout.wide_indices)), Arena(device))
        near = call.arguments[: self.far_arguments]
        lead = 2**31 if device.type == "cpu" else 0
        last, width = (near[0].shape[0] - 1) * self.far_pitch, sum(rows[0].numel() for rows in near)
        storage = torch.empty(lead + last + width, dtype=near[0].dtype, device=device)
        far, column = [], lead
        for rows in near:
            strides = (self.far_pitch, *rows.stride()[1:])
            far.append(storage.as_strided(rows.shape, strides, column).copy_(rows))
            column += rows[0].numel()
        call = replace(call, arguments=(*far, *call.arguments[self.far_arguments :]))
        return self.unpack(execution.invoke(function, call, check_memory=False, what=self.name), call, batch)

    def unpack(self, out: Any, call: execution.Call, batch: Batch) -> Result:
        """What a call returned, by segment; checks shape and dtype."""
        expected = self.output_shape(batch, sum(batch.lengths))
        dtype = self.output_dtype(batch)
        if not isinstance(out, Tensor):
            fail("wrong shape", f"{self.name} returned {type(out).__name__}, expected a tensor of shape {expected}")
        if tuple(out.shape) != expected:
            fail("wrong shape", f"{self.name} returned shape {tuple(out.shape)}, expected {expected}")
        if out.dtype != dtype:
            fail("wrong dtype", f"{self.name} returned {out.dtype}, expected {dtype}, the dtype of its inputs")
        return Result(tuple(out.clone().split(batch.lengths)), (None,) * batch.size)

    def parts(self, out: Any) -> tuple[Tensor, ...]:
        """The tensors that a call returned, rows of floats first."""
        return (out,)

    # -- packing helpers --------------------------------------------------------------------------------------------

    def place_tokens(self, batch: Batch, arena: Arena, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """The token tensors (or these of them), packed, in the batch's layout."""
        layout = batch.layout
        packed = {name: batch.packed(name) for name in names or self.token_inputs}
        if layout.fused and len(packed) > 1:
            return arena.place_fused(packed, row_pad=layout.row_pad, offset=layout.base_offset)
        placed = {}
        # Each input has pitches of its own: two that agree would hide that one is read with the other's.
        for place, (name, content) in enumerate(packed.items(), start=1):
            strides = list(content.contiguous().stride())
            if content.dim() == 3:
                strides[1] += place * layout.head_pad
                strides[0] = strides[1] * content.shape[1]
            strides[0] += place * layout.row_pad
            placed[name] = arena.place(name, content, strides=strides, offset=layout.base_offset)
        return placed


class SequenceOperator(TokenOperator):
    """An operator over a packed batch of sequences with one state slot each."""

    state_name: ClassVar[str]
    #: The state row is a copy of inputs, so it must equal the reference's bit for bit.
    state_is_copy: ClassVar[bool] = False

    @abstractmethod
    def state_shape(self, batch: Batch) -> tuple[int, ...]: ...

    # -- one call ---------------------------------------------------------------------------------------------------

    def run_in_high_slot(self, function: Callable[..., Any], batch: Batch, *, device: torch.device) -> Result:
        """Call ``function`` on a batch of one sequence whose slot lies more than 2^31 elements into the pool.

        The stride fits 31 bits and the product does not, as in a real pool. On a CPU the pages between are never touched,
        and as many lie before the pool, so that an offset that wraps around still hits mapped memory.
        """
        moved = batch.with_slots([HIGH_SLOT], HIGH_SLOT + 1).with_layout(Layout(wide_indices=batch.layout.wide_indices))
        call = self.pack(batch.with_slots([0], 1).with_layout(moved.layout), Arena(device))
        row = call.keywords[self.state_name][0]
        lead = 2**31 if device.type == "cpu" else 0
        storage = torch.empty(lead + HIGH_SLOT * HIGH_STRIDE + row.numel(), dtype=row.dtype, device=device)
        pool = storage.as_strided((HIGH_SLOT + 1, *row.shape), (HIGH_STRIDE, *row.contiguous().stride()), lead)
        pool[HIGH_SLOT] = row
        call.keywords[self.state_name] = pool
        call.keywords["state_indices"].fill_(HIGH_SLOT)
        out = execution.invoke(function, call, check_memory=False, what=self.name)
        return self.unpack(out, call, moved)

    def unpack(self, out: Any, call: execution.Call, batch: Batch) -> Result:
        """Checks inactive rows too, and takes each active sequence's slot out of the pool."""
        outputs = super().unpack(out, call, batch).outputs
        idle = [i for i, segment in enumerate(batch.segments) if not segment.active]
        if idle and not bool((torch.cat([outputs[i] for i in idle]) == 0).all()):
            for i in (i for i in idle if not bool((outputs[i] == 0).all())):
                row = outputs[i].reshape(-1)[:6].double().tolist()
                fail(
                    "inactive row not zero",
                    f"sequence {i} has a negative slot, so its output rows must be zero",
                    [Row(f"sequence {i}", [0.0] * len(row), row)],
                )
        pool = call.keywords[self.state_name]
        rows = torch.tensor([s.slot for s in batch.segments if s.active], dtype=torch.int64, device=pool.device)
        stored = iter(pool[rows])  # an index copies
        states = tuple(next(stored) if s.active else None for s in batch.segments)
        return Result(outputs, states)

    # -- packing helpers --------------------------------------------------------------------------------------------

    def place_pool(self, batch: Batch, arena: Arena, dtype: torch.dtype) -> Tensor:
        """The state pool: rows of resumed sequences hold their state, the others the arena's fill; active rows may change."""
        shape = self.state_shape(batch)
        content = arena.fill((batch.pool_slots, *shape), dtype, arena.device)
        writable, held = [], {}
        for segment, state in zip(batch.segments, batch.states, strict=True):
            if segment.active and state is not None:
                held[segment.slot] = state
            # An empty resumed sequence leaves its slot untouched (design decision 4).
            if segment.active and not (segment.length == 0 and segment.kind == "resumed"):
                writable.append(segment.slot)
        if held:
            content[torch.tensor(list(held), device=arena.device)] = torch.stack(list(held.values()))
        inner = content.stride()[1:]
        slot_stride = content[0].numel() + batch.layout.slot_pad
        return arena.place(self.state_name, content, strides=(slot_stride, *inner), writable_rows=writable)

    def place_slots(self, batch: Batch, arena: Arena) -> Tensor:
        dtype = torch.int64 if batch.layout.wide_indices else torch.int32
        slots = torch.tensor(
            [s.slot if s.active else batch.case.pad_slot for s in batch.segments], dtype=dtype, device=arena.device
        )
        return arena.place("state_indices", slots, strides=(3,) if batch.layout.strided_indices else None)

    def place_starts(self, batch: Batch, arena: Arena) -> Tensor:
        dtype = torch.int64 if batch.layout.wide_indices else torch.int32
        starts = torch.tensor([0, *batch.lengths], dtype=dtype, device=arena.device).cumsum(0, dtype=dtype)
        return arena.place("cu_seqlens", starts)

    def place_flags(self, batch: Batch, arena: Arena) -> Tensor:
        # The flag of an inactive row means nothing; true is the value that would do harm.
        flags = [s.kind != "fresh" for s in batch.segments]
        return arena.place("has_initial_state", torch.tensor(flags, dtype=torch.bool, device=arena.device))


# -- drawing contents -----------------------------------------------------------------------------------------------


def generator(case: Case, device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(case.seed)


def only_resumed(segments: tuple[Segment, ...], states: Tensor) -> tuple[Tensor | None, ...]:
    """From states [N, ...], those of the sequences that resume."""
    return tuple(state if s.kind == "resumed" else None for s, state in zip(segments, states, strict=True))


# -- words ----------------------------------------------------------------------------------------------------------


def say_segments(case: Case, *, decode: bool, limit: int = 6) -> str:
    """``2 sequences: 3 fresh tokens in slot 5, 1 resumed token in slot 0``."""
    parts = []
    for segment in case.sequences[:limit]:
        if not segment.active:
            parts.append(
                f"an inactive row (slot {case.pad_slot})"
                if decode
                else f"{plural(segment.length, 'inactive token')} (slot {case.pad_slot})"
            )
        elif decode:
            parts.append(f"slot {segment.slot}")
        else:
            word = f"{segment.kind} token"
            parts.append(f"{plural(segment.length, word)} in slot {segment.slot}")
    if len(case.sequences) > limit:
        parts.append(f"… and {len(case.sequences) - limit} more")
    return f"{plural(len(case.sequences), 'row' if decode else 'sequence')}: {', '.join(parts)}"


def say_rest(case: Case, *, stateless: bool = False) -> str:
    """Dims, dtypes, and only those options and layout fields that are not plain."""
    words = [" ".join(f"{k}={v}" for k, v in case.dims.items())]
    state = "" if case.state_dtype == case.dtype else f", {case.state_dtype} state"
    words.append(case.dtype if stateless else f"{case.dtype}{state}, pool of {case.pool_slots} slots")
    plain = {"unit", "random", "mixed"}
    regimes = [f"{k} {v}" for k, v in case.regime.items() if v not in plain]
    options = [
        k.replace("_", " ") if v is True else f"{k}={v}"
        for k, v in case.options.items()
        if v is not None and v is not False
    ]
    layout = [
        f"{name.replace('_', ' ')}" if value is True else f"{name.replace('_', ' ')} {value}"
        for name, value in vars(case.layout).items()
        if value
    ]
    words += [", ".join(regimes + options)] if regimes or options else []
    words += ["layout: " + ", ".join(layout)] if layout else []
    return "; ".join(words)
