"""Q5_K, packed: 44 words of 32 rows a block of 256: as Q4_K, with 8 words of fifth bits before the codes
(quant/q5_k.py).
"""

from __future__ import annotations

from ....quant import q5_k
from .integer import fill_block, q8_k_many, q8_k_one
from .product import codes_one, fill_values, kernels, values_many
from .q4_k import factor, min_factor, minima, minimum_in, scale_in, scales
from .simd import code5_16, group_tile, load_i32, mask, shift_left, shift_right, splat_f32
from .team import helper

FORMAT = q5_k.FORMAT
HALF_AT, WORDS_AT = -1, 0
SIZE = 44 * 128
GROUP = group_tile(8, 5)


@helper
def block_of(w, group):
    return w + (group >> 3) * SIZE


@helper
def codes(w, group, quad):
    b, j = block_of(w, group), group & 7
    low = mask(shift_right(load_i32(b + 128 * (12 + (j >> 1) * 8 + quad)), 4 * (j & 1)), 0x0F0F0F0F)
    return low | shift_left(mask(shift_right(load_i32(b + 128 * (4 + quad)), j), 0x01010101), 4)


@helper
def scale(w, group):
    return scale_in(block_of(w, group), group & 7)


@helper
def minimum(w, group):
    return minimum_in(block_of(w, group), group & 7)


@helper
def rest(w, group):
    return splat_f32(16.0) * scale(w, group) - minimum(w, group)


@helper
def f32_one(w, size, x, K, zero):
    return codes_one(codes, code5_16, scale, rest, 8, w, size, x, K, zero)


@helper
def f32_fill(w, k, width, panel):
    fill_values(codes, code5_16, scale, rest, 8, w, k, width, panel)


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
