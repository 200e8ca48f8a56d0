"""Mistakes in norms: the wrong gain, eps, input, columns or format; another norm, or none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...stages import of_kind
from ..formulas import input_of, norm, weight_of
from ..recipes import operations
from ..site import Site
from ..span import BFLOAT16, FLOAT16, FLOAT32, Array, Span, joined, times
from .hypothesis import Hypothesis, Several, Variants, entering
from .masks import dumped
from .vectors import point

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

NORMS = of_kind("norm")
HEADS = ("q_norm", "k_norm")


def normed(s: Site) -> tuple[Span, Array]:
    """The input and the gain of a norm stage."""
    return input_of(s), weight_of(s)


def stored(s: Site) -> Site:
    """The same norm of what is given to it, and not of the residual as it was before it was stored."""
    return s if s.recipe.norm != "apart" else s.under(replace(s.recipe, norm="once"))


@hypothesis("norm-eps", "the norm's eps is {}", *NORMS)
def norm_eps(s: Site) -> Several:
    x, gain = normed(s)
    for eps in (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        if abs(eps - s.config.rms_norm_eps) > 1e-3 * s.config.rms_norm_eps:
            yield f"{eps:g}, not {s.config.rms_norm_eps:g}", norm(s, x, gain, eps)
    rms = np.sqrt(np.square(x.mid).mean(-1, keepdims=True))
    for eps in dict.fromkeys((s.config.rms_norm_eps, 1e-6, 1e-5, 1e-3)):  # (rms + eps)^2, as the root has it
        yield f"{eps:g} outside of the root: x / (rms + eps)", norm(s, x, gain, 2 * eps * rms + eps * eps)


@hypothesis("norm-gain-plus-one", "the norm's gain is taken as 1 + w, w {}", *NORMS)
def norm_gain_plus_one(s: Site) -> Several:
    """An engine of 16 bits may add the one at run time, or when it loads the weights."""
    x, gain = normed(s)
    yield "as the engine rounds it", norm(s, x, 1 + operations.weight(s.recipe, gain))
    yield "as the file has it", norm(s, x, 1 + gain)
    yield "as the file has it", norm(s.under(replace(s.recipe, weights=None)), x, 1 + gain)  # the sum is not stored


@hypothesis("norm-gain-missing", "the norm's gain is not applied", *NORMS)
def norm_gain_missing(s: Site) -> Variants:
    x, gain = normed(s)
    return norm(s, x, np.ones_like(gain))


@hypothesis("norm-gain-other", "the norm uses the gain of {}", *NORMS)
def norm_gain_other(s: Site) -> Several:
    x, _ = normed(s)
    own = s.evidence.stage(s.stage)
    width = own.letters[-1]
    for other in s.evidence.stages.values():
        if other.kind == "norm" and other.letters[-1] == width:
            for layer in range(s.config.num_hidden_layers) if other.scope == "layer" else (None,):
                if (layer, other.name) != (s.layer, s.stage):
                    where = other.name if layer is None else f"{other.name}, layer {layer}"
                    yield where, norm(s, x, s.evidence.gain(layer, other.weight or ""))


@hypothesis("norm-layernorm", "a LayerNorm (mean subtracted) stands for the RMS norm", *NORMS)
def norm_layernorm(s: Site) -> Variants:
    x, gain = normed(s)
    centred = x.mid - x.mid.mean(-1, keepdims=True)
    y = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + s.config.rms_norm_eps)
    size = np.abs(x.mid).max(-1, keepdims=True) / np.sqrt(np.square(centred).mean(-1, keepdims=True))
    spread = norm(s, x, gain).radius.max() + 8 * operations.U * size * np.abs(gain)
    return operations.rounded(s.recipe, Span.around(y * gain, spread + np.abs(y * gain) * (4 * s.recipe.result.u)))


@hypothesis("norm-skipped", "the norm is skipped: {}", *NORMS)
def norm_skipped(s: Site) -> Several:
    x, gain = normed(s)
    yield "the stage holds its input", operations.rounded(s.recipe, x)
    yield "the input is only multiplied by the gain", operations.mul(s.recipe, x, point(s, gain))


@hypothesis("norm-wrong-input", "the norm is taken of {}", *NORMS)
def norm_wrong_input(s: Site) -> Several:
    _, gain = normed(s)
    if s.stage in HEADS:
        return
    added = s.evidence.stage("post_attn_residual").inputs[1]
    others = {"ffn_norm": ("before", added), "final_norm": (), "attn_norm": ()}[s.stage]
    for name in others:
        yield (
            ("the layer's input" if name == "before" else name),
            norm(s, s.before() if name == "before" else s.input(name), gain),
        )
    if s.stage != "ffn_norm" and s.layer != 0:
        last, _ = s.evidence.entering(s.layer)
        yield "the residual before the last layer's MLP", norm(s, s.at("post_attn_residual", layer=last).value(), gain)
        for layer in range(last):
            x = s.at("post_ffn_residual", layer=layer).value()
            skipped = f"layer {last} is" if layer == last - 1 else f"layers {layer + 1} to {last} are"
            yield f"what leaves layer {layer}: {skipped} skipped", norm(s, x, gain)


@hypothesis("norm-of-all-heads", "the norm is of all heads together, not of each", *HEADS)
def norm_of_all_heads(s: Site) -> Variants:
    x, gain = normed(s)
    shape = x.mid.shape
    every = x.shaped(lambda v: v.reshape(len(v), -1))
    return norm(replace(s, how=replace(s.recipe, norm="twice"), judged=s.stage), every, np.tile(gain, shape[1])).shaped(
        lambda v: v.reshape(shape)
    )


@hypothesis("norm-shard", "the norm is of each of {} ranks' own columns, not of all", *NORMS)
def norm_shard(s: Site) -> Several:
    if s.stage in HEADS:
        return
    x, gain = normed(s)
    of_stored = stored(s)
    for ranks in (2, 4, 8, 16):
        if len(gain) % ranks == 0:
            cuts = [slice(len(gain) * r // ranks, len(gain) * (r + 1) // ranks) for r in range(ranks)]
            yield str(ranks), joined([norm(of_stored, x.shaped(partial(columns, cut)), gain[cut]) for cut in cuts], 1)


def columns(cut: slice, v: Array) -> Array:
    return v[..., cut]


@hypothesis("norm-count", "the norm divides the sum of squares by {}", *NORMS)
def norm_count(s: Site) -> Several:
    """By the width of a block that holds the row, as a kernel's launch has it, or by another size of the model."""
    x, gain = normed(s)
    width, c = len(gain), s.config
    block = 1 << (width - 1).bit_length()
    counts = {
        1: "nothing: no mean is taken",
        width // 2: f"{width // 2}, half of the row",
        block: f"{block}, the block",
    }
    counts |= {n: f"{n}, not by its own {width}" for n in (c.intermediate_size, c.num_attention_heads * c.head_dim)}
    for n, words in counts.items():
        if n != width:
            share = x.map(partial(np.multiply, np.sqrt(width / n)))
            yield words, operations.norm(stored(s).recipe, x, gain, c.rms_norm_eps, share)


@hypothesis("norm-squares", "the norm's sum of squares leaves out {}", *NORMS)
def norm_squares(s: Site) -> Several:
    """What a reduction loses whose threads are no power of two, or that ends before the row does."""
    x, gain = normed(s)
    width = len(gain)
    for words, kept_D in (*lost_lanes(width), *lost_tails(s, x, gain)):
        part = x.map(partial(np.multiply, kept_D.astype(np.float64)))
        yield words, operations.norm(stored(s).recipe, x, gain, s.config.rms_norm_eps, part)
        share = part.map(partial(np.multiply, np.sqrt(width / np.count_nonzero(kept_D))))
        yield (
            f"{words}, and so does its count",
            operations.norm(stored(s).recipe, x, gain, s.config.rms_norm_eps, share),
        )


def lost_lanes(width: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Of threads that halve their number until one is left: an odd one's sum is lost."""
    for lanes in (width // n for n in (1, 2, 4, 8, 16, 32) if width % n == 0):
        at, kept, n = np.arange(lanes), np.ones(lanes, bool), lanes
        while n > 1:
            half = n // 2
            kept &= at < 2 * half
            at, n = np.where(at >= half, at - half, at), half
        if not kept.all():
            for order in (np.tile(kept, width // lanes), np.repeat(kept, width // lanes)):
                lost = width - np.count_nonzero(order)
                yield f"{lost} of {width}: {lanes} threads that are halved, where an odd one is lost", order


def lost_tails(s: Site, x: Span, gain: Array) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The last squares, as many as the dump's own scale lacks."""
    got, width = dumped(s), len(gain)
    if got is None or got.shape != x.mid.shape or not np.isfinite(got).all() or got.ndim != 2:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        scale_T = np.nanmedian(got / (x.mid * gain), axis=-1)
        mean_T = 1 / np.square(scale_T) - s.config.rms_norm_eps
    if not np.isfinite(mean_T).all():
        return
    sum_TD = np.square(x.mid).cumsum(-1)
    count_D = np.arange(1, width + 1)
    for of in (width, count_D):
        away_D = np.abs(sum_TD / of / mean_T[:, None] - 1).max(0)
        n = int(away_D[:-1].argmin()) + 1
        yield f"the last {width - n} of {width}", np.arange(width) < n


@hypothesis("norm-scale-of", "the norm's scale is of its own input, and what is scaled is {}", "ffn_norm")
def norm_scale_of(s: Site) -> Several:
    """A sum and its norm in one kernel, whose result lies over what another thread has yet to read."""
    x, gain = normed(s)
    added = s.evidence.stage("post_attn_residual").inputs[1]
    for name, other in (("the layer's input", s.before()), (added, s.input(added))):
        yield name, operations.norm(stored(s).recipe, other, gain, s.config.rms_norm_eps, x)


@hypothesis("norm-short", "the norm is computed in {}, not in float32", *NORMS)
def norm_short(s: Site) -> Several:
    """Squares, mean, root and product are rounded each; a sum is kept in float32, as libraries do."""
    x, gain = normed(s)
    for f in (FLOAT16, BFLOAT16) if s.recipe.result is FLOAT32 else (s.recipe.result,):
        stored = f.round(x.mid)
        squares = f.round(np.square(stored))
        mean = squares.mean(-1, keepdims=True)
        scale = Span.around(mean, mean * min(len(gain), 64) * operations.U).map(f.round)
        for step in (lambda v: v + s.config.rms_norm_eps, lambda v: 1 / np.sqrt(v)):
            scale = scale.map(lambda v, step=step, f=f: f.round(step(v)))  # type: ignore[misc]
        once = times(Span.point(stored), scale).map(f.round)
        yield f.name, times(once, Span.point(f.round(gain))).map(f.round)


@hypothesis("norm-scale-short", "1 / rms is rounded to {} before it multiplies", *NORMS)
def norm_scale_short(s: Site) -> Several:
    """One number of a row: all of the row is off by one factor. The rest is in float32, stored once or twice."""
    x, gain = normed(s)
    squares = np.square(x.mid)
    mean = Span.around(squares.mean(-1, keepdims=True), operations.U * squares.sum(-1, keepdims=True))
    exact = mean.map(lambda v: 1 / np.sqrt(np.maximum(v, 0) + s.config.rms_norm_eps))
    for f in (BFLOAT16, FLOAT16):
        once = widened(times(x, exact.map(f.round)))
        yield f.name, operations.rounded(s.recipe, widened(times(once, point(s, gain))))
        if s.recipe.result is not FLOAT32:
            yield f.name, operations.mul(s.recipe, once.map(s.recipe.result.round), point(s, gain))


def widened(x: Span) -> Span:
    """To two of float32's roundings."""
    slack = 2 * operations.U * np.abs(x.mid)
    return Span(x.mid, x.lo - slack, x.hi + slack)


@hypothesis("norm-twice", "the norm is applied twice", *NORMS)
def norm_twice(s: Site) -> Variants:
    x, gain = normed(s)
    once = norm(s, x, gain)
    return norm(stored(s), once, gain)
