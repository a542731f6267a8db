"""Batches of `moe` of the sizes at which kernels change their way: few rows, a decode step, many rows, many experts.

A row is a token at one of its k places. Kernels compute few rows one by one, more in tiles, and sort very many in rounds; how
many are few, no contract says. So where a property has two cases that both ways may get wrong, the plainest, which is always
drawn (`is_plain`), has few rows, and the other so many that any kernel takes its other way. On a GPU more are many than under
the interpreter, where some of these have many rows in both.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness import moe_batches, strategies
from harness.case import Case, Segment
from harness.operators.moe import Moe
from harness.strategies import Scale

MIXTURE = Moe()
Cases = SearchStrategy[Case]


def is_plain(case: Case) -> bool:
    """Whether it is the case that is always drawn."""
    return case.choice == 0


def with_tokens(case: Case, tokens: int) -> Case:
    return case.with_(sequences=(Segment(tokens),))


def renormalized(case: Case, tokens: int, **sizes: int) -> Case:
    """A case of so many tokens and of these dims, all of its experts here, routed in the plainest way."""
    return with_tokens(moe_batches.routed(case, "renormalize", first=0), tokens).with_(dims={**case.dims, **sizes})


def few_experts_apart(scale: Scale, dtype: str) -> Cases:
    """Three experts, each token through all of them: with two, a stride itself would need more than 31 bits.

    Of many tokens, each expert has somewhat more than the largest tiles have rows.
    """
    few, many = (4, 140) if scale is strategies.GPU else (2, 40)

    def fit(case: Case) -> Case:
        # Whole multiples of 16: others would have a reason to be copied first.
        return renormalized(case, few if is_plain(case) else many, E=3, El=3, k=3, I=16, Hd=16)

    return MIXTURE.cases(scale, dtype).map(fit)


def few_or_more_rows(scale: Scale, dtype: str) -> Cases:
    """Cases for `run_far_apart`, whose tokens are few: the plainest has one expert a token, others so many that rows are many."""
    many = 16 if scale is strategies.GPU else 2

    def fit(case: Case) -> Case:
        method = "renormalize" if case.options["method"] == "llama4" else case.options["method"]
        chosen = 1 if is_plain(case) else max(many, case.dims["k"])
        experts = max(4, chosen, case.dims["E"])
        routed = moe_batches.routed(case, method, first=0)
        return routed.with_(dims={**case.dims, "E": experts, "El": experts, "k": chosen})

    return MIXTURE.far_cases(scale, dtype).map(fit)


def many_rows(scale: Scale, dtype: str) -> Cases:
    """So many tokens and experts that memory for each pair of them would be more than is fair."""
    few, many = (64, 500) if scale is strategies.GPU else (64, 64)

    def fit(case: Case) -> Case:
        return renormalized(case, few if is_plain(case) else many, E=256, El=256, k=1, I=16, Hd=16)

    return MIXTURE.cases(scale, dtype).map(fit)


def every_launch(scale: Scale, dtype: str) -> Cases:
    """So many rows that all launches there are, are made: the sort counts them block by block."""
    rows = 65 if scale is strategies.CPU else 4097
    return many_rows(scale, dtype).map(lambda case: with_tokens(case, rows))


def rows_in_rounds(scale: Scale, dtype: str) -> Cases:
    """So many rows that a program which adds up what blocks of them have needs more than one round for the blocks.

    A prompt of 8,192 tokens of a published model has 65,536 rows.
    """
    tokens = 20 if scale is strategies.CPU else 8192

    def fit(case: Case) -> Case:
        return renormalized(case, tokens + case.choice % 9, E=40, El=40, k=8, I=16, Hd=16)

    return MIXTURE.cases(scale, dtype).map(fit)


def many_experts(scale: Scale, dtype: str) -> Cases:
    """More experts than a block has threads, most of them without a token."""
    sizes = {"E": 1030, "El": 1030, "I": 4, "Hd": 8, "k": 2}
    few, many = (20, 120) if scale is strategies.GPU else (20, 20)

    def fit(case: Case) -> Case:
        method = "renormalize" if case.options["method"] in ("llama4", "top_k") else case.options["method"]
        routed = moe_batches.routed(case, method, first=0)
        return with_tokens(routed, (few if is_plain(case) else many) + case.choice % 9).with_(dims=sizes)

    return MIXTURE.cases(scale, dtype).map(fit)


def a_few_more_than_a_tile(scale: Scale, dtype: str) -> Cases:
    """Three experts with somewhat more rows each than the largest tiles have, of tokens wider than any block."""
    most = 128 if scale is strategies.GPU else 32
    wide = st.sampled_from((256, 272, 131))
    tokens = st.integers(3 * most, 5 * most)

    def fit(case: Case, tokens: int, hidden: int) -> Case:
        return renormalized(case, tokens, E=3, El=3, k=1, I=24, Hd=hidden)

    return st.builds(fit, MIXTURE.cases(scale, dtype), tokens, wide)


def decode_steps(scale: Scale, dtype: str) -> Cases:
    """1 to 64 tokens in all, as steps have in which every request decodes: any lengths seldom add up to so few.

    Two in three have more places than any kernel computes one by one, fewer than a block has threads, and 16 to 128 experts: where
    a sum over them was miscompiled, it was for some of these numbers of experts.
    """
    some = strategies.weighted((1, st.integers(1, 8)), (2, st.integers(9, 17)), (2, st.integers(18, 64)))
    places, experts = st.sampled_from((6, 5, 8, 7, 4, 3)), st.sampled_from((64, 32, 64, 32, 16, 128))
    few_places = st.tuples(st.integers(7, 16), places, experts).filter(lambda few: 32 < few[0] * few[1] <= 128)

    def fit(case: Case, tokens: int, few: tuple[int, int, int] | None) -> Case:
        if few is None:
            return with_tokens(case, tokens)
        tokens, places, experts = few
        return renormalized(case, tokens, E=experts, El=experts, k=places)

    chosen = strategies.weighted((1, st.none()), (2, few_places))
    return st.builds(fit, MIXTURE.cases(scale, dtype), some, chosen)


def steps_and_others(scale: Scale, dtype: str) -> Cases:
    """Half of them decode steps: one program plans all of such a step, and in memory that others have used."""
    return st.one_of(MIXTURE.cases(scale, dtype), decode_steps(scale, dtype))
