"""Q2_K, packed: 21 words of 32 rows a block of 256: 4 of scales and minima, a nibble each, 16 of codes, then d and dmin
(quant/q2_k.py).
"""

from __future__ import annotations

from .....quant import q2_k
from ..machine.kernel import helper
from ..machine.simd import high_half, load_i32, low_half, mask, shift_right, signed_byte, splat_f32, to_f32
from ..machine.tiles import code2_2
from ..matmul.form import Form
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 21 * 128


@helper
def block_of(w, group):
    return w + (group >> 4) * SIZE


@helper
def codes(w, group, quad):
    """Groups of 16: a half block's 8 words have columns 4 l in their lowest two bits, then 32 + 4 l, ..."""
    j = group & 15
    words = load_i32(block_of(w, group) + 128 * (4 + (j >> 3) * 8 + (j & 1) * 4 + quad))
    return mask(shift_right(words, j & 6), 0x03030303)


@helper
def scales(w, four):
    return mask(load_i32(w + 128 * four), 0x0F0F0F0F)


@helper
def minima(w, four):
    return mask(shift_right(load_i32(w + 128 * four), 4), 0x0F0F0F0F)


@helper
def factor(w):
    return low_half(load_i32(w + 128 * 20))


@helper
def min_factor(w):
    return high_half(load_i32(w + 128 * 20))


@helper
def scale(w, group):
    b, j = block_of(w, group), group & 15
    return factor(b) * to_f32(signed_byte(scales(b, j >> 2), j & 3))


@helper
def rest(w, group):
    b, j = block_of(w, group), group & 15
    minimum = min_factor(b) * to_f32(signed_byte(minima(b, j >> 2), j & 3))
    return splat_f32(2.0) * scale(w, group) - minimum


FORM = Form(
    q2_k.FORMAT,
    half_at=-1,
    words_at=0,
    f32=coded(__name__, codes, code2_2, scale, rest=rest, quads=4),
    **blocks_of_256(__name__, codes, scales, minima, factor, min_factor, quads=4, size=SIZE, bits=2),
)
