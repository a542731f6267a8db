"""The gated delta rule over packed sequences of many tokens each, state in place by slot (spec section 3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from harness import strategies
from harness.batch import Batch, Result
from harness.case import Case, Layout, Segment
from harness.execution import Call
from harness.memory import Arena
from harness.operators import delta_terms, published
from harness.operators.base import AMPLITUDES, only_resumed, torch_dtype
from harness.operators.delta_rule import DECAYS, KEYS, DeltaRule, delta_cases, draw_decay_rates, draw_keys, draws
from harness.strategies import Scale
from references.gdn_chunked import gdn_chunked

#: Tokens of a chunk: kernels use one of these.
CHUNKS = (16, 32, 64, 128)
#: The interpreter takes 20 to 30 ms for a chunk of one head.
CPU_TOKENS = 150
#: (H, HV / H). Of these only two heads with two value heads each tell how heads are mapped.
CPU_HEADS = [(1, 1), (2, 2), (1, 2), (2, 1), (2, 2), (1, 3), (1, 4)]
BETAS = ["random", "random", "one", "zero", "near one"]


class GdnPrefill(DeltaRule):
    name = "gdn_prefill"
    summary = "chunked gated delta rule over packed sequences, state read and written by slot"
    token_inputs = ("q", "k", "v", "g", "beta")
    #: What depends on a chunk alone may be a kernel of its own.
    max_launches = 2
    far_arguments = 3
    #: A chunk of 64 tokens spans less than 2^31 elements, as kernels may demand.
    far_pitch = 33_000_000
    far_tokens = 70

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        limit = _max_tokens(scale)
        length = strategies.near(CHUNKS if scale.name == "cpu" else scale.boundaries, limit)
        some, several = (
            strategies.segments(scale, length=length, max_tokens=limit, empties=True, least=least) for least in (1, 2)
        )
        # Long sequences make long draws, which Hypothesis cuts short: left alone, every other batch is a single sequence.
        return prefill_cases(scale, dtype, strategies.weighted((2, some), (1, several)))

    def published_cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        """Head dims and heads of published models, for which a kernel may well have a path of its own."""
        few = published.few_sequences(scale)
        # Half of the sequences have a chunk or more, and hardly any no token.
        length = strategies.weighted(
            (2, st.integers(1, 80)), (2, st.integers(64, 200)), (1, st.integers(0, few.max_tokens))
        )
        segments = strategies.segments(few, length=length, kinds=("fresh", "resumed", "resumed"))
        return prefill_cases(few, dtype, segments, published.shards(), published.layouts())

    def far_cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        """Cases for `run_far_apart`: the second sequence begins where an offset needs more than 31 bits."""
        sequences = (Segment(self.far_tokens - 4, "fresh", 0), Segment(4, "resumed", 1))
        return self.cases(scale, dtype).map(lambda case: case.with_(sequences=sequences))

    def compile_cases(self, dtype: str) -> Iterator[Case]:
        regime = {"amplitude": "unit", "decay": "mixed", "keys": "random", "beta": "random"}
        options = {"scale": None}
        return published.delta_rule(self.name, dtype, decode=self.decode, regime=regime, options=options)

    def batch(self, case: Case, device: torch.device) -> Batch:
        normal, uniform = draws(case, device)
        dtype, rows, dims = torch_dtype(case.dtype), case.tokens, case.dims
        heads, value_heads, key_dim, value_dim = dims["H"], dims["HV"], dims["K"], dims["V"]
        amplitude = AMPLITUDES[case.regime["amplitude"]]

        state = normal(len(case.sequences), value_heads, value_dim, key_dim) * max(amplitude, 0.1)
        keys = draw_keys(case.regime["keys"], normal, rows, heads, key_dim)
        # Queries of tiny amplitude make the epsilon of the norm matter; a key's amplitude cancels likewise.
        tokens = {
            "q": (normal(rows, heads, key_dim) * amplitude).to(dtype),
            "k": (keys * amplitude).to(dtype),
            "v": (normal(rows, value_heads, value_dim) * amplitude).to(dtype),
            "g": -draw_decay_rates(case.regime["decay"], normal, uniform, rows, value_heads),
            "beta": _betas(case.regime["beta"], torch.sigmoid(2 * normal(rows, value_heads))),
        }
        parts = {name: tensor.split(case.lengths) for name, tensor in tokens.items()}
        return Batch(
            case=case,
            segments=case.sequences,
            tokens=tuple({name: parts[name][i] for name in parts} for i in range(len(case.sequences))),
            states=only_resumed(case.sequences, state.to(torch_dtype(case.state_dtype))),
            shared={},
            layout=case.layout,
            pool_slots=case.pool_slots,
        )

    def perturbed(self, name: str, tensor: Tensor) -> Tensor:
        """As every operator's, with gates that remain gates: a log decay above zero would let the state explode."""
        if name == "g":
            return tensor * 0.5 - 0.1
        if name == "beta":
            return 0.9 - 0.5 * tensor
        return super().perturbed(name, tensor)

    def pack(self, batch: Batch, arena: Arena) -> Call:
        # The projections are slices of one buffer, the gates of another: each has one dtype.
        placed = self.place_tokens(batch, arena, ("q", "k", "v")) | self.place_tokens(batch, arena, ("g", "beta"))
        keywords = {
            "g": placed["g"],
            "beta": placed["beta"],
            "state": self.place_pool(batch, arena, torch_dtype(batch.case.state_dtype)),
            "cu_seqlens": self.place_starts(batch, arena),
            "state_indices": self.place_slots(batch, arena),
            "has_initial_state": self.place_flags(batch, arena),
            "scale": batch.case.options["scale"],
        }
        return Call((placed["q"], placed["k"], placed["v"]), keywords, arena)

    def reference(self, batch: Batch, *, compute: torch.dtype, storage: torch.dtype | None) -> Result:
        return self._chunked(batch, compute, storage, None)

    def model(self, batch: Batch) -> Result:
        """Half precision goes through the matrix units: float32 sums of products of operands in the inputs' dtype."""
        return self._chunked(batch, torch.float32, None, _operand_dtype(batch))

    def _chunked(
        self, batch: Batch, compute: torch.dtype, storage: torch.dtype | None, operand: torch.dtype | None
    ) -> Result:
        plain = batch.plain(storage)
        call = self.pack(plain, Arena(plain.device))
        # No case is drawn so: `harness.shadow` meets engines that hand over q and k as they want them used.
        inside = not batch.case.options.get("normalised_outside", False)
        out = gdn_chunked(
            *call.arguments, **call.keywords, compute_dtype=compute, operand_dtype=operand, normalise=inside
        )
        return self.unpack(out, call, plain)

    def magnitude(self, batch: Batch) -> Result:
        return delta_terms.magnitude(batch, self.output_scale(batch))

    def operand_noise(self, batch: Batch) -> Result | None:
        dtype = _operand_dtype(batch)
        return None if dtype is None else delta_terms.operand_noise(batch, self.output_scale(batch), dtype)


def prefill_cases(
    scale: Scale,
    dtype: str,
    segments: SearchStrategy[tuple[Segment, ...]],
    dims: SearchStrategy[dict[str, int]] | None = None,
    layouts: SearchStrategy[Layout] | None = None,
) -> SearchStrategy[Case]:
    """Cases of these segments, dims and layouts, otherwise as usual."""
    return delta_cases(
        GdnPrefill.name,
        scale,
        dtype,
        segments=segments,
        dims=st.builds(_dims, _heads(scale), _head_dims(scale)) if dims is None else dims,
        regime={
            "amplitude": ["unit", "unit", "tiny", "large"],
            "decay": [*DECAYS, "varied"],
            "keys": KEYS,
            "beta": BETAS,
        },
        options={},
        layouts=layouts,
    )


def _max_tokens(scale: Scale) -> int:
    return CPU_TOKENS if scale.name == "cpu" else scale.max_tokens


def _operand_dtype(batch: Batch) -> torch.dtype | None:
    dtype = batch.tokens[0]["v"].dtype
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def _dims(heads: tuple[int, int], head_dims: tuple[int, int]) -> dict[str, int]:
    return {"H": heads[0], "R": heads[1], "K": head_dims[0], "V": head_dims[1]}


def _heads(scale: Scale) -> SearchStrategy[tuple[int, int]]:
    """(H, HV / H), on a CPU mostly few."""
    if scale.name == "cpu":
        return st.sampled_from(CPU_HEADS)
    return st.tuples(st.integers(1, scale.max_heads), st.sampled_from([1, 2, 3, 4]))


def _head_dims(scale: Scale) -> SearchStrategy[tuple[int, int]]:
    """(K, V): any two; and where there is room for them, those of real models, and the largest that kernels claim."""
    pairs = st.tuples(st.sampled_from(scale.head_dims), st.sampled_from(scale.head_dims))
    if scale.name == "cpu":
        return pairs
    return strategies.weighted((6, pairs), (3, st.just((128, 128))), (1, st.sampled_from([(256, 128), (128, 256)])))


def _betas(kind: str, random: Tensor) -> Tensor:
    if kind == "one":
        return torch.ones_like(random)
    if kind == "zero":
        return torch.zeros_like(random)
    return 1 - 1e-3 * random if kind == "near one" else random
