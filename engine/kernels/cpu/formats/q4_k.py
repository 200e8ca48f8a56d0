"""Q4_K, packed: 36 words of 32 rows a block of 256: d and dmin, three of 6-bit scales and mins, 32 of codes
(quant/q4_k.py).
"""

from __future__ import annotations

from .....quant import q4_k
from ..machine.kernel import helper
from ..machine.simd import high_half, load_i32, low_half, mask, shift_right, signed_byte, splat_f32, to_f32
from ..machine.tiles import code4_8
from ..matmul.form import Form
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 36 * 128


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


FORM = Form(
    q4_k.FORMAT,
    half_at=-1,
    words_at=0,
    f32=coded(__name__, codes, code4_8, scale, rest=rest, quads=8),
    **blocks_of_256(__name__, codes, scales, minima, factor, min_factor, quads=8, size=SIZE, bits=4),
)
