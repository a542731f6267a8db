"""One token of the gated delta rule for each of B rows, gates fused, state in place (spec section 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from harness import strategies
from harness.batch import Batch, Result
from harness.case import Case
from harness.execution import Call
from harness.memory import Arena
from harness.operators import base
from harness.operators.base import AMPLITUDES, generator, only_resumed, torch_dtype
from harness.strategies import Scale
from references.gdn import gates, gdn_decode, l2norm

#: How fast a head forgets, in -log decay a token: each hides a fault that another one shows (spec 3.11).
DECAYS = ["mixed", "mixed", "none", "slow", "published", "underflow"]
KEYS = ["random", "random", "correlated", "orthogonal", "zero"]


class GdnDecode(base.SequenceOperator):
    name = "gdn_decode"
    summary = "one token of the gated delta rule for each row, gates and norms fused, state in place by slot"
    token_inputs = ("q", "k", "v", "a", "b")
    state_name = "state"
    decode = True

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        dims = st.fixed_dictionaries(
            {
                "H": st.integers(1, scale.max_heads),
                "R": st.sampled_from([1, 2, 3, 4]),
                "K": st.sampled_from(scale.head_dims),
                "V": st.sampled_from(scale.head_dims),
            }
        )
        rows = strategies.segments(scale, length=st.just(1), kinds=("resumed", "inactive"))
        return st.builds(
            _case,
            st.just(self.name),
            rows,
            dims,
            st.just(dtype),
            st.sampled_from(["float32", "float32", "bfloat16"]),
            st.fixed_dictionaries(
                {
                    "amplitude": st.sampled_from(["unit", "unit", "tiny", "large"]),
                    "decay": st.sampled_from(DECAYS),
                    "keys": st.sampled_from(KEYS),
                }
            ),
            st.fixed_dictionaries({"scale": st.sampled_from([None, None, 0.5]), "float32_gates": st.booleans()}),
            strategies.layouts(heads=True, fused=True),
            st.just(scale.slots),
            strategies.PAD_SLOTS,
            strategies.CHOICES,
            strategies.SEEDS,
        )

    def describe(self, case: Case) -> str:
        return f"{base.say_segments(case, decode=True)}; {base.say_rest(case)}"

    def coverage(self, case: Case) -> dict[str, list[str | int]]:
        dims = case.dims
        return super().coverage(case) | {
            "K x V": [f"{dims['K']}x{dims['V']}"],
            "value heads a key head": [dims["HV"] // dims["H"]],
            "decay": [case.regime["decay"]],
            "keys": [case.regime["keys"]],
            "amplitude": [case.regime["amplitude"]],
            "state dtype": [case.state_dtype],
            "sequence kind": [s.kind for s in case.sequences],
            "layout": ["fused" if case.layout.fused else "dense" if case.layout.dense else "strided"],
        }

    def batch(self, case: Case, device: torch.device) -> Batch:
        draw = generator(case, device)
        dtype, rows, dims = torch_dtype(case.dtype), len(case.sequences), case.dims
        heads, value_heads, key_dim, value_dim = dims["H"], dims["HV"], dims["K"], dims["V"]
        amplitude = AMPLITUDES[case.regime["amplitude"]]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, device=device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=draw, device=device)

        state = normal(rows, value_heads, value_dim, key_dim) * max(amplitude, 0.1)
        keys = _keys(case.regime["keys"], normal, rows, heads, key_dim)
        # Queries of tiny amplitude make the epsilon of the norm matter; a key's amplitude cancels likewise.
        tokens = {
            "q": normal(rows, heads, key_dim) * amplitude,
            "k": keys * amplitude,
            "v": normal(rows, value_heads, value_dim) * amplitude,
        }
        gate_dtype = torch.float32 if case.options["float32_gates"] else dtype
        A_log = (uniform(value_heads) * 2 - 1).to(gate_dtype)
        dt_bias = normal(value_heads).to(gate_dtype)
        rate = _decay_rates(case.regime["decay"], normal, uniform, rows, value_heads)
        # softplus(a + dt_bias) = rate / exp(A_log), solved for a; rounding a to the dtype is part of the input.
        softplus = (rate / A_log.float().exp()).clamp(min=1e-30)
        tokens["a"] = torch.where(rate == 0, -200.0, softplus + torch.log(-torch.expm1(-softplus))) - dt_bias.float()
        tokens["b"] = normal(rows, value_heads) * 2
        packed = {name: tensor.to(dtype) for name, tensor in tokens.items()}
        return Batch(
            case=case,
            segments=case.sequences,
            tokens=tuple({name: tensor[i : i + 1] for name, tensor in packed.items()} for i in range(rows)),
            states=only_resumed(case.sequences, state.to(torch_dtype(case.state_dtype))),
            shared={"A_log": A_log, "dt_bias": dt_bias},
            layout=case.layout,
            pool_slots=case.pool_slots,
        )

    def state_shape(self, batch: Batch) -> tuple[int, ...]:
        dims = batch.case.dims
        return (dims["HV"], dims["V"], dims["K"])

    def output_shape(self, batch: Batch, tokens: int) -> tuple[int, ...]:
        return (tokens, batch.case.dims["HV"], batch.case.dims["V"])

    def output_dtype(self, batch: Batch) -> torch.dtype:
        return batch.tokens[0]["v"].dtype

    def pack(self, batch: Batch, arena: Arena) -> Call:
        placed = self.place_tokens(batch, arena)
        keywords = {
            "a": placed["a"],
            "b": placed["b"],
            "A_log": arena.place("A_log", batch.shared["A_log"]),
            "dt_bias": arena.place("dt_bias", batch.shared["dt_bias"]),
            "state": self.place_pool(batch, arena, torch_dtype(batch.case.state_dtype)),
            "state_indices": self.place_slots(batch, arena),
            "scale": batch.case.options["scale"],
        }
        return Call((placed["q"], placed["k"], placed["v"]), keywords, arena)

    def reference(self, batch: Batch, *, compute: torch.dtype, storage: torch.dtype | None) -> Result:
        plain = batch.plain(storage)
        call = self.pack(plain, Arena(plain.device))
        out = gdn_decode(*call.arguments, **call.keywords, compute_dtype=compute)
        return self.unpack(out, call, plain)

    def magnitude(self, batch: Batch) -> Result:
        """Sums of |terms| of the one step, the decayed ones weighted by 1 + |g|: exp(g) inherits the error of g."""
        wide = batch.plain(torch.float64)
        active = batch.active
        ratio = batch.case.dims["HV"] // batch.case.dims["H"]
        scale = batch.case.options["scale"] or batch.case.dims["K"] ** -0.5
        g, beta = gates(wide.packed("a"), wide.packed("b"), wide.shared["A_log"], wide.shared["dt_bias"], torch.float64)
        q = l2norm(wide.packed("q")).abs().repeat_interleave(ratio, 1) * scale
        k = l2norm(wide.packed("k")).abs().repeat_interleave(ratio, 1)
        outputs = torch.zeros(
            len(batch.segments), *wide.packed("v").shape[1:], dtype=torch.float64, device=batch.device
        )
        states: list[Tensor | None] = [None] * len(batch.segments)
        if active:
            rows = torch.tensor(active, device=batch.device)
            state = torch.stack([s for s in wide.states if s is not None]).abs()
            decayed = state * (g[rows].exp() * (1 - g[rows]))[:, :, None, None]
            delta = beta[rows][:, :, None] * (
                wide.packed("v")[rows].abs() + torch.einsum("nhvk,nhk->nhv", decayed, k[rows])
            )
            new = decayed + delta[..., None] * k[rows][:, :, None, :]
            outputs[rows] = torch.einsum("nhvk,nhk->nhv", new, q[rows])
            for n, i in enumerate(active):
                states[i] = new[n]
        return Result(tuple(outputs.split(1)), tuple(states))


def _case(operator: str, rows: object, dims: dict[str, int], *rest: object) -> Case:
    heads, ratio = dims["H"], dims["R"]
    dims = {"H": heads, "HV": heads * ratio, "K": dims["K"], "V": dims["V"]}
    names = ("dtype", "state_dtype", "regime", "options", "layout", "pool_slots", "pad_slot", "choice", "seed")
    return Case(operator=operator, sequences=rows, dims=dims, **dict(zip(names, rest, strict=True)))  # type: ignore[arg-type]


def _keys(kind: str, normal: Callable[..., Tensor], rows: int, heads: int, dim: int) -> Tensor:
    draw = normal(rows, heads, dim)
    if kind == "zero":
        return torch.zeros_like(draw)
    if kind == "correlated":
        return draw * 0.1 + draw[:1, :1]
    if kind == "orthogonal":
        out = torch.zeros_like(draw)
        out[..., 0] = 1.0
        return out.roll(rows % dim, -1)
    return draw


def _decay_rates(
    kind: str, normal: Callable[..., Tensor], uniform: Callable[..., Tensor], rows: int, heads: int
) -> Tensor:
    """-log decay for each row and head; in the mixed regime every head has a rate of its own, decades apart."""
    if kind == "none":
        return torch.zeros_like(uniform(rows, heads))
    if kind == "underflow":
        return 50.0 + 100.0 * uniform(rows, heads)
    if kind == "slow":
        return 0.01 * uniform(rows, heads)
    if kind == "published":
        # A ~ U(0, 16), dt_bias = 1: a head forgets within a token or two.
        return 16.0 * uniform(1, heads) * torch.nn.functional.softplus(1.0 + normal(rows, heads))
    rates = 10.0 ** (uniform(1, heads) * 5 - 4)
    return rates * (0.5 + uniform(rows, heads))
