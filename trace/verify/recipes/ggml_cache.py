"""ggml's quantised caches: keys and values in blocks of 32, as ggml writes them, and what queries become to meet them.

Newer versions of llama.cpp (src/llama-kv-cache.cpp) turn what a quantised cache holds by a Hadamard matrix of 64, or
the largest power of 2 that divides a head for keys, and turn queries and the result of attention the same way.
"""

from __future__ import annotations

import numpy as np

from ....quant.iq4_nl import LEVELS
from ....quant.tensor import format_of
from ..span import FLOAT16, FLOAT32, Array, Span, joined
from .products import SIGMAS, group_sums, requantise
from .recipe import Recipe

BLOCK = 32
TURNED = ", rotated"
TYPES = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
MEETS = {"q4_1": "Q8_1", "q5_1": "Q8_1"}  # what a query becomes; Q8_0 for the rest
LEAST_TURN = 64
ADDITIONS = 10  # of a transform or product of 64 to 128 in vectors: how many roundings follow each other
TIE = 16 * FLOAT32.u  # how far a value may be off, of its block's largest, before it becomes a code


def known(cache: str | None) -> bool:
    return cache is not None and cache.removesuffix(TURNED) in TYPES


def turned(x: Span, size: int) -> Span:
    """x [..., H] by Hadamard matrices (Sylvester's, over the root of their size) of `size`, as float32 computes it."""
    H = x.mid.shape[-1]
    if H % size:
        return x

    def parts(v: Array) -> Array:
        return v.reshape(*v.shape[:-1], H // size, size)

    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    y = parts(x.mid) @ matrix / np.sqrt(size)
    squares = np.square(parts(x.mid)).sum(-1, keepdims=True) / size
    radius = SIGMAS * FLOAT32.u * np.sqrt(ADDITIONS / 3 * (np.square(y) + squares)) + 2 * FLOAT32.u * np.abs(y)
    if not x.exact:
        radius = radius + parts(x.radius).sum(-1, keepdims=True) / np.sqrt(size)
    return Span.around(y.reshape(x.mid.shape), radius.reshape(x.mid.shape))


def of_keys(H: int) -> int:
    size = LEAST_TURN
    while H % (2 * size) == 0:
        size *= 2
    return size


def held(kind: str, x: Span) -> Span:
    """Keys or values [..., H] as a cache of that type holds them."""
    return _spread(x, lambda v: _written(kind, v)[0])


def partners(cache: str, q: Span, k: Span) -> tuple[Span, Span]:
    """Queries [T, N, W] and keys [S, K, W] whose products are ggml's. Behind the H numbers of each stand the sums of
    the query's blocks, as far as they are rounded apart, and the minima of the key's."""
    kind, H = cache.removesuffix(TURNED), q.mid.shape[-1]
    if cache != kind:
        q, k = turned(q, of_keys(H)), turned(k, of_keys(H))
    meets = MEETS.get(kind, "Q8_0")
    q_held = [_spread(q, lambda v, i=i: _met(meets, v)[i]) for i in range(2)]  # type: ignore[misc]
    k_held = [_spread(k, lambda v, i=i: _written(kind, v)[i]) for i in range(2)]  # type: ignore[misc]
    if meets == "Q8_0":
        return q_held[0], k_held[0]
    return joined(q_held, -1), joined(k_held, -1)


def _spread(x: Span, f: object) -> Span:
    """What f makes of a span: of its ends as well, each a little wider, since which code a value near a tie becomes
    hangs on its last bits."""
    assert callable(f)
    largest = np.abs(_in_blocks(x.mid)).max(-1, keepdims=True) * TIE
    more = np.broadcast_to(largest, _in_blocks(x.mid).shape).reshape(*x.mid.shape[:-1], -1)[..., : x.mid.shape[-1]]
    ends = [f(v) for v in (x.mid, x.lo - more, x.hi + more)]
    return Span(ends[0], np.minimum.reduce(ends), np.maximum.reduce(ends))


def _in_blocks(x: Array) -> Array:
    """[..., blocks, 32]: rows that are no whole blocks end in zeros."""
    width = x.shape[-1]
    x = np.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, -width % BLOCK)))
    return x.reshape(*x.shape[:-1], -1, BLOCK)


def _written(kind: str, x: Array) -> tuple[Array, Array]:
    """What a block decodes to [..., H], and its minimum [..., blocks]."""
    blocks = _in_blocks(x)
    v = np.ascontiguousarray(blocks.reshape(-1, BLOCK), np.float32)
    if kind == "iq4_nl":
        values, minima = _nonlinear(v), np.zeros(len(v))
    else:
        f = format_of(kind.upper())
        assert f.encode is not None
        b = f.encode(v)
        fields = b.view(f.struct)[:, 0]
        if kind == "q8_0":
            requantise(fields, v, True)
        values = f.decode(b).astype(np.float64)
        minima = fields["m"].astype(np.float64) if "m" in (fields.dtype.names or ()) else np.zeros(len(v))
    return values.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]], minima.reshape(blocks.shape[:-1])


def _met(kind: str, x: Array) -> tuple[Array, Array]:
    """A query in blocks of Q8_0 or Q8_1 [..., H], and how far each block's own sum is from that of its numbers."""
    blocks = _in_blocks(x)
    v = np.ascontiguousarray(blocks.reshape(-1, BLOCK), np.float32)
    f = format_of(kind)
    assert f.encode is not None
    b = f.encode(v)
    fields = b.view(f.struct)[:, 0]
    requantise(fields, v, True)
    values = f.decode(b).astype(np.float64)
    apart = fields["s"].astype(np.float64) - group_sums(values, BLOCK)[:, 0] if kind == "Q8_1" else np.zeros(len(v))
    return values.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]], apart.reshape(blocks.shape[:-1])


def _nonlinear(v: Array) -> Array:
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


def values_of(r: Recipe, v: Span) -> Span:
    """Values [S, K, H] as a quantised cache holds them, turned if it is one that turns."""
    assert r.cache is not None
    kind = r.cache.removesuffix(TURNED)
    return held(kind, v if kind == r.cache else turned(v, LEAST_TURN))
