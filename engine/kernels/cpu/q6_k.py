"""Q6_K, packed: d of 32 rows, then 52 words of 32 rows a block of 256: 32 low halves of codes, 16 of upper bits, 4 of
scales (quant/q6_k.py).
"""

from __future__ import annotations

from ....quant import q6_k
from .integer import fill_block, q8_k_many, q8_k_one
from .product import codes_one, fill_values, kernels, values_many
from .simd import code6_32, group_tile, load_f16, load_i32, mask, shift_left, shift_right, signed_byte, to_f32
from .team import helper

FORMAT = q6_k.FORMAT
HALF_AT, WORDS_AT = 208, 0
SIZE = 64 + 52 * 128
GROUP = group_tile(4, 6)


@helper
def block_of(w, group):
    return w + (group >> 4) * SIZE


@helper
def codes(w, group, quad):
    """Groups of 16. Of a half block's 128 columns, word l of the low halves has columns 4 l (low) and 64 + 4 l (high
    nibbles).
    """
    words, j = block_of(w, group) + 64, group & 15
    half, quarter, at = j >> 3, (j & 7) >> 1, (j & 1) * 4 + quad
    low = load_i32(words + 128 * (half * 16 + (quarter & 1) * 8 + at))
    high = load_i32(words + 128 * (32 + half * 8 + at))
    upper = mask(shift_right(high, 2 * quarter), 0x03030303)
    return mask(shift_right(low, 4 * (quarter >> 1)), 0x0F0F0F0F) | shift_left(upper, 4)


@helper
def scales(w, four):
    return load_i32(w + 64 + 128 * (48 + four))


@helper
def factor(w):
    return load_f16(w)


@helper
def scale(w, group):
    b, j = block_of(w, group), group & 15
    return factor(b) * to_f32(signed_byte(scales(b, j >> 2), j & 3))


@helper
def f32_one(w, size, x, K, zero):
    return codes_one(codes, code6_32, scale, None, 4, w, size, x, K, zero)


@helper
def f32_fill(w, k, width, panel):
    fill_values(codes, code6_32, scale, None, 4, w, k, width, panel)


@helper
def f32_many(panel, x, k, width, K, acc):
    return values_many(None, 4, panel, x, k, width, K, acc)


@helper
def int8_one(w, size, x, K, zero):
    return q8_k_one(codes, scales, None, factor, None, 4, SIZE, w, x, K, zero)


@helper
def int8_fill(w, k, width, panel):
    fill_block(codes, scales, None, factor, None, 4, SIZE, w, k, panel)


@helper
def int8_many(panel, x, k, width, K, acc):
    return q8_k_many(GROUP, None, 4, panel, x, k, K, acc)


F32 = kernels(__name__, "f32", f32_one, f32_fill, f32_many)
INT8 = kernels(__name__, "int8", int8_one, int8_fill, int8_many)
INT16 = kernels(__name__, "int16", int8_one, int8_fill, int8_many, halves=2)
