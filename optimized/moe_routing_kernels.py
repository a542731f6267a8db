"""How a program chooses experts: scores become integers that are all different, and the largest is taken k times.

The order that `references.moe` asks for (by score, the lower id first where two are equal, NaN as -inf) is the order of one
64-bit integer an expert: the bits of the float32 score, turned so that integers compare as the floats do, above the id
counted downwards. `optimized.moe_routing` launches the kernel; the kernels of `optimized.moe` choose for themselves where
a launch more would cost more than the choice.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Below every key. An id is counted downwards from the largest 31-bit number, `_LOW`: that flips its bits.
LOWEST = tl.constexpr(-(1 << 63))
_LOW = tl.constexpr(0x7FFFFFFF)
_ZERO_WITH_SIGN = tl.constexpr(-(1 << 31))


@triton.jit
def _key(score, ids):
    """int64: larger for the larger float32 score, then for the lower id."""
    bits = tl.where(score != score, float("-inf"), score).to(tl.int32, bitcast=True)
    # The two zeros are equal.
    bits = tl.where(bits == _ZERO_WITH_SIGN, 0, bits)
    return ((bits ^ ((bits >> 31) & _LOW)).to(tl.int64) << 32) | (ids ^ _LOW).to(tl.int64)


@triton.jit
def _score_of(key):
    bits = (key >> 32).to(tl.int32)
    return (bits ^ ((bits >> 31) & _LOW)).to(tl.float32, bitcast=True)


@triton.jit
def _id_of(key):
    return (key & _LOW).to(tl.int32) ^ _LOW


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _in_kept_groups(score, ids, real, group_size, topk_group, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """Whether each expert [BLOCK_T, GROUPS * SIZE] is in one of the `topk_group` groups whose two best sum up to most."""
    BLOCK_T: tl.constexpr = score.shape[0]
    keys = tl.where(real, _key(score, ids), LOWEST)
    keys = tl.reshape(keys, (BLOCK_T, GROUPS, SIZE))
    best = tl.max(keys, axis=2)
    second = tl.max(tl.where(keys == tl.expand_dims(best, 2), LOWEST, keys), axis=2)
    total = _score_of(best) + tl.where(group_size > 1, _score_of(second), 0.0)
    group = tl.broadcast_to(tl.arange(0, GROUPS)[None, :], (BLOCK_T, GROUPS))
    keys = tl.where(best == LOWEST, LOWEST, _key(total, group))
    kept = tl.zeros((BLOCK_T, GROUPS), tl.int32)
    for _ in range(topk_group):
        largest = tl.max(keys, axis=1)[:, None]
        kept = tl.where(keys == largest, 1, kept)
        keys = tl.where(keys == largest, LOWEST, keys)
    kept = tl.broadcast_to(tl.expand_dims(kept, 2), (BLOCK_T, GROUPS, SIZE))
    return tl.reshape(kept, (BLOCK_T, GROUPS * SIZE)) != 0


@triton.jit
def expert_keys(
    logits,
    bias,
    token,
    inside,
    group_size,
    n_group,
    topk_group,
    stride_lt,
    stride_le,
    stride_b,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    SQUASH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GROUPED: tl.constexpr,
):
    """Keys [BLOCK_T, GROUPS * SIZE] of all experts of the tokens [BLOCK_T], and what they were made of.

    A group's experts lie in SIZE neighbouring lanes, of which the first `group_size` are used. Lanes without an expert, and
    experts of groups that are not kept, have the key LOWEST.

    Returns:
        `(keys, logits, real)`: logits in float32, and whether a lane [1, GROUPS * SIZE] has an expert.
    """
    lane = tl.arange(0, GROUPS * SIZE)[None, :]
    ids = (lane // SIZE) * group_size + lane % SIZE
    real = (lane // SIZE < n_group) & (lane % SIZE < group_size)
    base = logits + token.to(tl.int64)[:, None] * stride_lt
    wide = tl.load(base + ids.to(tl.int64) * stride_le, mask=inside[:, None] & real, other=0.0).to(tl.float32)
    score = wide
    if SQUASH:
        score = _sigmoid(wide)
    if HAS_BIAS:
        score += tl.load(bias + ids.to(tl.int64) * stride_b, mask=real, other=0.0).to(tl.float32)
    keys = tl.where(real, _key(score, ids), LOWEST)
    if GROUPED:
        # Groups are compared by their sigmoids also where the experts' order is that of the logits.
        by = score if HAS_BIAS else _sigmoid(wide)
        keys = tl.where(_in_kept_groups(by, ids, real, group_size, topk_group, GROUPS, SIZE), keys, LOWEST)
    return keys, wide, real


@triton.jit
def choose(keys, top_k, PLACES: tl.constexpr):
    """Ids int32 [BLOCK_T, PLACES] of the largest keys [BLOCK_T, experts], in order; -1 after the first `top_k`."""
    place = tl.arange(0, PLACES)[None, :]
    chosen = tl.full((keys.shape[0], PLACES), -1, tl.int32)
    for j in range(top_k):
        best = tl.max(keys, axis=1)[:, None]
        chosen = tl.where(place == j, _id_of(best), chosen)
        keys = tl.where(keys == best, LOWEST, keys)
    return chosen


@triton.jit
def _sum(part):
    """Sums [BLOCK_T, 1] of numbers from 0 to 1, of which one is not small, that do not depend on the order of the terms.

    They are added as integers, in units of 2^-40. So every kernel finds the same weights, however the compiler has laid
    out its registers.
    """
    known = part == part
    units = tl.sum((tl.where(known, part, 0.0) * 1099511627776.0).to(tl.int64), axis=1)
    total = units.to(tl.float32) * (1.0 / 1099511627776.0)
    return tl.where(tl.min(known.to(tl.int32), axis=1) == 1, total, float("nan"))[:, None]


@triton.jit
def weigh(logits, ids, token, used, wide, real, scaling, stride_lt, stride_le, WEIGHTS: tl.constexpr):
    """Weights float32 [BLOCK_T, PLACES] of the chosen ids; `used` says which places count."""
    pointers = logits + token.to(tl.int64)[:, None] * stride_lt + ids.to(tl.int64) * stride_le
    chosen = tl.load(pointers, mask=used, other=float("-inf")).to(tl.float32)
    if WEIGHTS == "logits":
        return chosen
    if WEIGHTS == "sigmoid":
        return _sigmoid(chosen)
    if WEIGHTS == "softmax_of_all":
        largest = tl.max(tl.where(real, wide, float("-inf")), axis=1)[:, None]
        return tl.exp(chosen - largest) / _sum(tl.where(real, tl.exp(wide - largest), 0.0))
    largest = tl.max(chosen, axis=1)[:, None]
    if (WEIGHTS == "softmax_of_chosen") | (WEIGHTS == "softmax_of_all_over_sum"):
        part = tl.where(used, tl.exp(chosen - largest), 0.0)
        found = part / _sum(part)
        if WEIGHTS == "softmax_of_all_over_sum":
            # The sum over all experts cancels, unless it is NaN.
            known = tl.min(tl.where(real & (wide != wide), 0, 1), axis=1)[:, None] == 1
            found = tl.where(known, found, float("nan"))
        return found
    # Sigmoids divided by their sum. The sigmoid is exp(min(l, 0)) / (1 + exp(-|l|)); its numerator may be too small for
    # float32, so all are scaled by that of the largest.
    low = tl.maximum(tl.minimum(largest, 0.0), -1e30)
    part = tl.where(used, tl.exp(tl.minimum(chosen, 0.0) - low) / (1.0 + tl.exp(-tl.abs(chosen))), 0.0)
    total = _sum(part)
    if WEIGHTS == "sigmoid_over_sum_and_epsilon":
        total += tl.exp(-46.051701859880914 - low)  # log(1e-20)
    return scaling * part / total


@triton.jit(do_not_specialize=["tokens"])
def routing_kernel(
    logits,
    bias,
    expert_ids,
    weights,
    tokens,
    group_size,
    n_group,
    topk_group,
    top_k,
    scaling,
    stride_lt,
    stride_le,
    stride_b,
    BLOCK_T: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    PLACES: tl.constexpr,
    SQUASH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GROUPED: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """BLOCK_T tokens a program."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = token < tokens
    keys, wide, real = expert_keys(
        logits, bias, token, inside, group_size, n_group, topk_group, stride_lt, stride_le, stride_b,
        GROUPS, SIZE, SQUASH, HAS_BIAS, GROUPED,
    )  # fmt: skip
    ids = choose(keys, top_k, PLACES)
    place = tl.arange(0, PLACES)[None, :]
    used = inside[:, None] & (place < top_k)
    found = weigh(logits, ids, token, used, wide, real, scaling, stride_lt, stride_le, WEIGHTS)
    entry = token.to(tl.int64)[:, None] * top_k + place
    tl.store(expert_ids + entry, ids, mask=used)
    tl.store(weights + entry, found, mask=used)
