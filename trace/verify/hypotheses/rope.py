"""Mistakes in RoPE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....engine.rope import LENGTH, UNSCALED, Scaling, frequencies, read
from ..formulas import ROPE, as_heads, heads_of, norm, rotated
from ..recipes import operations
from ..recipes.rope import Product, rotations
from ..site import Site
from ..span import BFLOAT16, FLOAT16, Array, Float, Span, joined
from .hypothesis import Hypothesis, Several, Variants, entering
from .whole import shifts

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

FURTHEST = 1024  # positions that a shift is sought in, beyond those of the dump


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
            table = Product(inv_freq_h).angle(s.pos_T)
            yield f"{theta:,.0f}, not {s.config.rope_theta:,.0f}", widened(s, table)


def widened(s: Site, angle_Th: Array, magnitude: float | None = None, x: Span | None = None) -> Span:
    """A rotation by angles whose last bits nobody told. x: of these channels; None for all."""
    x = turned(s) if x is None else x
    span = rotated(s, x, angle_Th, magnitude)
    size = max(1, magnitude or s.evidence.weights.magnitude)
    slack = size * 4 * operations.U * (1 + np.abs(angle_Th)[:, None]) * np.abs(x.mid).max(-1, keepdims=True)
    slack = np.concatenate([slack, slack], -1)
    return Span(span.mid, span.lo - slack, span.hi + slack)


@hypothesis("rope-position", "RoPE's positions are off by {}", *ROPE)
def rope_position(s: Site) -> Several:
    for shift in (-3, -2, -1, 1, 2, 3):
        if s.pos[0] + shift >= 0 or shift > 0:
            yield f"{shift:+d}", rotated(s, turned(s), angle(s, shift))
    found = fitted(s)
    if found is not None and len({*(found - s.pos_T).tolist()}) == 1 and abs(found[0] - s.pos_T[0]) > 3:
        yield f"{found[0] - s.pos_T[0]:+d}", rotated(s, turned(s), at_positions(s, found))
    if found is None:
        shift_P = np.arange(-FURTHEST, FURTHEST, dtype=np.int32)
        for shift in dict.fromkeys(shifts(s, np.asarray(at_positions(s, shift_P), np.float64), shift_P)):
            if abs(shift) > 3:
                yield f"{shift:+d}", rotated(s, turned(s), angle(s, shift))


@hypothesis("rope-rows", "RoPE turns rows by other positions than theirs: {}", *ROPE)
def rope_rows(s: Site) -> Several:
    found = fitted(s)
    if found is not None and len({*(found - s.pos_T).tolist()}) > 1:
        wrong = np.flatnonzero(found != s.pos_T)
        said = [f"position {s.pos[t]} by {found[t]}" for t in wrong[:4].tolist()]
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        for table in (at_positions(s, found), *unfitted(s, found)):
            yield ", ".join(said) + more, rotated(s, turned(s), table)


def at_positions(s: Site, pos_T: NDArray[np.int32]) -> Array:
    return s.evidence.rotations[s.recipe.angle].angle(pos_T)


def unfitted(s: Site, pos_T: NDArray[np.int32]) -> Iterator[Array]:
    """Angles by every way with the model's own frequencies: where positions are wrong, those that were fitted to the
    dump fit what nobody computed."""
    c, session = s.config, 1 + max(max(rows) for rows in s.evidence.rows.values())
    table = np.asarray(s.evidence.weights.frequencies(session), np.float32)
    for way in rotations(c.rope_theta, table, c.rope_scaling, c.rope_scaling.beyond(session)).values():
        yield way.angle(pos_T)


def fitted(s: Site) -> NDArray[np.int32] | None:
    """[T]: the position by which each row is turned, as it fits the dump best; None where the dump lacks the stage."""
    mine, x = s.evidence.dump.get(s.stage, s.layer, s.phase), turned(s).mid
    if mine is None or mine.shape != x.shape:
        return None
    y, h = np.asarray(s.evidence.values(mine), np.float64), x.shape[-1] // 2
    if not np.isfinite(y).all():
        return None
    turn_Th = (np.conj(x[..., :h] + 1j * x[..., h:]) * (y[..., :h] + 1j * y[..., h:])).sum(1)
    most = max(FURTHEST, 4 * (s.pos[-1] + 1))
    pos_P = np.arange(-FURTHEST if s.pos[0] else 0, most, dtype=np.int32)
    angle_Ph = np.asarray(at_positions(s, pos_P), np.float64)
    found = [(t[None] * np.exp(-1j * angle_Ph)).sum(1).real.argmax() for t in turn_Th]
    return pos_P[np.array(found)]


@hypothesis("rope-position-restart", "RoPE counts positions from 0 in this step, not from what the cache holds", *ROPE)
def rope_position_restart(s: Site) -> Variants:
    return rotated(s, turned(s), angle(s, -s.pos[0])) if s.pos[0] else None


@hypothesis("rope-position-doubled", "RoPE counts positions from {} what the cache holds in each pass", *ROPE)
def rope_position_doubled(s: Site) -> Several:
    """An offset that is added to one that holds it already."""
    held = s.evidence.rows[s.phase][0]
    if held or s.judged != s.stage:  # the first pass of several is right; alone it shows nothing
        yield "twice", rotated(s, turned(s), angle(s, held))


@hypothesis("rope-sign", "RoPE turns the other way", *ROPE)
def rope_sign(s: Site) -> Variants:
    return rotated(s, turned(s), -angle(s))


@hypothesis("rope-twice", "RoPE is applied twice", *ROPE)
def rope_twice(s: Site) -> Variants:
    return rotated(s, rotated(s, turned(s)))


@hypothesis("rope-partial", "RoPE turns only the first {} of a head", *ROPE)
def rope_partial(s: Site) -> Several:
    """The first frequencies, whose channels stand in both halves; or the first channels, which have halves of their
    own, by the frequencies of a head or of one that is no larger."""
    table, H = angle(s), s.config.head_dim
    for share in (2, 4):
        kept = np.where(np.arange(H // 2) < H // 2 // share, table, 0)
        yield f"1/{share} of the frequencies", rotated(s, turned(s), kept)
    x = turned(s)
    for n, part_of in ((H // 2, "1/2"), (H // 4, "1/4"), (3 * H // 4, "3/4")):
        h = n // 2
        if h and n % 2 == 0:
            first, rest = x.shaped(partial(channels, slice(0, n))), x.shaped(partial(channels, slice(n, None)))
            own = s.pos_T[:, None] * s.config.rope_theta ** (-np.arange(h) / h)
            for words, part in (
                ("by frequencies of so small a head", widened(s, own, x=first)),
                ("by the head's first frequencies", rotated(s, first, table[:, :h])),
            ):
                yield f"{part_of} of the channels ({words})", joined([part, operations.rounded(s.recipe, rest)], -1)


def channels(cut: slice, v: Array) -> Array:
    return v[..., cut]


@hypothesis("rope-tables", "RoPE's cosines and sines are laid out {}", *ROPE)
def rope_tables(s: Site) -> Several:
    """A table of all H channels, read by a rotation that pairs channels the other way."""
    table, x = angle(s), turned(s)
    pairs, halves = np.repeat(table, 2, 1), np.concatenate([table, table], 1)
    h = table.shape[1]
    yield "in adjacent pairs, and heads are turned by halves", by_two(s, x, pairs[:, :h], pairs[:, h:])
    apart = np.concatenate([np.arange(0, 2 * h, 2), np.arange(1, 2 * h, 2)])
    y = by_two(s, x.shaped(lambda v: v[..., apart]), halves[:, 0::2], halves[:, 1::2])
    yield "by halves, and heads are turned in adjacent pairs", y.shaped(lambda v: v[..., np.argsort(apart)])


def by_two(s: Site, x: Span, first_Th: Array, second_Th: Array) -> Span:
    """A rotation whose two channels of a pair have each an angle of its own."""
    h = first_Th.shape[1]
    one, other = rotated(s, x, first_Th), rotated(s, x, second_Th)
    return joined([one.shaped(lambda v: v[..., :h]), other.shaped(lambda v: v[..., h:])], -1)


@hypothesis("rope-formula", "RoPE's formula is another: {}", *ROPE)
def rope_formula(s: Site) -> Several:
    """Of a pair (a, b), which becomes (a cos - b sin, b cos + a sin)."""
    table, x, h = angle(s), turned(s), s.config.head_dim // 2
    yield "cosine and sine are swapped", rotated(s, x, np.pi / 2 - table)
    yield "b sin is added, not subtracted", by_two(s, x, -table, table)
    yield "a sin is subtracted, not added", by_two(s, x, table, -table)
    y = rotated(s, x)
    first, second = (slice(None, h), slice(h, None))
    for words, new, old in (
        ("b is turned with a's new value, which was written over the old", first, second),
        ("a is turned with b's new value, which was written over the old", second, first),
    ):
        parts = {new.start: y.shaped(partial(channels, new)), old.start: x.shaped(partial(channels, old))}
        again = rotated(s, joined([parts[first.start], parts[second.start]], -1))
        ends = {new.start: y.shaped(partial(channels, new)), old.start: again.shaped(partial(channels, old))}
        yield words, joined([ends[first.start], ends[second.start]], -1)


@hypothesis("rope-frequencies", "RoPE's inverse frequencies are {}", *ROPE)
def rope_frequencies(s: Site) -> Several:
    table = angle(s)
    yield "in reverse order", rotated(s, turned(s), table[:, ::-1])
    h = table.shape[1]
    slower = s.pos_T[:, None] * s.config.rope_theta ** (-np.arange(h) / (2 * h))
    yield "theta^(-j/H), not theta^(-2j/H)", widened(s, slower)
    for f, cast in cast_tables(s):
        yield f"rounded to {f.name}, as the weights are", rotated(s, turned(s), cast.angle(s.pos_T))


def cast_tables(s: Site) -> Iterator[tuple[Float, Product]]:
    """The inverse frequencies as an engine has them that keeps all of its buffers in 16 bits."""
    way = s.evidence.rotations["product"]
    if isinstance(way, Product):
        for f in (BFLOAT16, FLOAT16):
            yield f, Product(f.round(way.inv_freq_h.astype(np.float64)).astype(np.float32))


@hypothesis("rope-angles", "RoPE's {}", *ROPE)
def rope_angles(s: Site) -> Several:
    """Positions or their products with the inverse frequencies in 16 bits: tables made under autocast, or in the
    format of the weights. Where a position is rounded, so is all that follows."""
    x = turned(s)
    for f, cast in cast_tables(s):
        whole = f.round(s.pos_T.astype(np.float64))
        yield f"angles are rounded to {f.name}", rotated(s, x, f.round(angle(s)))
        yield (
            f"angles are rounded to {f.name}, and the positions and inverse frequencies that they are of",
            rotated(s, x, f.round(f.round(cast.inv_freq_h.astype(np.float64)) * whole[:, None])),
        )
        if (whole != s.pos_T).any():
            rows = whole.astype(np.int32)
            for table in (at_positions(s, rows), *unfitted(s, rows)):
                yield f"positions are rounded to {f.name}", rotated(s, x, table)


@hypothesis("rope-before-bias", "RoPE turns the product before its bias is added{}", *ROPE)
def rope_before_bias(s: Site) -> Several:
    if "qkv_bias" not in s.evidence.stages:
        return
    part = ROPE.index(s.stage)
    plain = rotated(s, heads_of(s.config, s.input("qkv_matmul"), part))
    yield "", plain
    bias = operations.weight(s.recipe, s.evidence.gain(s.layer, s.evidence.stage("qkv_bias").weight or ""))
    yield (
        ", which is added to what was turned",
        operations.add(s.recipe, plain, heads_of(s.config, Span.point(bias[None]), part)),
    )


@hypothesis("rope-before-norm", "{}", *ROPE)
def rope_before_norm(s: Site) -> Several:
    """Of models that normalise each head before it is rotated."""
    (given,) = s.evidence.stage(s.stage).inputs
    own = s.evidence.stage(given)
    if own.kind != "norm":
        return
    plain = as_heads(s.config, s.input(own.inputs[0]), ROPE.index(s.stage))
    yield "RoPE turns heads that were not normalised", rotated(s, plain)
    yield "the heads are normalised after RoPE, not before", norm(s, rotated(s, plain), s.gain(own.weight or ""))
    yield "the heads are normalised after RoPE once more", norm(s, rotated(s, turned(s)), s.gain(own.weight or ""))


def by(s: Site, scaling: Scaling, magnitude: float | None = None) -> Span:
    """The rotation as a model has it whose RoPE is scaled so. magnitude: its own, if it is not said."""
    c = s.config
    inv_freq_h = frequencies(c.rope_theta, c.head_dim, scaling, scaling.beyond(s.pos[-1] + 1))
    return widened(s, Product(inv_freq_h).angle(s.pos_T), scaling.attention_factor if magnitude is None else magnitude)


@hypothesis("rope-scaling-missing", "RoPE's scaling is not applied{}", *ROPE)
def rope_scaling_missing(s: Site) -> Several:
    own = s.config.rope_scaling
    if own != UNSCALED:
        yield f": there is none of type {own.rope_type}", by(s, UNSCALED)
        if own.attention_factor != 1:
            yield " to the frequencies, only the magnitude is", by(s, UNSCALED, own.attention_factor)


@hypothesis("rope-scaling-of-none", "RoPE is scaled {}, and the configuration has no scaling", *ROPE)
def rope_scaling_of_none(s: Site) -> Several:
    if s.config.rope_scaling == UNSCALED:
        yield from scaled_otherwise(s, (2.0, 4.0, 8.0), {s.config.max_position_embeddings, 32768, 8192, 4096})


@hypothesis("rope-scaling-other", "RoPE is scaled {}", *ROPE)
def rope_scaling_other(s: Site) -> Several:
    own = s.config.rope_scaling
    if own == UNSCALED:
        return
    if own.switches:
        yield "by the short factors", by(s, replace(own, long_factor=own.short_factor))
        yield "by the long factors", by(s, replace(own, short_factor=own.long_factor))
        return
    length = own.original_max_position_embeddings
    lengths = {s.config.max_position_embeddings, length or s.config.max_position_embeddings}
    for detail, span in scaled_otherwise(s, (own.factor, 2 * own.factor, own.factor / 2, 1 / own.factor), lengths):
        yield f"{detail}, not by {own.rope_type}, factor {own.factor:g} from {length} positions", span


def scaled_otherwise(s: Site, factors: tuple[float, ...], lengths: set[int]) -> Several:
    """By the types that engines know, other than the model's own."""
    c = s.config
    for factor in factors:
        others = [{"rope_type": "linear", "factor": factor}]
        others += [{"rope_type": "yarn", "factor": factor, LENGTH: n} for n in sorted(lengths)]
        others += [
            {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, LENGTH: n}
            for n in sorted(lengths)
        ]
        for said in others:
            scaling = read(said, c.rope_theta, c.head_dim, c.max_position_embeddings)
            if scaling not in (c.rope_scaling, UNSCALED):
                whence = f" from {said[LENGTH]} positions" if LENGTH in said else ""
                yield f"by {said['rope_type']}, factor {factor:g}{whence}", by(s, scaling)


@hypothesis("rope-magnitude", "RoPE's magnitude{}", *ROPE)
def rope_magnitude(s: Site) -> Several:
    own = s.evidence.weights.magnitude
    if own != 1:
        for words, size in (("is missing", 1.0), ("is applied twice", own * own), ("divides", 1 / own)):
            yield f" of {own:.6g} {words}", rotated(s, turned(s), magnitude=size)


@hypothesis("scores-magnitude", "the scores are multiplied by RoPE's magnitude{}", "attn_scores")
def scores_magnitude(s: Site) -> Several:
    own, root = s.evidence.weights.magnitude, np.sqrt(s.config.head_dim)
    if own != 1:
        k, q = s.so_far("k_post_rope"), s.input("q_post_rope")
        for words, size in (("", own), (", squared", own * own)):
            yield words, operations.scores(s.recipe, q, k, s.see_T, size / root)
