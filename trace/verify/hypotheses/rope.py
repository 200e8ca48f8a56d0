"""Mistakes in RoPE."""

from __future__ import annotations

import numpy as np

from ..formulas import ROPE, heads_of, rotated
from ..recipes import operations
from ..site import Site
from ..span import Array, Span
from .hypothesis import Hypothesis, Several, Variants, entering

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)


def turned(s: Site) -> Span:
    """What the stage rotates: [T, N or K, H]."""
    return s.qkv(ROPE.index(s.stage))


def angle(s: Site, shift: int = 0) -> Array:
    return s.evidence.rotations[s.recipe.angle].angle(s.pos_T + np.int32(shift))


@hypothesis("rope-missing", "RoPE is not applied", *ROPE)
def rope_missing(s: Site) -> Variants:
    return operations.rounded(s.recipe, turned(s))


@hypothesis("rope-adjacent-pairs", "RoPE turns adjacent pairs, not halves", *ROPE)
def rope_adjacent_pairs(s: Site) -> Several:
    H = s.config.head_dim
    apart = np.concatenate([np.arange(0, H, 2), np.arange(1, H, 2)])
    together = np.argsort(apart)
    halves = rotated(s, turned(s).shaped(lambda v: v[..., apart]))
    yield "", halves.shaped(lambda v: v[..., together])


@hypothesis(
    "rope-halves-of-permuted",
    "RoPE expects heads permuted for adjacent pairs (llama.cpp's permute), or undoes it",
    *ROPE,
)
def rope_permuted(s: Site) -> Several:
    H = s.config.head_dim
    apart = np.concatenate([np.arange(0, H, 2), np.arange(1, H, 2)])
    yield "", rotated(s, turned(s).shaped(lambda v: v[..., apart]))
    yield "", rotated(s, turned(s).shaped(lambda v: v[..., np.argsort(apart)]))


@hypothesis("rope-theta", "RoPE's theta is {}", *ROPE)
def rope_theta(s: Site) -> Several:
    h = s.config.head_dim // 2
    for theta in (1e3, 1e4, 1e5, 5e5, 1e6, 5e6, 1e7, 1e8):
        if theta != s.config.rope_theta:
            inv_freq_h = (1 / np.array([theta ** (j / h) for j in range(h)]).astype(np.float32)).astype(np.float32)
            table = (s.pos_T.astype(np.float32)[:, None] * inv_freq_h).astype(np.float64)
            yield f"{theta:,.0f}, not {s.config.rope_theta:,.0f}", widened(s, table)


def widened(s: Site, angle_Th: Array) -> Span:
    """A rotation by angles whose last bits nobody told."""
    x = turned(s)
    span = rotated(s, x, angle_Th)
    slack = 4 * operations.U * (1 + np.abs(angle_Th)[:, None]) * np.abs(x.mid).max(-1, keepdims=True)
    slack = np.concatenate([slack, slack], -1)
    return Span(span.mid, span.lo - slack, span.hi + slack)


@hypothesis("rope-position", "RoPE's positions are off by {}", *ROPE)
def rope_position(s: Site) -> Several:
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
def rope_partial(s: Site) -> Several:
    table, h = angle(s), s.config.head_dim // 2
    for share in (2, 4):
        kept = np.where(np.arange(h) < h // share, table, 0)
        yield f"1/{share} of the frequencies", rotated(s, turned(s), kept)


@hypothesis("rope-frequencies", "RoPE's frequencies are {}", *ROPE)
def rope_frequencies(s: Site) -> Several:
    table = angle(s)
    yield "in reverse order", rotated(s, turned(s), table[:, ::-1])
    h = table.shape[1]
    slower = s.pos_T[:, None] * s.config.rope_theta ** (-np.arange(h) / (2 * h))
    yield "theta^(-j/H), not theta^(-2j/H)", widened(s, slower)


@hypothesis("rope-before-bias", "RoPE turns the product before its bias is added", *ROPE)
def rope_before_bias(s: Site) -> Variants:
    return rotated(s, heads_of(s.config, s.input("qkv_matmul"), ROPE.index(s.stage)))
