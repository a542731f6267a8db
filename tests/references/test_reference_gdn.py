"""The recurrence against the chunk form with an explicit inverse, and against its own algebra."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from references.gdn import gates, gdn_decode, gdn_recurrence, l2norm

KEYS = ["random", "correlated", "zero"]


@dataclass
class Case:
    """A packed batch: per sequence (length, resumed, active), head counts and dims, and how the content is drawn."""

    sequences: list[tuple[int, bool, bool]]
    heads: int
    ratio: int
    key_dim: int
    value_dim: int
    keys: str
    seed: int

    def build(self) -> tuple[Tensor, Tensor, Tensor, dict]:
        """(q, k, v, keyword arguments), all float64. Every slot that no resumed sequence owns holds NaN."""
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=random, dtype=torch.float64)

        lengths = [length for length, _, _ in self.sequences]
        tokens, value_heads, slots = sum(lengths), self.heads * self.ratio, len(lengths) + 2
        k = normal(tokens, self.heads, self.key_dim)
        if self.keys == "correlated":
            k = normal(1, self.heads, self.key_dim) + 0.1 * k
        elif self.keys == "zero":
            k[::2] = 0
        # A rate a head, 1e-4 to 10 a token, and one head in six each without decay or forgetting everything.
        rate = 10 ** (5 * uniform(value_heads) - 4)
        special = uniform(value_heads)
        rate = torch.where(special < 1 / 6, torch.zeros(()), torch.where(special > 5 / 6, torch.tensor(400.0), rate))
        chosen = torch.randperm(slots, generator=random)[: len(lengths)]
        pool = torch.full((slots, value_heads, self.value_dim, self.key_dim), float("nan"), dtype=torch.float64)
        for slot, (_, resumed, active) in zip(chosen.tolist(), self.sequences, strict=True):
            if resumed and active:
                pool[slot] = normal(*pool.shape[1:])
        inactive = torch.tensor([not active for _, _, active in self.sequences], dtype=torch.bool)
        return (
            normal(tokens, self.heads, self.key_dim),
            k,
            normal(tokens, value_heads, self.value_dim),
            {
                "g": -rate * (0.5 + uniform(tokens, value_heads)),
                "beta": uniform(tokens, value_heads),
                "state": pool,
                "cu_seqlens": torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
                "state_indices": chosen.int().masked_fill(inactive, -1 - self.seed % 5),
                "has_initial_state": torch.tensor([resumed for _, resumed, _ in self.sequences], dtype=torch.bool),
            },
        )


cases = st.builds(
    Case,
    sequences=st.lists(
        st.tuples(st.integers(0, 3) | st.integers(0, 20), st.booleans(), st.integers(0, 5).map(bool)), max_size=4
    ),
    heads=st.integers(1, 3),
    ratio=st.integers(1, 4),
    key_dim=st.integers(1, 9),
    value_dim=st.integers(1, 9),
    keys=st.sampled_from(KEYS),
    seed=st.integers(0, 2**16),
)


def unit(x: Tensor) -> Tensor:
    """x [L, K] as the first K coordinates of a unit vector, whose hidden last one was 1e-3: the epsilon as geometry."""
    return F.normalize(F.pad(x, (0, 1), value=1e-3), eps=0)[:, :-1]


def chunk_form(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor, scale: float, size: int
) -> tuple[Tensor, Tensor]:
    """One head: q, k [L, K] normalised, v [L, V], g, beta [L], S [K, V] -> (o [L, V], S).

    A whole chunk at once: its L corrections depend on each other through a unit lower triangular matrix, which is
    inverted explicitly (Yang et al. 2024, section 3).
    """
    outputs = [v[:0]]
    for begin in range(0, len(v), size):
        Q, K, V, b = (x[begin : begin + size] for x in (q, k, v, beta))
        G = g[begin : begin + size].cumsum(0)
        D = (G[:, None] - G[None, :]).tril().exp().tril()
        A = (b[:, None] * (K @ K.T) * D).tril(-1)
        T = torch.linalg.inv(torch.eye(len(G), dtype=A.dtype) + A)
        corrected = T @ (b[:, None] * V) - T @ ((b * G.exp())[:, None] * K) @ S
        outputs.append(scale * (G.exp()[:, None] * (Q @ S) + ((Q @ K.T) * D) @ corrected))
        S = G[-1].exp() * S + (K * (G[-1] - G).exp()[:, None]).T @ corrected
    return torch.cat(outputs), S


@settings(deadline=None)
@given(cases, st.sampled_from([1, 2, 4, 8, 64]), st.sampled_from([None, 0.3]))
def test_recurrence_equals_chunk_form(case: Case, size: int, scale: float | None) -> None:
    q, k, v, arguments = case.build()
    before = arguments["state"].clone()
    want_o, want_state = torch.zeros_like(v), before.clone()
    factor = case.key_dim**-0.5 if scale is None else scale
    for n, (_, resumed, active) in enumerate(case.sequences):
        start, end = arguments["cu_seqlens"][n : n + 2].tolist()
        for hv in range(case.heads * case.ratio if active else 0):
            slot, h = int(arguments["state_indices"][n]), hv // case.ratio
            S = before[slot, hv].T if resumed else torch.zeros(case.key_dim, case.value_dim, dtype=torch.float64)
            want_o[start:end, hv], S = chunk_form(
                unit(q[start:end, h]), unit(k[start:end, h]), v[start:end, hv],
                arguments["g"][start:end, hv], arguments["beta"][start:end, hv], S, factor, size,
            )  # fmt: skip
            want_state[slot, hv] = S.T
    got = gdn_recurrence(q, k, v, **arguments, scale=scale)
    torch.testing.assert_close(got, want_o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(arguments["state"], want_state, rtol=1e-12, atol=1e-12, equal_nan=True)


@settings(deadline=None)
@given(cases, st.integers(0, 2**16))
def test_jointly_linear_in_values_and_state(case: Case, other_seed: int) -> None:
    q, k, v1, first = case.build()
    _, _, v2, second = replace(case, seed=other_seed).build()
    second = {**first, "state": second["state"].nan_to_num(0.5)}
    both = {**first, "state": 2 * first["state"] - 3 * second["state"]}
    o = gdn_recurrence(q, k, 2 * v1 - 3 * v2, **both)
    o1, o2 = gdn_recurrence(q, k, v1, **first), gdn_recurrence(q, k, v2, **second)
    torch.testing.assert_close(o, 2 * o1 - 3 * o2, rtol=1e-12, atol=1e-12)
    owned = first["state_indices"][first["state_indices"] >= 0].long()
    combined = 2 * first["state"][owned] - 3 * second["state"][owned]
    torch.testing.assert_close(both["state"][owned], combined, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(cases, st.data())
def test_split_anywhere_and_resume_gives_the_same_bits(case: Case, data: st.DataObject) -> None:
    case.sequences = [(sum(length for length, _, _ in case.sequences), case.seed % 2 == 0, True)]
    q, k, v, whole = case.build()
    cut = data.draw(st.integers(0, len(v)))
    parts = {**whole, "state": whole["state"].clone()}
    want = gdn_recurrence(q, k, v, **whole)
    got = []
    for begin, end in ((0, cut), (cut, len(v))):
        pieces = {name: whole[name][begin:end] for name in ("g", "beta")}
        piece = {**parts, **pieces, "cu_seqlens": torch.tensor([0, end - begin])}
        got.append(gdn_recurrence(q[begin:end], k[begin:end], v[begin:end], **piece))
        parts["has_initial_state"] = torch.tensor([True])
    assert torch.equal(torch.cat(got), want)
    assert torch.equal(parts["state"].nan_to_num(7.0), whole["state"].nan_to_num(7.0))


@settings(deadline=None)
@given(cases)
def test_orthonormal_keys_recall_their_values(case: Case) -> None:
    tokens = case.key_dim
    case.sequences = [(tokens, False, True)]
    _, k, v, arguments = case.build()
    random = torch.Generator().manual_seed(case.seed)
    square = torch.randn(case.heads, tokens, tokens, generator=random, dtype=torch.float64)
    k = torch.linalg.qr(square).Q.transpose(0, 1)
    arguments["g"].zero_()
    arguments["beta"].fill_(1)
    o = gdn_recurrence(1e7 * k, 1e7 * k, v, **arguments)  # long enough that the epsilon does not show
    slot = int(arguments["state_indices"][0])
    recalled = torch.einsum("hvk,thk->thv", arguments["state"][slot], k.repeat_interleave(case.ratio, 1))
    torch.testing.assert_close(recalled, v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(o, v * case.key_dim**-0.5, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(cases, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_closed_gates_leave_the_state_as_it_is(case: Case, pool_dtype: torch.dtype) -> None:
    case.sequences = [(length, True, active) for length, _, active in case.sequences]
    q, k, v, arguments = case.build()
    arguments["g"].zero_()
    arguments["beta"].zero_()
    arguments["state"] = arguments["state"].to(pool_dtype)
    before = arguments["state"].clone()
    o = gdn_recurrence(q, k, v, **arguments)
    assert torch.equal(arguments["state"].nan_to_num(7.0), before.nan_to_num(7.0))
    for n, (_, _, active) in enumerate(case.sequences):
        start, end = arguments["cu_seqlens"][n : n + 2].tolist()
        if active:
            S = before[int(arguments["state_indices"][n])].double()
            unit = l2norm(q[start:end]).repeat_interleave(case.ratio, 1)
            want = torch.einsum("hvk,thk->thv", S, unit) * case.key_dim**-0.5
            torch.testing.assert_close(o[start:end], want, rtol=1e-12, atol=1e-12)
        else:
            assert not o[start:end].any()


@settings(deadline=None)
@given(
    cases,
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_decode_is_a_recurrence_of_one_token_exactly(
    case: Case, dtype: torch.dtype, pool_dtype: torch.dtype, compute_dtype: torch.dtype
) -> None:
    case.sequences = [(1, True, active) for _, _, active in case.sequences]
    q, k, v, arguments = case.build()
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    value_heads = case.heads * case.ratio
    random = torch.Generator().manual_seed(case.seed)
    a, b = (4 * torch.randn(2, len(v), value_heads, generator=random, dtype=torch.float64)).to(dtype)
    A_log, dt_bias = 2 * torch.randn(2, value_heads, generator=random)
    arguments["state"] = arguments["state"].to(pool_dtype)
    pool = arguments["state"].clone()
    arguments["g"], arguments["beta"] = gates(a, b, A_log, dt_bias, compute_dtype)
    want = gdn_recurrence(q, k, v, **arguments, compute_dtype=compute_dtype)
    got = gdn_decode(
        q, k, v, a=a, b=b, A_log=A_log, dt_bias=dt_bias, state=pool,
        state_indices=arguments["state_indices"], compute_dtype=compute_dtype,
    )  # fmt: skip
    assert got.dtype == want.dtype == dtype
    assert torch.equal(got, want)
    assert torch.equal(pool.nan_to_num(7.0), arguments["state"].nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gates_equal_torch_functions_in_the_compute_dtype(dtype: torch.dtype) -> None:
    a = torch.cat([torch.linspace(-40, 40, 161), torch.tensor([800.0, -800.0])]).to(dtype)[:, None].expand(-1, 3)
    A_log, dt_bias = torch.tensor([-2.0, 0.0, 2.5]), torch.tensor([-1.0, 0.0, 0.25])
    for compute_dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        g, beta = gates(a, a, A_log, dt_bias, compute_dtype)
        assert g.dtype == beta.dtype == compute_dtype
        softplus = F.softplus(a.double() + dt_bias, threshold=20)
        want_g = -A_log.double().exp() * softplus
        torch.testing.assert_close(g.double(), want_g, rtol=tolerance, atol=tolerance)
        want_beta = 1 / (1 + torch.exp(-a.double()))
        torch.testing.assert_close(beta.double(), want_beta, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("norm", "normalised"), [(0.0, 0.0), (1e-4, 0.0995037), (1e-3, 0.7071068), (3.0, 1.0)])
def test_epsilon_stands_inside_the_root(norm: float, normalised: float) -> None:
    x = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64) * norm
    assert l2norm(x).norm().item() == pytest.approx(normalised, abs=1e-6)


def test_empty_and_inactive_sequences() -> None:
    """Four sequences without tokens, then one inactive: only the fresh active one changes its slot, to zero."""
    pool = torch.arange(1.0, 6.0).reshape(5, 1, 1, 1).clone()
    o = gdn_recurrence(
        torch.ones(2, 1, 1), torch.ones(2, 1, 1), torch.ones(2, 1, 1),
        g=torch.zeros(2, 1), beta=torch.ones(2, 1), state=pool, cu_seqlens=torch.tensor([0, 0, 0, 0, 0, 2]),
        state_indices=torch.tensor([0, 1, -1, -7, -1]),
        has_initial_state=torch.tensor([True, False, True, False, False]),
    )  # fmt: skip
    assert pool.flatten().tolist() == [1, 0, 3, 4, 5]
    assert o.flatten().tolist() == [0, 0]


def small(pool: Tensor) -> tuple[Tensor, Tensor, Tensor, dict]:
    """Six tokens of one resumed sequence in slot 0 of this pool [1, 2, 3, 4]."""
    random = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 6, 1, 4, generator=random, dtype=torch.float64)
    v = torch.randn(6, 2, 3, generator=random, dtype=torch.float64)
    return q, k, v, {
        "g": -0.1 * torch.rand(6, 2, generator=random, dtype=torch.float64),
        "beta": torch.rand(6, 2, generator=random, dtype=torch.float64),
        "state": pool,
        "cu_seqlens": torch.tensor([0, 6]),
        "state_indices": torch.tensor([0]),
        "has_initial_state": torch.tensor([True]),
    }  # fmt: skip


def test_a_scale_of_zero_is_a_scale() -> None:
    q, k, v, arguments = small(torch.ones(1, 2, 3, 4, dtype=torch.float64))
    plain = arguments["state"].clone()
    gdn_recurrence(q, k, v, **{**arguments, "state": plain})
    assert not gdn_recurrence(q, k, v, **arguments, scale=0.0).any()
    assert torch.equal(arguments["state"], plain), "the scale is of the output alone"
    gate = torch.zeros(6, 2)
    got = gdn_decode(
        q, k, v, a=gate, b=gate, A_log=gate[0], dt_bias=gate[0], scale=0.0,
        state=torch.ones(6, 2, 3, 4, dtype=torch.float64), state_indices=torch.arange(6),
    )  # fmt: skip
    assert not got.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    """Six tokens later it is what float64 makes of the same start, rounded: nothing was lost on the way."""
    start = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(4)).to(dtype)
    q, k, v, arguments = small(start.clone())
    wide = {**arguments, "state": start.double()}
    assert torch.equal(gdn_recurrence(q, k, v, **arguments), gdn_recurrence(q, k, v, **wide))
    assert torch.equal(arguments["state"], wide["state"].to(dtype))


def test_value_heads_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(ValueError, match="3 value heads"):
        gdn_decode(
            torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.ones(1, 3, 4), a=torch.ones(1, 3), b=torch.ones(1, 3),
            A_log=torch.ones(3), dt_bias=torch.ones(3), state=torch.ones(1, 3, 4, 4), state_indices=torch.tensor([0]),
        )  # fmt: skip
