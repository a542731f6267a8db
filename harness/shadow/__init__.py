"""Every n-th call of a function of somebody else's engine, in their process, compared with our reference.

    from harness.shadow import shadow
    shadow("tensorrt_llm._torch.modules.mamba.mamba2_metadata:cu_seqlens_to_chunk_indices_offsets_triton", every=100)

``docs/shadow.md`` says what is copied, what it costs and what is not seen.
"""

from harness.shadow.api import shadow, shadow_report
from harness.shadow.observation import Observation
from harness.shadow.seen import NotJudged, Seen
from harness.shadow.signature import Signature
from harness.shadow.wrapper import Shadow

__all__ = ["shadow", "shadow_report", "Shadow", "Signature", "Seen", "Observation", "NotJudged"]
