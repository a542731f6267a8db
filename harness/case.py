"""A case: everything needed to build one input again, as data.

Hypothesis draws cases, never tensors. A case is a frozen dataclass of small integers and words; the tensors follow
from it and its seed, on any device. It round-trips through JSON, which is what ``sluicegate replay`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

Kind = Literal["fresh", "resumed", "inactive"]

#: Values a caller may use for an inactive row; any negative index means the same (design decision 2).
PAD_SLOT = -1


@dataclass(frozen=True)
class Segment:
    """One sequence of a packed batch.

    length: tokens in this call. kind: ``fresh`` ignores the slot's content, ``resumed`` continues from it, ``inactive``
    reads and writes no state and yields zero rows. slot: row of the state pool; ignored when inactive.
    """

    length: int
    kind: Kind = "fresh"
    slot: int = 0

    @property
    def active(self) -> bool:
        return self.kind != "inactive"


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a case lie in memory.

    row_pad: extra elements between token rows. head_pad: extra elements between heads. base_offset: elements before the
    first one, so that pointers lose their alignment. slot_pad: extra elements between slots of a state pool. fused: the
    token tensors are column slices of one wider buffer, as a model's projection output is. strided_indices: the slot
    vector is a column of a wider table. wide_indices: index tensors are int64 instead of int32.
    """

    row_pad: int = 0
    head_pad: int = 0
    base_offset: int = 0
    slot_pad: int = 0
    fused: bool = False
    strided_indices: bool = False
    wide_indices: bool = False

    @property
    def dense(self) -> bool:
        return self == Layout(wide_indices=self.wide_indices)


def _freeze(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(sorted(mapping.items())))


@dataclass(frozen=True)
class Case:
    """One packed batch for one operator.

    dims: head counts, widths and the like, by the field's letters. dtype: of the activations. state_dtype: of the pool.
    regime: how contents are drawn (amplitude, decay, keys). options: switches of the operator (bias, activation, hints).
    pool_slots: rows of the state pool. pad_slot: the negative number that marks inactive rows. choice: one free integer
    that a relation may turn into a split point, a row or a permutation. seed: of all contents.
    """

    operator: str
    sequences: tuple[Segment, ...]
    dims: Mapping[str, int]
    dtype: str = "float32"
    state_dtype: str = "float32"
    regime: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = Layout()
    pool_slots: int = 1
    pad_slot: int = PAD_SLOT
    choice: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dims", "regime", "options"):
            object.__setattr__(self, name, _freeze(getattr(self, name)))
        object.__setattr__(self, "sequences", tuple(self.sequences))

    @property
    def lengths(self) -> list[int]:
        return [segment.length for segment in self.sequences]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return {
            "operator": self.operator,
            "sequences": [[s.length, s.kind, s.slot] for s in self.sequences],
            "dims": dict(self.dims),
            "dtype": self.dtype,
            "state_dtype": self.state_dtype,
            "regime": dict(self.regime),
            "options": dict(self.options),
            "layout": asdict(self.layout),
            "pool_slots": self.pool_slots,
            "pad_slot": self.pad_slot,
            "choice": self.choice,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        fields = dict(data)
        fields["sequences"] = tuple(Segment(*row) for row in data["sequences"])
        fields["layout"] = Layout(**data["layout"])
        return cls(**fields)


@dataclass(frozen=True)
class Step:
    """One call of a step builder's ``prepare``: rows in the order of the batch, contexts first."""

    seq_lens: tuple[int, ...]
    num_contexts: int
    num_cached_tokens: tuple[int, ...]
    state_slots: tuple[int, ...]

    def arguments(self) -> dict[str, Any]:
        return {
            "seq_lens": list(self.seq_lens),
            "num_contexts": self.num_contexts,
            "num_cached_tokens": list(self.num_cached_tokens),
            "state_slots": list(self.state_slots),
        }


@dataclass(frozen=True)
class StepCase:
    """The life of one step builder: its construction and every ``prepare`` up to the one that is judged."""

    operator: str
    steps: tuple[Step, ...]
    max_batch_size: int
    chunk_size: int
    dtype: str = "int32"
    seed: int = 0

    @property
    def lengths(self) -> list[int]:
        return list(self.steps[-1].seq_lens) if self.steps else []

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["steps"] = [step.arguments() for step in self.steps]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepCase:
        fields = dict(data)
        fields["steps"] = tuple(
            Step(
                tuple(step["seq_lens"]),
                step["num_contexts"],
                tuple(step["num_cached_tokens"]),
                tuple(step["state_slots"]),
            )
            for step in data["steps"]
        )
        return cls(**fields)


class OtherCase(Protocol):
    """What an operator with a kind of case of its own must give: a frozen dataclass, whose ``repr`` tells cases apart."""

    @property
    def operator(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def lengths(self) -> list[int]: ...
    @property
    def tokens(self) -> int: ...
    def to_json(self) -> dict[str, Any]: ...


AnyCase = Case | StepCase | OtherCase
