"""ggml's flash attention on a CPU (ggml/src/ggml-cpu/ops.cpp): one query after the other, or tiles of 64 of them.

One query: for each key in turn s = q.k times the scale; where s is the largest so far, what is summed is multiplied by
exp(old - s), and the value is added once; else exp(s - largest) times the value. Values of a cache in halves are summed
in a half, rounded after each step, others in float32. At the end the sum is divided by that of the exponentials.
A tile: scores, exponentials and sums in float32, queries unrounded.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ....engine.config import ALL
from ....engine.kernels import reference
from ..span import FLOAT16, FLOAT32, Array, Span
from . import flash, ggml_cache, operations
from .products import SIGMAS_ONE_SIGN, summation
from .recipe import Recipe

TILE = 64  # queries: with fewer in a graph, one after the other
EXP = 4 * FLOAT32.u  # how far an exponential may be off, relatively


def attention(
    r: Recipe, q: Span, k: Span, v: Span, pos_T: operations.Positions, tiled: bool, window: int = ALL
) -> Span:
    """[T, N, H], for queries [T, N, H], keys and values [S, K, H]. Tiles are for caches of 16 or 32 bits."""
    if tiled and r.cache is None and r.attention in (FLOAT16, FLOAT32):
        k, v = k.map(r.attention.round), v.map(r.attention.round)
        r = replace(r, attention=FLOAT32)
    scores = operations.scores(replace(r, scale="inside"), q, k, pos_T)
    seen_TS = ~reference.hidden(pos_T, scores.mid.shape[2], window)
    below = np.where(seen_TS, scores.mid - np.where(seen_TS, scores.mid, -np.inf).max(-1, keepdims=True), -np.inf)
    radius = np.where(seen_TS, scores.radius, 0)
    power = np.exp(below)
    rel = np.where(seen_TS, radius + radius.max(-1, keepdims=True) - below * FLOAT32.u, 0) + EXP
    total = power.sum(-1, keepdims=True)
    S = power.shape[-1]
    total_error = (power * np.expm1(rel)).sum(-1, keepdims=True) + np.minimum(
        2 * S * FLOAT32.u * total,
        summation(2 * S, np.square(total), np.square(power).sum(-1, keepdims=True), SIGMAS_ONE_SIGN),
    )
    if r.attention is FLOAT16 and not ggml_cache.known(r.cache):
        summed = in_halves(scores, radius, operations.kept(r, v), seen_TS)
    else:
        p = Span(power, power * np.exp(-rel), power * np.exp(rel))
        summed = flash.mixed(p, v, r, pos_T)
        more = turning(power, operations.kept(r, v).mid, pos_T) if str(r.cache).endswith(ggml_cache.TURNED) else 0.0
        # What is summed is rounded once more where a larger score shrinks it.
        summed = Span.around(summed.mid, summed.radius * np.sqrt(2) + more)
    return operations.rounded(r, flash.divided(summed, total, total_error))


def turning(power: Array, v_SKH: Array, pos_T: operations.Positions) -> Array:
    """How far the sum over turned values may be off once it is turned back [T, N, 1]: the errors of all numbers of a
    head are mixed, those of the transform with them."""
    y, squares = reference.attn_mix(power, v_SKH, pos_T), reference.attn_mix(np.square(power), np.square(v_SKH), pos_T)
    steps = 2 * (pos_T[:, None, None] + 1.0) + np.log2(ggml_cache.LEAST_TURN)
    return summation(steps, np.square(y).mean(-1, keepdims=True), squares.mean(-1, keepdims=True))


def in_halves(scores: Span, radius: Array, v: Span, seen_TS: NDArray[np.bool_]) -> Span:
    """The sum over keys [T, N, H], in order, kept in halves: of exp(s - largest so far) times the value.

    An exponential's last bits decide which way a step is rounded where it is near a tie, so each step is taken for
    both ends of it: a monotone function of the sum so far, so that the ends hold the sum.
    """
    N, T, _ = scores.mid.shape
    groups = N // v.mid.shape[1]
    mid: Array = np.zeros((T, N, v.mid.shape[2]))
    lo, hi = mid, mid
    top, unsure = np.full((T, N, 1), -np.inf), np.zeros((T, N, 1))
    for key in np.flatnonzero(seen_TS.any(0)):
        rows = np.flatnonzero(seen_TS[:, key])
        s, off = (x[:, rows, key].T[:, :, None] for x in (scores.mid, radius))
        old, was = top[rows], unsure[rows]
        new = np.maximum(old, s)
        shrink, weight = np.exp(old - new), np.exp(s - new)
        tell = np.where(np.isfinite(old), np.abs(s - old), 0) * FLOAT32.u + off + was + EXP
        rose = s > old
        shrink_off, weight_off = (np.where(which, np.expm1(tell), 0) for which in (rose & np.isfinite(old), ~rose))
        values = [np.repeat(x[key], groups, 0) for x in ((v.mid,) if v.exact else (v.mid, v.lo, v.hi))]
        down, up = shrink * (1 - shrink_off), shrink * (1 + shrink_off)
        terms = [x * w for x in values for w in (weight * (1 - weight_off), weight * (1 + weight_off))]
        less, more = np.minimum.reduce(terms), np.maximum.reduce(terms)
        kept = FLOAT16.round
        ends = [kept(x * w) for x in (lo[rows], hi[rows]) for w in (down, up)]
        mid_rows = kept(kept(mid[rows] * shrink) + values[0] * weight)
        lo_rows, hi_rows = kept(np.minimum.reduce(ends) + less), kept(np.maximum.reduce(ends) + more)
        mid, lo, hi = (_set(x, rows, y) for x, y in ((mid, mid_rows), (lo, lo_rows), (hi, hi_rows)))
        top[rows], unsure[rows] = new, np.where(rose, off, was)
    return Span(mid, np.minimum(lo, mid), np.maximum(hi, mid))


def _set(x: Array, rows: NDArray[np.intp], y: Array) -> Array:
    if len(rows) == len(x):
        return y
    x = x.copy()
    x[rows] = y
    return x
