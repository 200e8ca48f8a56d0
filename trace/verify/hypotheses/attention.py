"""Mistakes in scores, soft-max and the sum over values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....engine.config import ALL
from ....engine.kernels import reference
from ...plural import plural
from ..formulas import heads_of, mix, rotated, seen_of
from ..recipes import operations
from ..site import Site
from ..span import BFLOAT16, FLOAT16, FLOAT32, Array, Span, joined
from .hypothesis import Hypothesis, Several, Variants, entering

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)


Indices = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

# -- scores -----------------------------------------------------------------------------------------------------------


def scored(s: Site, q: Span | None = None, k: Span | None = None, scale: float | None = None) -> Span:
    y = operations.scores(s.recipe, q or s.input("q_post_rope"), k or s.so_far("k_post_rope"), s.see_T, scale)
    return seen_of(s, y)


def times(s: Site, x: Span, factor: float) -> Span:
    return operations.rounded(s.recipe, Span(x.mid * factor, x.lo * factor, x.hi * factor))


@hypothesis("scale", "the attention scale is {}", "attn_scores")
def scale(s: Site) -> Several:
    c = s.config
    exact = scored(s.under(s.recipe))
    root = np.sqrt(c.head_dim)
    for name, factor in (
        ("missing", 1.0),
        ("1/H, applied twice", 1 / c.head_dim),
        ("sqrt(H): multiplied, not divided", root),
        ("1/sqrt(hidden size)", 1 / np.sqrt(c.hidden_size)),
        ("1/sqrt(H/2)", 1 / np.sqrt(c.head_dim / 2)),
        ("1/sqrt(2 H)", 1 / np.sqrt(c.head_dim * 2)),
        ("1/sqrt(N): by the number of heads", 1 / np.sqrt(c.num_attention_heads)),
    ):
        yield name, scored(s, scale=factor)
        yield name, times(s, exact, factor * root)  # made after the right scale


def groupings(s: Site) -> Iterator[tuple[str, Indices]]:
    """Which kv head each query head might read by mistake: name, [N]."""
    N, K = s.config.num_attention_heads, s.config.num_key_value_heads
    right = np.arange(N) // (N // K)
    yield "n modulo K", np.arange(N) % K
    yield "the last kv head first", K - 1 - right
    for n in range(1, min(K, 4)):
        yield f"the kv head {n} further on", (right + n) % K
    for n in range(min(K, 8)):
        yield f"kv head {n} for all", np.full(N, n)


def regrouped(s: Site, x: Span) -> Iterator[tuple[str, Span]]:
    """Keys or values [S, K, H] as [S, N, H], by each wrong grouping."""
    N, K = s.config.num_attention_heads, s.config.num_key_value_heads
    right = np.arange(N) // (N // K)
    for name, head_N in groupings(s):
        if not np.array_equal(head_N, right):
            yield name, x.shaped(partial(np.take, indices=head_N, axis=1))


@hypothesis("head-grouping", "query head n reads the wrong kv head: {}", "attn_scores", "attention")
def head_grouping(s: Site) -> Several:
    if s.stage == "attn_scores":
        for name, k in regrouped(s, s.so_far("k_post_rope")):
            yield name, scored(s, k=k)
    else:
        for name, v in regrouped(s, s.so_far(s.evidence.valued)):
            yield name, mixed(s, v=v)


@hypothesis("scores-without-rope", "the scores are taken from {} before RoPE", "attn_scores")
def scores_without_rope(s: Site) -> Several:
    q, k = s.qkv(0), past(s, 1)
    yield "Q", scored(s, q=q)
    if k is not None:
        yield "K", scored(s, k=k)
        yield "Q and K", scored(s, q=q, k=k)


def past(s: Site, part: int) -> Span | None:
    """Keys (1) or values (2) before RoPE of all positions, where the dump is a prompt from position 0."""
    rows = s.evidence.rows[s.phase]
    return s.at(s.stage, pos=rows).qkv(part) if rows == tuple(range(len(rows))) and rows[-1] == s.pos[-1] else None


@hypothesis("keys-are", "the {} stand for the keys", "attn_scores")
def keys_are(s: Site) -> Several:
    yield "values", scored(s, k=s.so_far(s.evidence.valued))


@hypothesis("cache-stale", "{}", "attn_scores", "attention")
def cache_stale(s: Site) -> Several:
    keys = s.stage == "attn_scores"
    x = s.so_far("k_post_rope" if keys else s.evidence.valued)
    what = "keys" if keys else "values"

    def with_rows(f: Callable[[Array], Array]) -> Span:
        moved = x.shaped(f)
        return scored(s, k=moved) if keys else mixed(s, v=moved)

    yield (
        f"the cached {what} are shifted by one position (each reads its predecessor)",
        with_rows(lambda v: np.roll(v, 1, 0)),
    )
    yield (
        f"the cached {what} are shifted by one position (each reads its successor)",
        with_rows(lambda v: np.roll(v, -1, 0)),
    )
    old = s.evidence.rows[s.phase][0]
    if old > 0:
        last = np.arange(len(x.mid)) >= old
        mask = last[:, None, None]
        yield (
            f"this step's {what} never reached the cache (zeros stand there)",
            with_rows(lambda v: np.where(mask, 0, v)),
        )
        yield (
            f"this step's {what} never reached the cache (the step before's stand there)",
            with_rows(lambda v: np.where(mask, v[old - 1 : old], v)),
        )
        yield (
            f"this step's {what} overwrote those of the step before",
            with_rows(lambda v: np.where((np.arange(len(v)) == old - 1)[:, None, None], v[old : old + 1], v)),
        )
        yield f"the cached {what} of all earlier positions are lost (zeros)", with_rows(lambda v: np.where(mask, v, 0))
        yield (
            f"the first cached {what} are lost (zeros)",
            with_rows(lambda v: np.where((np.arange(len(v)) == 0)[:, None, None], 0, v)),
        )


@hypothesis("rope-cached", "the cached keys are turned once more in {}", "attn_scores")
def rope_cached(s: Site) -> Several:
    """Keys that were turned before they were stored, and are turned by their own positions when they are read."""
    k, rows = s.so_far("k_post_rope"), s.evidence.rows
    old = [p for phase in s.evidence.phases if phase < s.phase for p in rows[phase]]
    if not old or old != list(range(len(old))):
        return
    at = s.at("k_post_rope", pos=tuple(old))
    turned = k.shaped(lambda v: v[: len(old)])
    steps = [phase for phase in s.evidence.phases if phase <= s.phase]
    for n, phase in enumerate(steps[1:], 1):
        first = sum(len(rows[p]) for p in steps[:n])  # what was in the cache when this step began
        again = rotated(at, turned)
        turned = joined([again.shaped(lambda v, n=first: v[:n]), turned.shaped(lambda v, n=first: v[n:])], 0)  # type: ignore[misc]
        if phase == s.phase:
            yield "each step", scored(s, k=joined([turned, k.shaped(lambda v: v[len(old) :])], 0))
    once = rotated(at, k.shaped(lambda v: v[: len(old)]))
    yield "this step", scored(s, k=joined([once, k.shaped(lambda v: v[len(old) :])], 0))


# -- soft-max ---------------------------------------------------------------------------------------------------------


def softmax_of(s: Site, scores: Span, seen_TS: Mask | None = None, axis: int = -1) -> Span:
    """exp over its sum along an axis of the scores [N, T, S], with what is seen; to a generous float32 rounding."""
    masked = scores.mid if seen_TS is None else np.where(seen_TS, scores.mid, -np.inf)
    with np.errstate(invalid="ignore"):
        top = masked.max(axis, keepdims=True)
        below = masked - np.where(np.isfinite(top), top, 0)
        e = np.exp(below)
        p = np.divide(e, e.sum(axis, keepdims=True), out=np.zeros_like(e), where=e.sum(axis, keepdims=True) > 0)
    return to_rounding(s, p, np.where(np.isfinite(below), np.abs(below), 0), scores)


def to_rounding(s: Site, p: Array, size: Array, scores: Span) -> Span:
    """p to float32's rounding, if its exponent was of that size, and to what the scores are sure to."""
    U, n = operations.U, p.shape[-1]
    rel = (2 * size.max(-1, keepdims=True) + n + 16) * U
    if not scores.exact:
        rel = rel + np.expm1(np.minimum(2 * scores.radius.max(-1, keepdims=True), 50))
    return operations.rounded(s.recipe, Span.around(p, p * rel + operations.FLOAT32.least))


def unmasked(s: Site) -> tuple[Span, Indices, Indices]:
    """Scores above the diagonal too, key index [S], query positions [T, 1]."""
    k = s.so_far("k_post_rope")
    S = len(k.mid)
    everything = np.full(len(s.pos), S - 1, np.int32)
    stored = s.input("attn_scores").shaped(lambda v: v[:, :, :S])
    full = operations.scores(s.recipe, s.input("q_post_rope"), k, everything)
    key_S, pos_T1 = np.arange(S), s.pos_T[:, None]
    seen_TS = ~reference.hidden(s.see_T, S, s.evidence.window(s.layer))
    if stored.exact:  # what is not in the dump is allowed its roundings by the hypotheses themselves
        return Span.point(np.where(seen_TS, stored.mid, full.mid)), key_S, pos_T1
    both = (
        np.where(seen_TS, a, b)
        for a, b in zip((stored.mid, stored.lo, stored.hi), (full.mid, full.lo, full.hi), strict=True)
    )
    return Span(*both), key_S, pos_T1


@hypothesis("mask-missing", "the causal mask is missing", "attn_softmax")
def mask_missing(s: Site) -> Several:
    full, key_S, pos_T1 = unmasked(s)
    seen = key_S <= pos_T1
    span = softmax_of(s, full)
    # Scores above the diagonal are not in the dump; they are recomputed, to the roundings of a dot product.
    extra = span.mid * operations.U * 64 * np.abs(full.mid).max()
    yield "", Span(span.mid, span.lo - extra, span.hi + extra)
    shown_as_zero = softmax_of(s, full.shaped(lambda v: np.where(seen, v, 0)))
    yield "", shown_as_zero
    yield "", shown_as_zero.shaped(lambda v: np.where(seen, v, 0))


@hypothesis("mask-off", "the causal mask is off: {}", "attn_softmax")
def mask_off(s: Site) -> Several:
    full, key_S, pos_T1 = unmasked(s)
    extra = operations.U * 64 * np.abs(full.mid).max()
    for shift, name in ((-1, "strict, a position does not see itself"), (1, "each position sees one key too many")):
        span = softmax_of(s, full, key_S <= pos_T1 + shift)
        yield name, Span(span.mid, span.lo - extra * span.mid, span.hi + extra * span.mid)
        # A first row that sees nothing is uniform, or sees itself, or is not a number, as the engine likes.
        lonely = (key_S <= pos_T1 + shift).sum(-1) == 0
        if lonely.any():
            for fill in (1.0 / len(key_S), None):
                mid = span.mid.copy()
                rows = np.full(len(key_S), fill) if fill else (key_S[None] == pos_T1[lonely]).astype(float)
                mid[:, lonely] = rows
                yield name, to_rounding(s, mid, np.abs(full.mid), full)


@hypothesis("window", "the attention window {}", "attn_softmax")
def window(s: Site) -> Several:
    """A key too many or too few, the window of other layers, or none. What our own window hides of the scores the dump
    need not hold: it is computed anew, to the roundings of a dot product."""
    full, key_S, _ = unmasked(s)
    own = s.evidence.window(s.layer)
    others = {w: f"is {plural(w, 'position')}" for w in {*s.config.windows} - {0, own}}
    if own != ALL:
        others |= {
            own - 1: f"is {plural(own - 1, 'position')}, one too few",
            own + 1: f"is {own + 1} positions, one too many",
        }
        others[ALL] = "is not applied"
    for size, words in others.items():
        seen_TS = ~reference.hidden(s.pos_T, len(key_S), size)
        span = softmax_of(s, full, seen_TS)
        extra = span.mid * operations.U * 64 * np.abs(full.mid).max()
        there = "layers that have none" if own == ALL else f"one of {own} is right"
        yield f"{words}; {there}", Span(span.mid, span.lo - extra, span.hi + extra)


@hypothesis("mask-inverted", "the causal mask is turned round: each position sees the later keys", "attn_softmax")
def mask_inverted(s: Site) -> Variants:
    full, key_S, pos_T1 = unmasked(s)
    span = softmax_of(s, full, key_S >= pos_T1)
    extra = operations.U * 64 * np.abs(full.mid).max()
    return Span(span.mid, span.lo - extra * span.mid, span.hi + extra * span.mid)


@hypothesis("softmax-not-normalised", "the soft-max is not normalised: {}", "attn_softmax")
def softmax_not_normalised(s: Site) -> Several:
    scores = s.input("attn_scores")
    seen = np.arange(scores.mid.shape[2]) <= s.see_T[:, None]
    masked = np.where(seen, scores.mid, -np.inf)
    below = masked - masked.max(-1, keepdims=True)
    yield "exp(x - max)", to_rounding(s, np.exp(below), np.where(seen, -below, 0), scores)
    with np.errstate(over="ignore"):
        e = np.exp(masked)
    if np.isfinite(e).all():
        yield "exp(x)", to_rounding(s, e, np.where(seen, np.abs(scores.mid), 0), scores)


@hypothesis("softmax-wrong-axis", "the soft-max runs over {}", "attn_softmax", by_row=False)
def softmax_wrong_axis(s: Site) -> Several:
    scores = s.input("attn_scores")
    seen = np.arange(scores.mid.shape[2]) <= s.pos_T[:, None]
    for axis, name in ((1, "the queries, not the keys"), (0, "the heads, not the keys")):
        for mask in (seen, None):
            span = softmax_of(s, scores, mask, axis)
            yield name, span
            yield name, span.shaped(lambda v: np.where(seen, v, 0))


@hypothesis("softmax-temperature", "the soft-max is taken of the scores times {}", "attn_softmax")
def softmax_temperature(s: Site) -> Several:
    x, root = s.input("attn_scores"), np.sqrt(s.config.head_dim)
    factors = {
        "1/sqrt(H) once more": 1 / root,
        "sqrt(H)": root,
        "log2(e): 2^x was meant": 1 / np.log(2),
        "ln 2: 2^x stands for exp": np.log(2),
        "2": 2.0,
        "1/2": 0.5,
    }
    for name, factor in factors.items():
        scaled = x.map(partial(np.multiply, factor))
        seen = np.arange(scaled.mid.shape[2]) <= s.pos_T[:, None]
        yield name, softmax_of(s, scaled, seen)


@hypothesis("softmax-short", "the soft-max is computed in {}, not in float32", "attn_softmax")
def softmax_short(s: Site) -> Several:
    """Difference, power, sum and quotient are rounded each; the sum is kept in float32, as libraries do."""
    x = s.input("attn_scores")
    n = x.mid.shape[2]
    seen_TS = ~reference.hidden(s.see_T, n, s.evidence.window(s.layer))
    for f in (FLOAT16, BFLOAT16) if s.recipe.result is FLOAT32 else (s.recipe.result,):
        stored = x.map(f.round)
        below = [np.where(seen_TS, v, -np.inf) for v in (stored.mid, stored.lo, stored.hi)]
        top, least, most = (v.max(-1, keepdims=True) for v in below)
        ends = (below[0] - top, below[1] - most, np.minimum(below[2] - least, 0))
        rel = (0, -2 * operations.U, 2 * operations.U)
        e = [f.round(np.exp(f.round(v)) * (1 + off)) for v, off in zip(ends, rel, strict=True)]
        slack = n * operations.U
        total, fewest, largest = (
            f.round(v.sum(-1, keepdims=True) * (1 + off)) for v, off in zip(e, (0, -slack, slack), strict=True)
        )
        p = Span(e[0] / total, e[1] / largest * (1 - operations.U), e[2] / fewest * (1 + operations.U))
        yield f.name, p.map(f.round)


@hypothesis("softmax-blocks", "the sum over earlier blocks of {}, when a larger score comes", "attention")
def softmax_blocks(s: Site) -> Several:
    """Attention in one piece, whose running sums are to be multiplied by exp(old largest - new largest)."""
    scores, S = s.at("attn_softmax").input("attn_scores"), len(s.so_far(s.evidence.valued).mid)
    seen_TS = ~reference.hidden(s.see_T, S, s.evidence.window(s.layer))
    x = np.where(seen_TS, scores.mid[:, :, :S], -np.inf)
    largest = x.max(-1, keepdims=True)
    for block in (16, 32, 64, 128, 256):
        if block >= S:
            break
        ends = np.minimum(np.arange(block, S + block, block), S) - 1
        running = np.maximum.accumulate(x, -1)[:, :, ends].repeat(block, -1)[:, :, :S]
        with np.errstate(invalid="ignore"):
            e = np.nan_to_num(np.exp(x - running), nan=0.0, posinf=0.0)
        right = np.exp(x - largest).sum(-1, keepdims=True)
        for words, total in (("", e.sum(-1, keepdims=True)), (" in the numerator alone", right)):
            p = to_rounding(s.at("attn_softmax"), e / total, np.where(seen_TS, np.abs(scores.mid[:, :, :S]), 0), scores)
            yield f"{block} keys is not made smaller{words}", mixed(s, p=p)


# -- the sum over values ----------------------------------------------------------------------------------------------


def mixed(s: Site, p: Span | None = None, v: Span | None = None) -> Span:
    p = p or s.input("attn_softmax")
    v = v or s.so_far(s.evidence.valued)
    S = len(v.mid)
    return mix(s, p.shaped(lambda a: a[:, :, :S]), v)


def attended(s: Site, k: Span, v: Span) -> Span:
    """The sum under the probabilities that other keys make, of these values: all that is between is made anew."""
    p = s.at("attn_softmax").having(attn_scores=scored(s.at("attn_scores"), k=k)).compute()
    return mixed(s, p=p, v=v)


@hypothesis("values-before-bias", "the values are taken before their bias is added", "attention")
def values_before_bias(s: Site) -> Variants:
    if s.pos != tuple(range(len(s.pos))) or s.evidence.valued == "qkv_matmul":
        return None
    return mixed(s, v=heads_of(s.config, s.input("qkv_matmul"), 2))


@hypothesis("values-are", "{} stand for the values", "attention")
def values_are(s: Site) -> Several:
    yield "the keys", mixed(s, v=s.so_far("k_post_rope"))
    raw = past(s, 1)
    if raw is not None:
        yield "the keys before RoPE", mixed(s, v=raw)


@hypothesis("values-rotated", "RoPE is applied to the values too", "attention")
def values_rotated(s: Site) -> Several:
    v = past(s, 2)
    if v is not None:
        yield "", mixed(s, v=rotated(s, v))


@hypothesis("scores-for-probabilities", "the scores stand for the probabilities", "attention")
def scores_for_probabilities(s: Site) -> Variants:
    return mixed(s, p=s.input("attn_scores"))


@hypothesis("heads-interleaved", "the heads' outputs are laid out [H, N], not [N, H]", "attention")
def heads_interleaved(s: Site) -> Several:
    span = s.compute()
    T, N, H = span.mid.shape
    yield "", span.shaped(lambda v: v.swapaxes(1, 2).reshape(T, N, H))
    yield "", span.shaped(lambda v: v.reshape(T, H, N).swapaxes(1, 2))
    if T > 1:
        yield "", span.shaped(lambda v: v.swapaxes(0, 1).reshape(T, N, H))
