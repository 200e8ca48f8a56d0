"""ggml's activations on CUDA (ggml/src/ggml-cuda/quantize.cu): blocks of 32 in 8 bits for every quantised weight,
K-quants too, each with a scale and, where weights have a minimum or an offset, the sum of its unrounded values, a half.

Rows (MMVQ, one to eight positions): the scale is a half, and offsets of Q4_0 and Q5_0 meet the sum as minima do. Tiles
(MMQ on tensor cores, more positions): a float32 scale where there is no sum, and offsets are taken off the codes.
"""

from __future__ import annotations

import numpy as np

from ....quant.tensor import format_of
from ..span import FLOAT16, FLOAT32, Array, Span

KINDS = ("cuda rows", "cuda tiles")
BLOCK = 32
OFFSET = ("Q4_0", "Q5_0")
HALF_SCALE = ("Q4_0", "Q4_1", "Q5_1", "Q4_K", "Q5_K")  # of tiles: those that keep a sum beside it
TIE = 4 * FLOAT32.u  # ggml is built with fast division: how far x / d may be off, relatively


def of(quantiser: str, weights: str, x: Span) -> tuple[Span, Span | None]:
    """The activations [T, I] as a product by weights of a format takes them; where the blocks' sums are used, what they
    [T, I / 32] differ by from those of their codes."""
    T, I = x.mid.shape
    held, sums = _of(quantiser, weights, x.mid)
    if not x.exact:
        ends = [_of(quantiser, weights, end) for end in (x.lo, x.hi)]
        held, sums = (_hull([first, *others]) for first, *others in zip((held, sums), *ends, strict=True))
    meets = format_of(weights).minimum is not None or (quantiser == KINDS[0] and weights in OFFSET)
    return held.shaped(lambda v: v.reshape(T, -1)[:, :I]), sums.shaped(lambda v: v.reshape(T, -1)) if meets else None


def _of(quantiser: str, weights: str, x_TI: Array) -> tuple[Span, Span]:
    v = np.pad(x_TI, ((0, 0), (0, -x_TI.shape[1] % BLOCK))).reshape(len(x_TI), -1, BLOCK)
    scale = FLOAT32.round(np.abs(v).max(-1, keepdims=True) / 127)
    real = v / np.where(scale > 0, scale, 1)
    if quantiser == KINDS[0] or weights in HALF_SCALE:
        scale = FLOAT16.round(scale)
    codes = [np.trunc(np.abs(q) + 0.5) * np.sign(q) for q in (real, real * (1 - TIE), real * (1 + TIE))]
    total = v.sum(-1)
    off = BLOCK * FLOAT32.u * np.abs(v).sum(-1) / 4
    apart = [FLOAT16.round(s) - (codes[0] * scale).sum(-1) for s in (total, total - off, total + off)]
    return _hull([Span.point(c * scale) for c in codes]), _hull([Span.point(a) for a in apart])


def _hull(spans: list[Span]) -> Span:
    return Span(spans[0].mid, np.minimum.reduce([s.lo for s in spans]), np.maximum.reduce([s.hi for s in spans]))
