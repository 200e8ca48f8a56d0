"""F32, packed: column by column, 32 rows side by side."""

from __future__ import annotations

from .product import floats_f32, kernels
from .simd import load_f32
from .team import helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 1, 4, -1, 0


@helper
def column(w, k):
    return load_f32(w + 128 * k)


@helper
def f32(w, size, x, K, tile, zero):
    return floats_f32(column, w, size, x, K, tile, zero)


F32 = kernels(__name__, f32)
