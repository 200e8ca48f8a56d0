"""Attention in one piece: no score and no probability is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ....engine.config import ALL
from ....engine.kernels import reference
from ..span import FLOAT16, FLOAT32, Array, Span
from . import ggml_cache, operations
from .facts.mixing import GGML
from .products import SIGMAS_ONE_SIGN, summation
from .recipe import Recipe

# How far an exponential may be off, relatively. Measured in PyTorch 2.13 on one-hot values, AVX-512: up to 1.0e-4 in
# 16 bits, 3.2e-6 in float32; CUDA's ex2.approx is good to 2 units of float32's last place.
EXP = {"flash": 2.0**-18, "fast flash": 2.0**-13, "blocks": 2.0**-13}


def attention(r: Recipe, q: Span, k: Span, v: Span, pos_T: operations.Positions, window: int = ALL) -> Span:
    """[T, N, H]: the soft-max of the unrounded scores, times the values, rounded once.

    Flash attention (Dao et al. 2022, section 3.1) sums exp(s - m) v, m being the largest score so far, and divides by
    the sum of exp(s - m) at the end. Where exp(s - m) is rounded to the values' format, its rounding is part of the
    recipe: m is the row's largest score, as it is if all keys are one block. In blocks of a size and an order that
    nobody told, m is the largest so far, and which way exp(s - m) is rounded is open: u of each, in a random walk.
    """
    inside = replace(r, result=FLOAT32, scale="inside")
    scores = operations.scores(inside, q, k, pos_T)
    if r.mix == "float32":
        return operations.mix(r, operations.softmax(inside, scores, pos_T, window), v, pos_T)
    seen_TS = ~reference.hidden(pos_T, scores.mid.shape[2], window)
    top_NT1 = np.where(seen_TS, scores.mid, -np.inf).max(-1, keepdims=True)
    below = np.where(seen_TS, scores.mid - top_NT1, -np.inf)
    radius = np.where(seen_TS, scores.radius, 0)
    rel = np.where(seen_TS, radius + radius.max(-1, keepdims=True) - below * FLOAT32.u, 0) + EXP[r.mix]
    power = np.exp(below)
    p = Span(power, power * np.exp(-rel), power * np.exp(rel))
    weights = p if r.mix == "blocks" else p.map(r.attention.round)
    total = power.sum(-1, keepdims=True)
    S = power.shape[-1]
    total_error = (power * np.expm1(rel)).sum(-1, keepdims=True) + np.minimum(
        S * FLOAT32.u * total,
        summation(S, np.square(total), np.square(power).sum(-1, keepdims=True), SIGMAS_ONE_SIGN),
    )
    return operations.rounded(r, divided(mixed(weights, v, r, pos_T, loose=r.mix == "blocks"), total, total_error))


def weighed(r: Recipe, p: Span, v: Span, pos_T: operations.Positions) -> Span:
    """[T, N, H]: the values [S, K, H] under probabilities [N, T, S] that an engine came to by a mistake.

    In one piece they are taken relative to the largest of their row, and what they are relative to is divided out at
    the end.
    """
    if r.mix == "float32":
        return operations.mix(r, p, v, pos_T)
    size_NT1 = np.abs(p.mid).max(-1, keepdims=True)
    size_NT1 = np.where(size_NT1 > 0, size_NT1, 1)
    power = p.mid / size_NT1
    weights = Span.around(power, p.radius / size_NT1 + EXP.get(r.mix, EXP["flash"]) * np.abs(power))
    if r.mix in ("flash", "fast flash"):
        weights = weights.map(r.attention.round)
    if r.mix in GGML and r.attention is FLOAT16 and not ggml_cache.known(r.cache):
        r = replace(r, sums=FLOAT16)
    last_T = np.full(len(pos_T), p.mid.shape[-1] - 1, np.int32)  # whatever the mask should be
    y, size_TN1 = mixed(weights, v, r, last_T, loose=r.mix == "blocks"), size_NT1.swapaxes(0, 1)
    value = y.mid * size_TN1
    rel = EXP.get(r.mix, 0.0) + 2 * FLOAT32.u  # what they are relative to is a sum of the same exponentials
    return operations.rounded(r, Span.around(value, y.radius * size_TN1 * (1 + rel) + rel * np.abs(value)))


def mixed(p: Span, v: Span, r: Recipe, pos_T: operations.Positions, loose: bool = False) -> Span:
    """The sum over values, unrounded, for weights that are rounded already; loose: each may be off by a rounding."""
    v = operations.kept(r, v)
    v_SKH = v.mid
    y = reference.attn_mix(p.mid, v_SKH, pos_T)
    squares = reference.attn_mix(np.square(p.mid), np.square(v_SKH), pos_T)
    radius = summation(pos_T[:, None, None] + 1.0, np.square(y), squares, kept=r.sums)
    if loose:
        off = r.attention.u * np.where(p.mid > 0, np.maximum(p.mid, r.attention.least), 0)
        worst = reference.attn_mix(off, np.abs(v_SKH), pos_T)
        walk = SIGMAS_ONE_SIGN * np.sqrt(reference.attn_mix(np.square(off), np.square(v_SKH), pos_T) / 3)
        radius = radius + np.minimum(worst, walk)
    dv = v.radius
    radius = radius + reference.attn_mix(p.mid, dv, pos_T) + reference.attn_mix(p.radius, np.abs(v_SKH) + dv, pos_T)
    return Span.around(y, radius)


def divided(x: Span, total_NT1: Array, error_NT1: Array) -> Span:
    """[T, N, H] over the sum of its weights, which is off by at most `error`."""
    total_TN1, error_TN1 = total_NT1.swapaxes(0, 1), error_NT1.swapaxes(0, 1)
    rel = error_TN1 / total_TN1 + 2 * FLOAT32.u
    y = x.mid / total_TN1
    return Span.around(y, x.radius / total_TN1 * (1 + rel) + np.abs(y) * rel)
