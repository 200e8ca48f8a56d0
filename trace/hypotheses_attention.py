"""Mistakes in RoPE, scores, soft-max and the sum over values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import recipes_stages as formulas
from .hypotheses import Variants, hypothesis
from .recipes_floats import Array, Span
from .verify_site import ROPE, Site, heads_of, rotated

# -- RoPE -------------------------------------------------------------------------------------------------------------


def turned(s: Site) -> Span:
    """What the stage rotates: [T, N or K, H]."""
    return s.qkv(ROPE.index(s.stage))


def angle(s: Site, shift: int = 0) -> Array:
    return s.bench.rotations[s.recipe.angle].angle(s.pos_T + np.int32(shift))


@hypothesis("rope-missing", "RoPE is not applied", *ROPE)
def rope_missing(s: Site) -> Variants:
    return formulas.rounded(s.recipe, turned(s))


@hypothesis("rope-adjacent-pairs", "RoPE turns adjacent pairs, not halves", *ROPE)
def rope_adjacent_pairs(s: Site) -> Variants:
    H = s.config.head_dim
    apart = np.concatenate([np.arange(0, H, 2), np.arange(1, H, 2)])
    together = np.argsort(apart)
    halves = rotated(s, turned(s).shaped(lambda v: v[..., apart]))
    yield "", halves.shaped(lambda v: v[..., together])


@hypothesis("rope-halves-of-permuted", "RoPE expects heads permuted for adjacent pairs (llama.cpp's permute), or undoes it", *ROPE)
def rope_permuted(s: Site) -> Variants:
    H = s.config.head_dim
    apart = np.concatenate([np.arange(0, H, 2), np.arange(1, H, 2)])
    yield "", rotated(s, turned(s).shaped(lambda v: v[..., apart]))
    yield "", rotated(s, turned(s).shaped(lambda v: v[..., np.argsort(apart)]))


@hypothesis("rope-theta", "RoPE's theta is {}", *ROPE)
def rope_theta(s: Site) -> Variants:
    h = s.config.head_dim // 2
    for theta in (1e3, 1e4, 1e5, 5e5, 1e6, 5e6, 1e7, 1e8):
        if theta != s.config.rope_theta:
            inv_freq_h = (1 / np.array([theta ** (j / h) for j in range(h)]).astype(np.float32)).astype(np.float32)
            table = (s.pos_T.astype(np.float32)[:, None] * inv_freq_h).astype(np.float64)
            yield f"{theta:g}, not {s.config.rope_theta:g}", widened(s, table)


def widened(s: Site, angle_Th: Array) -> Span:
    """A rotation by angles whose last bits nobody told."""
    x = turned(s)
    span = rotated(s, x, angle_Th)
    slack = 4 * formulas.U * (1 + np.abs(angle_Th)[:, None]) * np.abs(x.mid).max(-1, keepdims=True)
    slack = np.concatenate([slack, slack], -1)
    return Span(span.mid, span.lo - slack, span.hi + slack)


@hypothesis("rope-position", "RoPE's positions are off by {}", *ROPE)
def rope_position(s: Site) -> Variants:
    for shift in (-3, -2, -1, 1, 2, 3):
        if s.pos[0] + shift >= 0 or shift > 0:
            yield f"{shift:+d}", rotated(s, turned(s), angle(s, shift))


@hypothesis("rope-position-restart", "RoPE counts positions from 0 in this step, not from what the cache holds", *ROPE)
def rope_position_restart(s: Site) -> Variants:
    return rotated(s, turned(s), angle(s, -s.pos[0])) if s.pos[0] else None


@hypothesis("rope-sign", "RoPE turns the other way", *ROPE)
def rope_sign(s: Site) -> Variants:
    return rotated(s, turned(s), -angle(s))


@hypothesis("rope-twice", "RoPE is applied twice", *ROPE)
def rope_twice(s: Site) -> Variants:
    return rotated(s, rotated(s, turned(s)))


@hypothesis("rope-partial", "RoPE turns only the first {} of a head", *ROPE)
def rope_partial(s: Site) -> Variants:
    table, h = angle(s), s.config.head_dim // 2
    for share in (2, 4):
        kept = np.where(np.arange(h) < h // share, table, 0)
        yield f"1/{share} of the frequencies", rotated(s, turned(s), kept)


@hypothesis("rope-frequencies", "RoPE's frequencies are {}", *ROPE)
def rope_frequencies(s: Site) -> Variants:
    table = angle(s)
    yield "in reverse order", rotated(s, turned(s), table[:, ::-1])
    h = table.shape[1]
    slower = s.pos_T[:, None] * s.config.rope_theta ** (-np.arange(h) / (2 * h))
    yield "theta^(-j/H), not theta^(-2j/H)", widened(s, slower)


@hypothesis("rope-before-bias", "RoPE turns the product before its bias is added", *ROPE)
def rope_before_bias(s: Site) -> Variants:
    return rotated(s, heads_of(s.config, s.input("qkv_matmul"), ROPE.index(s.stage)))


# -- scores -----------------------------------------------------------------------------------------------------------


def scored(s: Site, q: Span | None = None, k: Span | None = None) -> Span:
    return formulas.scores(s.recipe, q or s.input("q_post_rope"), k or s.so_far("k_post_rope"), s.pos_T)


def times(s: Site, x: Span, factor: float) -> Span:
    return formulas.rounded(s.recipe, Span(x.mid * factor, x.lo * factor, x.hi * factor))


@hypothesis("scale", "the attention scale is {}", "attn_scores")
def scale(s: Site) -> Variants:
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
        yield name, times(s, exact, factor * root)


def groupings(s: Site) -> Iterator[tuple[str, Array]]:
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
            yield name, x.shaped(lambda v, head_N=head_N: v[:, head_N])


@hypothesis("head-grouping", "query head n reads the wrong kv head: {}", "attn_scores", "attention")
def head_grouping(s: Site) -> Variants:
    if s.stage == "attn_scores":
        for name, k in regrouped(s, s.so_far("k_post_rope")):
            yield name, scored(s, k=k)
    else:
        for name, v in regrouped(s, s.so_far("qkv_bias")):
            yield name, mixed(s, v=v)


@hypothesis("scores-without-rope", "the scores are taken from {} before RoPE", "attn_scores")
def scores_without_rope(s: Site) -> Variants:
    q, k = s.qkv(0), past(s, 1)
    yield "Q", scored(s, q=q)
    if k is not None:
        yield "K", scored(s, k=k)
        yield "Q and K", scored(s, q=q, k=k)


def past(s: Site, part: int) -> Span | None:
    """Keys (1) or values (2) before RoPE of all positions, where the dump is a prompt from position 0."""
    return s.qkv(part) if s.pos == tuple(range(len(s.pos))) else None


@hypothesis("cache-stale", "{}", "attn_scores", "attention")
def cache_stale(s: Site) -> Variants:
    keys = s.stage == "attn_scores"
    x = s.so_far("k_post_rope" if keys else "qkv_bias")
    what = "keys" if keys else "values"

    def with_rows(f: object) -> Span:
        moved = x.shaped(f)  # type: ignore[arg-type]
        return scored(s, k=moved) if keys else mixed(s, v=moved)

    yield f"the cached {what} are shifted by one position (each reads its predecessor)", with_rows(lambda v: np.roll(v, 1, 0))
    yield f"the cached {what} are shifted by one position (each reads its successor)", with_rows(lambda v: np.roll(v, -1, 0))
    old = len(x.mid) - len(s.pos)
    if old > 0:
        last = np.arange(len(x.mid)) >= old
        mask = last[:, None, None]
        yield f"this step's {what} never reached the cache (zeros stand there)", with_rows(lambda v: np.where(mask, 0, v))
        yield f"this step's {what} never reached the cache (the step before's stand there)", with_rows(
            lambda v: np.where(mask, v[old - 1 : old], v)
        )
        yield f"this step's {what} overwrote those of the step before", with_rows(
            lambda v: np.where((np.arange(len(v)) == old - 1)[:, None, None], v[old : old + 1], v)
        )
        yield f"the cached {what} of all earlier positions are lost (zeros)", with_rows(lambda v: np.where(mask, v, 0))
        yield f"the first cached {what} are lost (zeros)", with_rows(
            lambda v: np.where((np.arange(len(v)) == 0)[:, None, None], 0, v)
        )


# -- soft-max ---------------------------------------------------------------------------------------------------------


def softmax_of(s: Site, scores_NTS: Array, seen_TS: Array | None = None, axis: int = -1) -> Span:
    """exp over its sum along an axis, with what is seen; to a generous float32 rounding."""
    masked = scores_NTS if seen_TS is None else np.where(seen_TS, scores_NTS, -np.inf)
    with np.errstate(invalid="ignore"):
        top = masked.max(axis, keepdims=True)
        below = masked - np.where(np.isfinite(top), top, 0)
        e = np.exp(below)
        p = np.divide(e, e.sum(axis, keepdims=True), out=np.zeros_like(e), where=e.sum(axis, keepdims=True) > 0)
    return spread(s, p, np.where(np.isfinite(below), np.abs(below), 0))


def spread(s: Site, p: Array, size: Array) -> Span:
    """p to float32's rounding, if its exponent was of that size."""
    U, n = formulas.U, p.shape[-1]
    radius = p * (2 * size.max(-1, keepdims=True) + n + 16) * U + formulas.FLOAT32.least
    return formulas.rounded(s.recipe, Span.around(p, radius))


def unmasked(s: Site) -> tuple[Array, Array, Array]:
    """Scores above the diagonal too, key index [S], query positions [T, 1]."""
    k = s.so_far("k_post_rope")
    S = len(k.mid)
    everything = np.full(len(s.pos), S - 1, np.int32)
    stored = s.input("attn_scores").mid[:, :, :S]
    full = formulas.scores(s.recipe, s.input("q_post_rope"), k, everything).mid
    key_S, pos_T1 = np.arange(S), s.pos_T[:, None]
    return np.where(key_S > pos_T1, full, stored), key_S, pos_T1


@hypothesis("mask-missing", "the causal mask is missing", "attn_softmax")
def mask_missing(s: Site) -> Variants:
    full, key_S, pos_T1 = unmasked(s)
    seen = key_S <= pos_T1
    span = softmax_of(s, full)
    # Scores above the diagonal are not in the dump; they are recomputed, to the roundings of a dot product.
    extra = span.mid * formulas.U * 64 * np.abs(full).max()
    yield "", Span(span.mid, span.lo - extra, span.hi + extra)
    shown_as_zero = softmax_of(s, np.where(seen, full, 0))
    yield "", shown_as_zero
    yield "", shown_as_zero.shaped(lambda v: np.where(seen, v, 0))


@hypothesis("mask-off", "the causal mask is off: {}", "attn_softmax")
def mask_off(s: Site) -> Variants:
    full, key_S, pos_T1 = unmasked(s)
    extra = formulas.U * 64 * np.abs(full).max()
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
                yield name, spread(s, mid, np.abs(full))


@hypothesis("mask-inverted", "the causal mask is turned round: each position sees the later keys", "attn_softmax")
def mask_inverted(s: Site) -> Variants:
    full, key_S, pos_T1 = unmasked(s)
    span = softmax_of(s, full, key_S >= pos_T1)
    extra = formulas.U * 64 * np.abs(full).max()
    return Span(span.mid, span.lo - extra * span.mid, span.hi + extra * span.mid)


@hypothesis("softmax-not-normalised", "the soft-max is not normalised: {}", "attn_softmax")
def softmax_not_normalised(s: Site) -> Variants:
    scores = s.input("attn_scores").mid
    seen = np.arange(scores.shape[2]) <= s.pos_T[:, None]
    masked = np.where(seen, scores, -np.inf)
    below = masked - masked.max(-1, keepdims=True)
    yield "exp(x - max)", spread(s, np.exp(below), np.where(seen, -below, 0))
    with np.errstate(over="ignore"):
        e = np.exp(masked)
    if np.isfinite(e).all():
        yield "exp(x)", spread(s, e, np.where(seen, np.abs(scores), 0))


@hypothesis("softmax-wrong-axis", "the soft-max runs over {}", "attn_softmax")
def softmax_wrong_axis(s: Site) -> Variants:
    scores = s.input("attn_scores").mid
    seen = np.arange(scores.shape[2]) <= s.pos_T[:, None]
    for axis, name in ((1, "the queries, not the keys"), (0, "the heads, not the keys")):
        for mask in (seen, None):
            span = softmax_of(s, scores, mask, axis)
            yield name, span
            yield name, span.shaped(lambda v: np.where(seen, v, 0))


@hypothesis("softmax-temperature", "the soft-max is taken of the scores times {}", "attn_softmax")
def softmax_temperature(s: Site) -> Variants:
    x, root = s.input("attn_scores"), np.sqrt(s.config.head_dim)
    for name, factor in (("1/sqrt(H) once more", 1 / root), ("sqrt(H)", root), ("log2(e): exp is 2^x twice", np.log2(np.e)),
                         ("ln 2: 2^x for exp", np.log(2)), ("2", 2.0), ("1/2", 0.5)):  # fmt: skip
        scaled = x.mid * factor
        seen = np.arange(scaled.shape[2]) <= s.pos_T[:, None]
        yield name, softmax_of(s, scaled, seen)


# -- the sum over values ----------------------------------------------------------------------------------------------


def mixed(s: Site, p: Span | None = None, v: Span | None = None) -> Span:
    p = p or s.input("attn_softmax")
    v = v or s.so_far("qkv_bias")
    S = len(v.mid)
    return formulas.mix(s.recipe, p.shaped(lambda a: a[:, :, :S]), v, s.pos_T)


@hypothesis("values-before-bias", "the values are taken before their bias is added", "attention")
def values_before_bias(s: Site) -> Variants:
    if s.pos != tuple(range(len(s.pos))):
        return None
    return mixed(s, v=heads_of(s.config, s.input("qkv_matmul"), 2))


@hypothesis("values-are", "{} stand for the values", "attention")
def values_are(s: Site) -> Variants:
    yield "the keys", mixed(s, v=s.so_far("k_post_rope"))
    raw = past(s, 1)
    if raw is not None:
        yield "the keys before RoPE", mixed(s, v=raw)


@hypothesis("values-rotated", "RoPE is applied to the values too", "attention")
def values_rotated(s: Site) -> Variants:
    v = past(s, 2)
    if v is not None:
        yield "", mixed(s, v=rotated(s, v))


@hypothesis("scores-for-probabilities", "the scores stand for the probabilities", "attention")
def scores_for_probabilities(s: Site) -> Variants:
    return mixed(s, p=s.input("attn_scores"))


@hypothesis("heads-interleaved", "the heads' outputs are laid out [H, N], not [N, H]", "attention")
def heads_interleaved(s: Site) -> Variants:
    span = s.compute()
    T, N, H = span.mid.shape
    yield "", span.shaped(lambda v: v.swapaxes(1, 2).reshape(T, N, H))
    yield "", span.shaped(lambda v: v.reshape(T, H, N).swapaxes(1, 2))
    if T > 1:
        yield "", span.shaped(lambda v: v.swapaxes(0, 1).reshape(T, N, H))
