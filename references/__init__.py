"""What is true: naive implementations of every operator, straight from its definition.

They import torch only, take the operator's packed arguments plus `compute_dtype`, and are written to be checked by
eye, not to be fast. With `compute_dtype=torch.float64` (the default) they are the oracle; with working-dtype inputs and
`compute_dtype=torch.float32` they show the error that no implementation of the same storage dtypes can avoid.
"""

from references.causal_conv import conv_prefill, conv_update
from references.chunk_metadata import chunk_metadata, count_extra_chunks
from references.gated_norm import gated_rmsnorm
from references.gdn import gates, gdn_decode, gdn_recurrence, l2norm
from references.gdn import gdn_recurrence as gdn_prefill
from references.gdn_chunked import gdn_chunked
from references.moe import moe, moe_experts, moe_routing
from references.step_metadata import StepMetadata, StepMetadataBuilder, step_metadata

__all__ = [
    "StepMetadata",
    "StepMetadataBuilder",
    "chunk_metadata",
    "conv_prefill",
    "conv_update",
    "count_extra_chunks",
    "gated_rmsnorm",
    "gates",
    "gdn_chunked",
    "gdn_decode",
    "gdn_prefill",
    "gdn_recurrence",
    "l2norm",
    "moe",
    "moe_experts",
    "moe_routing",
    "step_metadata",
]
