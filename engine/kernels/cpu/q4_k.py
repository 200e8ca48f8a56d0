"""Q4_K, packed: 36 words of 32 rows a block of 256: d and dmin, three of 6-bit scales and mins, 32 of codes
(quant/q4_k.py).
"""

from __future__ import annotations

from ....quant import q4_k
from .integer import fill_block, q8_k_many, q8_k_one
from .product import codes_one, fill_values, kernels, values_many
from .simd import code4_8, group_tile, high_half, load_i32, low_half, mask, shift_right, signed_byte, splat_f32, to_f32
from .team import helper

FORMAT = q4_k.FORMAT
HALF_AT, WORDS_AT = -1, 0
SIZE = 36 * 128
GROUP = group_tile(8, 4)


@helper
def block_of(w, group):
    return w + (group >> 3) * SIZE


@helper
def six_bits(w, four, minimum):
    """Four groups' scales or minima, 0..63, a byte each: groups 0-3 in words 0 and 1; 4-7 half in word 2, their upper
    bits on top of words 0 and 1.
    """
    low = load_i32(w + 128 * (1 + minimum))
    if four:
        last = shift_right(load_i32(w + 128 * 3), 4 * minimum)
        return mask(last, 0x0F0F0F0F) | mask(shift_right(low, 2), 0x30303030)
    return mask(low, 0x3F3F3F3F)


@helper
def codes(w, group, quad):
    words = load_i32(block_of(w, group) + 128 * (4 + ((group & 7) >> 1) * 8 + quad))
    return mask(shift_right(words, 4 * (group & 1)), 0x0F0F0F0F)


@helper
def scales(w, four):
    return six_bits(w, four, 0)


@helper
def minima(w, four):
    return six_bits(w, four, 1)


@helper
def factor(w):
    return low_half(load_i32(w))


@helper
def min_factor(w):
    return high_half(load_i32(w))


@helper
def scale_in(w, j):
    """Of a block's group j."""
    return factor(w) * to_f32(signed_byte(scales(w, j >> 2), j & 3))


@helper
def minimum_in(w, j):
    return min_factor(w) * to_f32(signed_byte(minima(w, j >> 2), j & 3))


@helper
def scale(w, group):
    return scale_in(block_of(w, group), group & 7)


@helper
def minimum(w, group):
    return minimum_in(block_of(w, group), group & 7)


@helper
def rest(w, group):
    return splat_f32(8.0) * scale(w, group) - minimum(w, group)


@helper
def f32_one(w, size, x, K, zero):
    return codes_one(codes, code4_8, scale, rest, 8, w, size, x, K, zero)


@helper
def f32_fill(w, k, width, panel):
    fill_values(codes, code4_8, scale, rest, 8, w, k, width, panel)


@helper
def f32_many(panel, x, k, width, K, acc):
    return values_many(rest, 8, panel, x, k, width, K, acc)


@helper
def int8_one(w, size, x, K, zero):
    return q8_k_one(codes, scales, minima, factor, min_factor, 8, SIZE, w, x, K, zero)


@helper
def int8_fill(w, k, width, panel):
    fill_block(codes, scales, minima, factor, min_factor, 8, SIZE, w, k, panel)


@helper
def int8_many(panel, x, k, width, K, acc):
    return q8_k_many(GROUP, minima, 8, panel, x, k, K, acc)


F32 = kernels(__name__, "f32", f32_one, f32_fill, f32_many)
INT8 = kernels(__name__, "int8", int8_one, int8_fill, int8_many)
INT16 = kernels(__name__, "int16", int8_one, int8_fill, int8_many, halves=2)
