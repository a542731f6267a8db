"""The operators by name. Adding one: its reference, its module here, its line below, its file in ``properties/``.

Other packages bring theirs through the entry-point group ``sluicegate.operators``, a line ``name = "module:OperatorClass"``;
one is imported when it is first asked for, so a name costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points

from harness.operators.base import Operator
from harness.operators.chunk_metadata import ChunkMetadata
from harness.operators.conv_prefill import ConvPrefill
from harness.operators.conv_update import ConvUpdate
from harness.operators.gated_rmsnorm import GatedRmsNorm
from harness.operators.gdn_decode import GdnDecode
from harness.operators.gdn_prefill import GdnPrefill
from harness.operators.moe import Moe
from harness.operators.moe_routing import MoeRouting
from harness.operators.step_metadata import StepMetadataOperator

GROUP = "sluicegate.operators"

BUILT_IN: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        ChunkMetadata(),
        StepMetadataOperator(),
        ConvPrefill(),
        ConvUpdate(),
        GdnDecode(),
        GdnPrefill(),
        GatedRmsNorm(),
        MoeRouting(),
        Moe(),
    )
}


class _Operators(Mapping[str, Operator]):
    """Ours first, then those of other packages by name."""

    def __init__(self) -> None:
        self._known = dict(BUILT_IN)

    @cached_property
    def _brought(self) -> dict[str, EntryPoint]:
        found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
        twice = [entry.name for entry in found if entry.name in BUILT_IN]
        if twice:
            raise ValueError(f"{GROUP}: got {', '.join(twice)}, which is an operator already; expected another name")
        return {entry.name: entry for entry in found}

    def __getitem__(self, name: str) -> Operator:
        if name not in self._known:
            made: Operator = self._brought[name].load()()
            if made.name != name:
                raise ValueError(f"{GROUP}: {name!r} brings an operator called {made.name!r}, expected the same name")
            self._known[name] = made
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*BUILT_IN, *self._brought])

    def __len__(self) -> int:
        return len(BUILT_IN) + len(self._brought)

    def __contains__(self, name: object) -> bool:
        return name in BUILT_IN or name in self._brought


OPERATORS: Mapping[str, Operator] = _Operators()


def get(name: str) -> Operator:
    if name not in OPERATORS:
        raise ValueError(f"operator: got {name!r}, expected one of {', '.join(OPERATORS)}")
    return OPERATORS[name]
