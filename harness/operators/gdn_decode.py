"""One token of the gated delta rule for each of B rows, gates fused, state in place (spec section 4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from harness import strategies
from harness.batch import Batch, Result
from harness.case import Case, Layout
from harness.execution import Call
from harness.memory import Arena
from harness.operators import published
from harness.operators.base import AMPLITUDES, only_resumed, torch_dtype
from harness.operators.delta_rule import DECAYS, KEYS, DeltaRule, delta_cases, draw_decay_rates, draw_keys, draws
from harness.strategies import Scale
from references.gdn import gates, gdn_decode, l2norm


class GdnDecode(DeltaRule):
    name = "gdn_decode"
    summary = "one token of the gated delta rule for each row, gates and norms fused, state in place by slot"
    token_inputs = ("q", "k", "v", "a", "b")
    decode = True

    def cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        dims = {
            "H": st.integers(1, scale.max_heads),
            "R": st.sampled_from([1, 2, 3, 4]),
            "K": st.sampled_from(scale.head_dims),
            "V": st.sampled_from(scale.head_dims),
        }
        return self._cases(scale, dtype, st.fixed_dictionaries(dims))

    def published_cases(self, scale: Scale, dtype: str) -> SearchStrategy[Case]:
        """Head dims and heads of published models, for which a kernel may well have a path of its own."""
        return self._cases(published.few_sequences(scale), dtype, published.shards(), published.layouts())

    def _cases(
        self,
        scale: Scale,
        dtype: str,
        dims: SearchStrategy[dict[str, int]],
        layouts: SearchStrategy[Layout] | None = None,
    ) -> SearchStrategy[Case]:
        return delta_cases(
            self.name,
            scale,
            dtype,
            segments=strategies.segments(scale, length=st.just(1), kinds=("resumed", "inactive")),
            dims=dims,
            regime={"amplitude": ["unit", "unit", "tiny", "large"], "decay": DECAYS, "keys": KEYS},
            options={"float32_gates": st.booleans()},
            layouts=layouts,
        )

    def compile_cases(self, dtype: str) -> Iterator[Case]:
        regime = {"amplitude": "unit", "decay": "mixed", "keys": "random"}
        options = {"scale": None, "float32_gates": False}
        return published.delta_rule(self.name, dtype, decode=self.decode, regime=regime, options=options)

    def batch(self, case: Case, device: torch.device) -> Batch:
        normal, uniform = draws(case, device)
        dtype, rows, dims = torch_dtype(case.dtype), len(case.sequences), case.dims
        heads, value_heads, key_dim, value_dim = dims["H"], dims["HV"], dims["K"], dims["V"]
        amplitude = AMPLITUDES[case.regime["amplitude"]]

        state = normal(rows, value_heads, value_dim, key_dim) * max(amplitude, 0.1)
        keys = draw_keys(case.regime["keys"], normal, rows, heads, key_dim)
        # Queries of tiny amplitude make the epsilon of the norm matter; a key's amplitude cancels likewise.
        tokens = {
            "q": normal(rows, heads, key_dim) * amplitude,
            "k": keys * amplitude,
            "v": normal(rows, value_heads, value_dim) * amplitude,
        }
        gate_dtype = torch.float32 if case.options["float32_gates"] else dtype
        # exp(A_log) up to 16, as models are initialised: by so much the error of a softplus near zero is magnified.
        A_log = (uniform(value_heads) * 3.8 - 1).to(gate_dtype)
        dt_bias = normal(value_heads).to(gate_dtype)
        rate = draw_decay_rates(case.regime["decay"], normal, uniform, rows, value_heads)
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
        scale = self.output_scale(batch)
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
