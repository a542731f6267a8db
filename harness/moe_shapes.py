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
from harness.operators import expert_choice
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


def _few_or_many(scale: Scale, dtype: str, gpu: tuple[int, int], cpu: tuple[int, int], **sizes: int) -> Cases:
    """Of the plainest case so many tokens as the first number says, of any other as the second."""
    few, many = gpu if scale is strategies.GPU else cpu

    def fit(case: Case) -> Case:
        return renormalized(case, few if is_plain(case) else many, **sizes)

    return MIXTURE.cases(scale, dtype).map(fit)


def few_experts_apart(scale: Scale, dtype: str) -> Cases:
    """Three experts, each token through all of them: with two, a stride itself would need more than 31 bits.

    Of many tokens, each expert has somewhat more than the largest tiles have rows.
    """
    # Whole multiples of 16: others would have a reason to be copied first.
    return _few_or_many(scale, dtype, (4, 140), (2, 40), E=3, El=3, k=3, I=16, Hd=16)


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
    return _few_or_many(scale, dtype, (64, 500), (64, 64), E=256, El=256, k=1, I=16, Hd=16)


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


def edges_of_tails(scale: Scale, dtype: str) -> Cases:
    """Three experts with the rows of one or two of the largest tiles, and more: as many as half a tile, one, one too many.

    Each token goes to all of them. Widths are whole blocks of columns and steps of sums, and none.
    """
    tile = 128 if scale is strategies.GPU else 32
    half = tile // 2
    tokens = st.sampled_from((tile + half, tile + 1, tile + half + 1, 2 * tile + half, 2 * tile + 1))
    hidden, size = st.sampled_from((512, 272, 131)), st.sampled_from((128, 24, 200))

    def fit(case: Case, tokens: int, hidden: int, size: int) -> Case:
        return renormalized(case, tokens, E=3, El=3, k=3, I=size, Hd=hidden)

    return st.builds(fit, MIXTURE.cases(scale, dtype), tokens, hidden, size)


def decode_steps(scale: Scale, dtype: str) -> Cases:
    """1 to 64 tokens in all, as steps have in which every request decodes: any lengths seldom add up to so few.

    Two in three have more places than any kernel computes one by one, fewer than a block has threads, and 16 to 128 experts: where
    a vector of them was reduced wrongly, it was for some of these numbers of experts. Half of those are routed as drawn.
    """
    some = strategies.weighted((1, st.integers(1, 8)), (2, st.integers(9, 17)), (2, st.integers(18, 64)))
    chosen = strategies.weighted((1, st.none()), (2, _few_places()))

    def fit(case: Case, tokens: int, few: tuple[int, int, int] | None) -> Case:
        return with_tokens(case, tokens) if few is None else _step(case, *few)

    return st.builds(fit, MIXTURE.cases(scale, dtype), some, chosen)


def _few_places() -> SearchStrategy[tuple[int, int, int]]:
    """Tokens, places and experts."""
    places, experts = st.sampled_from((6, 5, 8, 7, 4, 3)), st.sampled_from((64, 32, 64, 32, 16, 128))
    return st.tuples(st.integers(7, 16), places, experts).filter(lambda few: few[0] * few[1] > 32)


def _step(case: Case, tokens: int, places: int, experts: int) -> Case:
    """A step of so many tokens, as many places of each as its method allows, some of the experts here or all."""
    choice = case.choice
    if choice % 2 == 0:
        return renormalized(case, tokens, E=experts, El=experts, k=places)
    options = case.options
    dims, routing = expert_choice.routing(
        experts, places, options["method"], options["bias"], choice // 2 % 4, choice // 8 % 3, options["scaling"]
    )
    first = choice // 32 % 2 * (experts // 4)
    case = case.with_(options={**options, **routing, "first": first})
    return with_tokens(case, tokens).with_(dims={**case.dims, **dims, "El": experts - 2 * first})


def steps_and_others(scale: Scale, dtype: str) -> Cases:
    """Any batches, and decode steps: what one program plans, it keeps in memory that others have used."""
    return st.one_of(MIXTURE.cases(scale, dtype), decode_steps(scale, dtype))
