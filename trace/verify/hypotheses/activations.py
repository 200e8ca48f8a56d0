"""Activations that are made into 8 bits wrongly before a product: cut, or by a scale that is not their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..formulas import PRODUCTS, flat, input_of
from ..recipes import operations
from ..recipes.matrix import FileMatrix
from ..recipes.products import product
from ..site import Site
from ..span import FLOAT16, FLOAT32, Array, Span, joined
from .hypothesis import Hypothesis, Several, entering
from .products import glimpsed

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

NEAR = 4 * FLOAT32.u  # how far, relatively, a quotient may be off
BLOCKS = {"Q8_0": 32, "Q8_1": 32, "Q8_K": 256}


def alike(s: Site, made: dict[str, Span]) -> Span:
    """The stage, if the activations that meet weights of a format become these."""
    plain = s.under(replace(s.recipe, quantiser=None))
    matrices = plain.matrices()
    first = matrices[0]
    if glimpsed(plain, made[first.facts.activations], first) is False:
        return Span.point(np.zeros(0))
    parts = [product(plain.recipe, made[m.facts.activations], m) for m in matrices]
    y = operations.rounded(plain.recipe, joined(parts, 1))
    return y.shaped(lambda v: v[0]) if s.stage == "lm_head" else y


def formats(matrices: list[FileMatrix]) -> set[str] | None:
    """What ggml makes of activations for these; None where it makes no 8 bits of them."""
    found = {m.facts.activations for m in matrices}
    return found if found <= BLOCKS.keys() else None


def coded(x_TI: Array, kind: str, cut: bool, first: bool, halves: bool) -> Span:
    """x [T, I] as codes of 8 bits and a scale for each block stand for it. cut: towards zero. first: the scales are
    those of the first row. Codes within NEAR of a step may be either's."""
    T, I = x_TI.shape
    size = BLOCKS[kind]
    b = np.pad(x_TI, ((0, 0), (0, -I % size))).reshape(T, -1, size)
    scale = np.abs(b).max(-1, keepdims=True) / 127
    scale = np.broadcast_to(scale[:1], scale.shape) if first else scale
    real = np.divide(b, scale, out=np.zeros_like(b), where=scale > 0)
    held = FLOAT16.round(scale) if halves else FLOAT32.round(scale)
    nearest = np.trunc if cut else np.rint
    ends = [
        (np.clip(nearest(v), -127, 127) * held).reshape(T, -1)[:, :I]
        for v in (real, real * (1 - NEAR), real * (1 + NEAR))
    ]
    return Span(ends[0], np.minimum.reduce(ends), np.maximum.reduce(ends))


def tried(s: Site, cut: bool, first: bool) -> Iterator[Span]:
    kinds, x = formats(s.matrices()), flat(input_of(s))
    if kinds and x.exact:
        for halves in dict.fromkeys((True, False)) if kinds != {"Q8_K"} else (False,):
            yield alike(s, {k: coded(x.mid, k, cut, first, halves and k != "Q8_K") for k in kinds})


@hypothesis("activations-cut", "activations are cut to 8 bits, towards zero, not rounded{}", *PRODUCTS)
def activations_cut(s: Site) -> Several:
    for span in tried(s, True, False):
        yield "", span


@hypothesis("activations-first-scale", "activations become 8 bits by the scale of the first position{}", *PRODUCTS,
            by_row=False)  # fmt: skip
def activations_first_scale(s: Site) -> Several:
    """Others are clamped to it."""
    if len(s.pos) > 1:
        for span in tried(s, False, True):
            yield ", whatever their own is", span
