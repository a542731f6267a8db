"""The operators by name. Adding one: its reference, its module here, its line below, its file in ``properties/``."""

from __future__ import annotations

from harness.operators.base import Operator
from harness.operators.chunk_metadata import ChunkMetadata
from harness.operators.conv_prefill import ConvPrefill
from harness.operators.conv_update import ConvUpdate
from harness.operators.gated_rmsnorm import GatedRmsNorm
from harness.operators.gdn_decode import GdnDecode
from harness.operators.gdn_prefill import GdnPrefill
from harness.operators.step_metadata import StepMetadataOperator

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        ChunkMetadata(),
        StepMetadataOperator(),
        ConvPrefill(),
        ConvUpdate(),
        GdnDecode(),
        GdnPrefill(),
        GatedRmsNorm(),
    )
}


def get(name: str) -> Operator:
    if name not in OPERATORS:
        raise ValueError(f"operator: got {name!r}, expected one of {', '.join(OPERATORS)}")
    return OPERATORS[name]
