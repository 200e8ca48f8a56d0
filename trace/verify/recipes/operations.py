"""Every stage but the matrix products, under a recipe: float64 from the operands that the engine used, then its
roundings.

Each function returns the Span in which the engine's float32 number must lie; what each radius is made of is derived in
docs/budgets.md. Values come from the reference backend's own functions, in float64. u is float32's unit roundoff
throughout: 16-bit engines compute inside in float32 and round what they store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....engine.config import ALL
from ....engine.kernels import reference
from ..parallel import each
from ..span import BFLOAT16, FLOAT16, FLOAT32, TF32, TF32_CUT, Array, Span, by_rows, joined, plus, times
from . import ggml_cache
from .products import SIGMAS_ONE_SIGN, summation
from .recipe import Recipe
from .scaled import ROUNDED, held

U = FLOAT32.u
PIECE = 1 << 17  # scores at a time: what bounds them takes a dozen arrays of their size, for each thread
Positions = NDArray[np.int32]


def weight(r: Recipe, values: NDArray[np.floating]) -> Array:
    """A gain, bias or embedding row as the recipe holds it; TF32 is of products alone."""
    wide = np.asarray(values, np.float64)
    return wide if r.weights in (None, TF32, TF32_CUT) else r.weights.round(wide)


def rounded(r: Recipe, x: Span) -> Span:
    """The result as it is stored."""
    return x.map(r.result.round)


def norm(r: Recipe, x: Span, gain_D: Array, eps: float | Array, of: Span | None = None) -> Span:
    """x / sqrt(mean(x^2) + eps), rounded, times the gain, rounded (HF's order; float32 engines with another stay
    inside). of: what the squares are of, if not of x."""
    of = x if of is None else of
    squares_T1 = np.square(of.mid).sum(-1, keepdims=True)
    fourths_T1 = np.square(np.square(of.mid)).sum(-1, keepdims=True)
    safe_T1 = np.maximum(squares_T1, FLOAT32.least)
    sum_error_T1 = summation(x.mid.shape[-1], np.square(squares_T1), fourths_T1, SIGMAS_ONE_SIGN) / safe_T1
    rel_T1 = np.minimum(x.mid.shape[-1] * U, sum_error_T1) / 2 + 4 * U
    scale_T1 = 1 / np.sqrt(squares_T1 / x.mid.shape[-1] + eps)
    y = reference.rms_norm(x.mid, np.ones(1), eps) if of is x and isinstance(eps, float) else x.mid * scale_T1
    radius = np.abs(y) * rel_T1
    if not x.exact:
        radius = radius + x.radius * scale_T1
    if not of.exact:
        radius = radius + np.abs(y) * (np.abs(of.mid) * of.radius).sum(-1, keepdims=True) / safe_T1
    gain = weight(r, gain_D)
    first = r.result if r.norm == "twice" else FLOAT32
    return Span.around(y, radius).map(lambda v: r.result.round(first.round(v) * gain))


def add(r: Recipe, x: Span, y: Span, *, more: Array | float = 0.0) -> Span:
    """x + y. more: what else the sum may be off by."""
    slack = r.slack * (np.abs(x.mid) + np.abs(y.mid)) + more
    both = plus(x, y)
    return rounded(r, Span(both.mid, both.lo - slack, both.hi + slack))


def mul(r: Recipe, x: Span, y: Span) -> Span:
    return by_rows(partial(_mul, r), x, y)


def _mul(r: Recipe, x: Span, y: Span) -> Span:
    both = times(x, y)
    slack = 2 * r.slack * np.abs(both.mid) + (FLOAT32.least if r.slack else 0.0)
    return rounded(r, Span(both.mid, both.lo - slack, both.hi + slack))


def silu(r: Recipe, x: Span) -> Span:
    return by_rows(partial(_silu, r), x)


def _silu(r: Recipe, x: Span) -> Span:
    """x / (1 + exp(-x)): exp to 2u, three more roundings; below -87 float32's exp overflows or its result is flushed
    to 0. Of the ways with steps of their own see facts/sigmoid.py."""
    if r.sigmoid in SIGMOIDS:
        return rounded(r, times(x, SIGMOIDS[r.sigmoid](r, x)))
    y = reference.silu(x.mid)
    wider = r.slack * (1 + np.maximum(-x.mid, 0.3))  # silu'(x) x / silu(x) = 1 + x / (1 + exp(x))
    radius = (6 * U + wider) * np.abs(y) + np.where(x.mid < -80, np.abs(y), 0) + FLOAT32.least
    if r.sigmoid == "absolute":
        radius = radius + 2 * U * np.abs(x.mid)
    if not x.exact:
        radius = radius + 1.1 * x.radius  # the steepest slope of silu is 1.0998
    return rounded(r, Span.around(y, radius))


def steps(r: Recipe, x: Span) -> Span:
    """1 / (1 + exp(-x)), each step rounded; float32's exponential is off by 2u."""
    return _power(r, x.map(np.negative)).map(lambda v: r.result.round(1 + v)).map(lambda v: r.result.round(1 / v))


def mirrored(r: Recipe, x: Span) -> Span:
    """The sigmoid by y = 1 / (1 + exp(|x|)), exp(|x|) rounded; it is y below 0 and 1 - y above, rounded."""
    size = Span.point(np.abs(x.mid)) if x.exact else Span(*(np.abs(end) for end in (x.mid, x.lo, x.hi)))
    y = _power(r, size).map(lambda v: 1 / (1 + v))
    near = Span(y.mid, y.lo * (1 - 3 * U), y.hi * (1 + 3 * U))
    below = x.mid < 0
    return Span(
        *(
            np.where(below, a, 1 - b)
            for a, b in zip((near.mid, near.lo, near.hi), (near.mid, near.hi, near.lo), strict=True)
        )
    ).map(r.result.round)


def _power(r: Recipe, x: Span) -> Span:
    """exp(x), rounded."""
    e = np.exp(x.mid)
    return Span.around(e, 2 * U * e + (0 if x.exact else np.abs(np.exp(x.hi) - np.exp(x.lo)))).map(r.result.round)


SIGMOIDS = {"rounded": steps, "mirrored": mirrored}


TABLES = {"float32": FLOAT32, "float16 tables": FLOAT16, "bfloat16 tables": BFLOAT16}  # of cosines and sines


def rope(r: Recipe, x: Span, angle_Th: Array, magnitude: float = 1.0) -> Span:
    """Split-half rotation [T, n, H]: cosine and sine to 2u, rounded; the products rounded (or fused, in float32); the
    sum rounded. A magnitude is a float32 number, and cosine and sine are multiplied with it in float32: 2u more."""
    table = TABLES.get(r.turn, r.result)
    inner = r.result if r.turn in ("rounded", "contracted") else FLOAT32
    wider = FLOAT32.u if inner is FLOAT32 else 0.0
    # In 16 bits nothing tells an angle's last bits apart, so each may be that of another pow, cosine or product.
    loose = 0.0 if r.result is FLOAT32 else 6 * U
    off_Th = magnitude * ((2 if magnitude == 1 else 4) * U + loose * np.abs(angle_Th))
    cos, sin = (
        Span.around(magnitude * f(angle_Th), off_Th).shaped(lambda v: v[:, None, :]).map(table.round)
        for f in (np.cos, np.sin)
    )
    h = x.mid.shape[-1] // 2
    a, b = x.shaped(lambda v: v[..., :h]), x.shaped(lambda v: v[..., h:])

    def term(part: Span, factor: Span, sign: float) -> Span:
        t = times(part, factor)
        slack = 2 * wider * np.abs(t.mid)
        once = Span(t.mid, t.lo - slack, t.hi + slack).map(inner.round)
        if r.turn == "contracted":
            once = Span(once.mid, np.minimum(once.lo, t.lo), np.maximum(once.hi, t.hi))
        return once.map(lambda v: sign * v)

    first, second = plus(term(a, cos, 1), term(b, sin, -1)), plus(term(b, cos, 1), term(a, sin, 1))
    return rounded(r, joined([first, second], -1))


SHORT = ("short share", "short root", "short queries")  # the scale itself is rounded to the results' format


def scores(r: Recipe, q: Span, k: Span, pos_T: Positions, scale: float | None = None) -> Span:
    """q.k rounded, times the scale (1/sqrt(H)), rounded: [N, T, S]; 0 after the query."""
    H = q.mid.shape[-1]
    root = np.sqrt(H)
    share = 1 / root if scale is None else scale
    if r.scale in SHORT:
        share = r.result.round(np.array(share)) if r.scale != "short root" else 1 / r.result.round(np.array(1 / share))
    before = {
        "queries": (share, 1.0), "short queries": (share, 1.0), "halves": (np.sqrt(share), np.sqrt(share)),
    }.get(r.scale)  # fmt: skip
    if before is not None:
        q, k = (scaled(r, x, f) if f != 1 else x for x, f in zip((q, k), before, strict=True))

    if ggml_cache.known(r.cache):
        q, k = ggml_cache.partners(r, q, k)
        r = replace(r, cache=None, attention=FLOAT32)
    width = np.sqrt(q.mid.shape[-1])

    def dot(a: Array, b: Array, of_T: Positions) -> Array:
        return reference.attn_scores(a, b, of_T) * width

    k = kept(r, k)
    k_SKH = k.mid
    squares_SKH = np.square(k_SKH)

    def some(rows: slice) -> Span:
        x = q.shaped(lambda v: v[rows])
        q_TNH = r.attention.round(x.mid)
        y = dot(q_TNH, k_SKH, pos_T[rows])
        squares = dot(np.square(q_TNH), squares_SKH, pos_T[rows])
        radius = summation(H, np.square(y), squares, kept=r.sums) + r.slack * np.abs(y)
        if not (x.exact and k.exact):
            dq, dk = x.map(r.attention.round).radius, k.radius
            radius = radius + dot(np.abs(q_TNH), dk, pos_T[rows]) + dot(dq, np.abs(k_SKH) + dk, pos_T[rows])
        dots = Span.around(y, radius)
        if before is not None:
            return rounded(r, dots)
        dots = (dots if r.scale == "inside" else rounded(r, dots)).map(lambda v: v * share)
        slack = 2 * U * np.abs(dots.mid)
        return rounded(r, Span(dots.mid, dots.lo - slack, dots.hi + slack))

    return by_queries((q.mid.shape[1], len(q.mid), len(k_SKH)), some)


def by_queries(shape: tuple[int, int, int], some: Callable[[slice], Span]) -> Span:
    """Scores or probabilities [N, T, S], some queries after the others, so that only the result is as large as they
    all are."""
    N, T, S = shape
    step = max(1, PIECE // max(1, N * S))
    if step >= T:
        return some(slice(None))
    mid, lo, hi = (np.empty(shape) for _ in range(3))

    def put(t: int) -> None:
        rows = slice(t, t + step)
        part = some(rows)
        mid[:, rows], lo[:, rows], hi[:, rows] = part.mid, part.lo, part.hi

    each(put, range(0, T, step))
    return Span(mid, lo, hi)


def kept(r: Recipe, x: Span) -> Span:
    """Keys or values [S, K, H] as they meet their partners, by way of the cache: a row is a head's of one position. A
    scale meets numbers of 8 bits before they are rounded to 16, or after the product."""
    if r.cache is None:
        return x.map(r.attention.round)
    if ggml_cache.known(r.cache):
        return ggml_cache.values_of(r, x)
    kind = r.cache.removesuffix(ROUNDED)
    found = held(kind)(x.shaped(lambda v: v.swapaxes(0, 1))).shaped(lambda v: v.swapaxes(0, 1))
    return found if kind == r.cache else found.map(r.attention.round)


def scaled(r: Recipe, x: Span, factor: float) -> Span:
    """x times a float32 factor (or over its inverse), rounded."""
    slack = 2 * U * np.abs(x.mid * factor)
    return rounded(r, Span(x.mid * factor, x.lo * factor - slack, x.hi * factor + slack))


def softmax(r: Recipe, s: Span, pos_T: Positions, window: int = ALL) -> Span:
    """exp(s - max) / sum: the difference rounds by u of its size, exp by 2u, the sum by its S additions."""
    S = s.mid.shape[-1]

    def some(rows: slice) -> Span:
        x = s.shaped(lambda v: v[:, rows])
        p = reference.softmax(x.mid, pos_T[rows], window)
        seen = p > 0
        below = np.where(seen, x.mid, -np.inf).max(-1, keepdims=True) - x.mid
        rel = np.where(seen, np.abs(below) * U + r.slack * np.abs(x.mid), 0)
        if not x.exact:
            rel = rel + np.where(seen, x.radius, 0)
        total = np.minimum(S * U, summation(S, np.ones(1), np.square(p).sum(-1, keepdims=True), SIGMAS_ONE_SIGN))
        rel = rel + (p * rel).sum(-1, keepdims=True) + total + 6 * U
        hidden_TS = reference.hidden(pos_T[rows], S, window)
        radius = np.where(hidden_TS, 0, p * np.expm1(np.minimum(rel, 50)) + FLOAT32.least)
        y = rounded(r, Span.around(p, radius).map(lambda v: np.maximum(v, 0)))
        lost_NT1 = np.isnan(p).any(-1, keepdims=True)
        if not lost_NT1.any():
            return y
        # Of scores that are NaN some engines make a whole row of it, others leave 0 where nothing is seen.
        return Span(np.where(lost_NT1 & hidden_TS, np.nan, y.mid), y.lo, y.hi)

    return by_queries(s.mid.shape, some)


def mix(r: Recipe, p: Span, v: Span, pos_T: Positions) -> Span:
    """Probabilities times values: [T, N, H]."""
    of_p = FLOAT32 if r.mix == "float32" else r.attention
    v = kept(r, v)
    p_NTS, v_SKH = of_p.round(p.mid), v.mid
    y = reference.attn_mix(p_NTS, v_SKH, pos_T)
    squares = reference.attn_mix(np.square(p_NTS), np.square(v_SKH), pos_T)
    radius = summation(pos_T[:, None, None] + 1.0, np.square(y), squares, kept=r.sums)
    if not (p.exact and v.exact):
        dp, dv = p.map(of_p.round).radius, v.radius
        radius = radius + reference.attn_mix(p_NTS, dv, pos_T) + reference.attn_mix(dp, np.abs(v_SKH) + dv, pos_T)
    return rounded(r, Span.around(y, radius))
