"""ggml's quantised caches: keys and values in blocks of 32, as ggml writes them, and what queries become to meet them.

Newer versions of llama.cpp (src/llama-kv-cache.cpp) turn what a quantised cache holds by a Hadamard matrix of 64, or
the largest power of 2 that divides a head for keys, and turn queries and the result of attention the same way.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ....quant.iq4_nl import LEVELS
from ....quant.tensor import format_of
from ..span import FLOAT16, FLOAT32, Array, Span
from .products import requantise
from .recipe import Recipe

BLOCK = 32
TURNED = ", rotated"
TYPES = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
MEETS = {"q4_1": "Q8_1", "q5_1": "Q8_1"}  # what a query becomes; Q8_0 for the rest
LEAST_TURN = 64
# How far x / d + 8.5 may be off, as a share of its block's largest: it may be a fused operation. Q8_0 has no sum.
TIE = 2 * FLOAT32.u


def known(cache: str | None) -> bool:
    return cache is not None and cache.removesuffix(TURNED) in TYPES


def turned(x: Span, size: int) -> Span:
    """x [..., H] by Hadamard matrices (Sylvester's, over the root of their size) of `size`: the scale, then butterflies
    of 1, 2, 4 ..., each rounded, so that the transform of given numbers is known to the bit."""
    H = x.mid.shape[-1]
    if H % size:
        return x
    mid = _butterflies(np.array(x.mid, np.float32), size).astype(np.float64)
    if x.exact:
        return Span.point(mid)

    def parts(v: Array) -> Array:
        return v.reshape(*v.shape[:-1], H // size, size)

    levels, root = np.log2(size), np.sqrt(size)
    apart = parts(x.radius).sum(-1, keepdims=True) / root
    rounding = FLOAT32.u * levels * np.abs(parts(x.mid)).sum(-1, keepdims=True) / root
    radius = np.broadcast_to(apart + 2 * rounding, parts(mid).shape).reshape(mid.shape)
    return Span.around(mid, radius)


def _butterflies(x: Array, size: int) -> Array:
    """In the format of x."""
    y, width = x * (1 / np.sqrt(x.dtype.type(size))), 1
    while width < size:
        pairs = y.reshape(*y.shape[:-1], -1, 2, width)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack((a + b, a - b), -2).reshape(y.shape)
        width *= 2
    return y


def of_keys(H: int) -> int:
    size = LEAST_TURN
    while H % (2 * size) == 0:
        size *= 2
    return size


def partners(r: Recipe, q: Span, k: Span) -> tuple[Span, Span]:
    """Queries [T, N, W] and keys [S, K, W] whose products are ggml's. Behind the H numbers of each stand the sums of
    the query's blocks, as far as they are rounded apart, and the minima of the key's."""
    kind, H = str(r.cache).removesuffix(TURNED), q.mid.shape[-1]
    if r.cache != kind:
        q, k = turned(q, of_keys(H)), turned(k, of_keys(H))
    meets = MEETS.get(kind, "Q8_0")
    q, k = _spread(q, 0, lambda v: _met(r, meets, v)), _spread(k, tie(kind), lambda v: _written(r, kind, v))
    return (q, k) if meets == "Q8_1" else (q.shaped(lambda v: v[..., :H]), k.shaped(lambda v: v[..., :H]))


def values_of(r: Recipe, v: Span) -> Span:
    """Values [S, K, H] that a quantised cache stands for: turned back, if it turns."""
    kind, H = str(r.cache).removesuffix(TURNED), v.mid.shape[-1]
    turns = r.cache != kind and H % LEAST_TURN == 0
    found = _spread(turned(v, LEAST_TURN) if turns else v, tie(kind), lambda x: _written(r, kind, x)[..., :H])
    if not turns:
        return found
    apart = found.radius.reshape(*found.mid.shape[:-1], -1, LEAST_TURN).sum(-1, keepdims=True) / np.sqrt(LEAST_TURN)
    return Span.around(_butterflies(found.mid, LEAST_TURN), np.repeat(apart, LEAST_TURN, -1).reshape(found.mid.shape))


def tie(kind: str) -> float:
    return 0.0 if kind == "q8_0" else TIE


def _spread(x: Span, off: float, f: Callable[[Array], Array]) -> Span:
    """What f makes of a span and of its ends, each wider by a share of its block's largest: which code a value near a
    tie becomes hangs on its last bits."""
    if x.exact and not off:
        return Span.point(f(x.mid))
    blocks = _in_blocks(x.mid)
    more = np.broadcast_to(np.abs(blocks).max(-1, keepdims=True) * off, blocks.shape)
    more = more.reshape(*x.mid.shape[:-1], -1)[..., : x.mid.shape[-1]]
    ends = [f(v) for v in (x.mid, x.lo - more, x.hi + more)]
    return Span(ends[0], np.minimum.reduce(ends), np.maximum.reduce(ends))


def _in_blocks(x: Array) -> Array:
    """[..., blocks, 32]: rows that are no whole blocks end in zeros."""
    width = x.shape[-1]
    x = np.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, -width % BLOCK)))
    return x.reshape(*x.shape[:-1], -1, BLOCK)


def _written(r: Recipe, kind: str, x: Array) -> Array:
    """What blocks of a cache decode to, and behind that their minima: [..., H + blocks]."""
    v = np.ascontiguousarray(_in_blocks(x).reshape(-1, BLOCK), np.float32)
    minima = np.zeros(len(v))
    if kind == "iq4_nl":
        values = _nonlinear(v)
    else:
        fields, values = _coded(r, kind.upper(), v)
        if "m" in (fields.dtype.names or ()):
            minima = fields["m"].astype(np.float64)
    return _side_by_side(x, values, minima)


def _met(r: Recipe, kind: str, x: Array) -> Array:
    """A query in blocks of Q8_0 or Q8_1, and behind that how far each block's own sum is from that of its numbers."""
    v = np.ascontiguousarray(_in_blocks(x).reshape(-1, BLOCK), np.float32)
    fields, values = _coded(r, kind, v)
    apart = fields["s"].astype(np.float64) - values.sum(1) if kind == "Q8_1" else np.zeros(len(v))
    return _side_by_side(x, values, apart)


def _coded(r: Recipe, kind: str, v: NDArray[np.float32]) -> tuple[NDArray[np.void], Array]:
    """Blocks as the recipe's routine writes them, and what they decode to."""
    f = format_of(kind)
    assert f.encode is not None
    blocks = f.encode(v)
    fields = blocks.view(f.struct)[:, 0]
    if kind in ("Q8_0", "Q8_1") and r.quantiser != "reference":
        requantise(fields, v, r.quantiser != "arm")
    return fields, f.decode(blocks).astype(np.float64)


def _side_by_side(x: Array, values: Array, more: Array) -> Array:
    rows = x.shape[:-1]
    return np.concatenate([values.reshape(*rows, -1)[..., : x.shape[-1]], more.reshape(*rows, -1)], -1)


def _nonlinear(v: NDArray[np.float32]) -> Array:
    """IQ4_NL without a search (ggml's quantize_row_iq4_nl_ref): the largest value becomes the lowest level, each other
    the nearest, and the scale is the one that fits best by squares, weighted by squares."""
    wide = v.astype(np.float64)
    top = np.take_along_axis(wide, np.abs(wide).argmax(1)[:, None], 1)
    factor = np.where(top != 0, LEVELS[0] / np.where(top != 0, top, 1), 0)
    levels = LEVELS.astype(np.float64)
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, wide * factor, side="right")
    level = levels[codes]
    weight = np.square(wide)
    over = (weight * np.square(level)).sum(1, keepdims=True)
    scale = np.where(over > 0, (weight * level * wide).sum(1, keepdims=True) / np.where(over > 0, over, 1), 0)
    return FLOAT16.round(scale) * level
