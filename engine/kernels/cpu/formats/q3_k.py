"""Q3_K, packed: d of 32 rows, then 27 words of 32 rows a block of 256: 8 of third bits, 16 of lower
bits, 3 of scales (quant/q3_k.py).
"""

from __future__ import annotations

from .....quant import q3_k
from ..machine.kernel import helper
from ..machine.simd import load_f16, load_i32, mask, shift_left, shift_right, signed_byte, splat_i32, to_f32
from ..machine.tiles import code3_4
from ..matmul.form import Form
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 64 + 27 * 128


@helper
def block_of(w, group):
    return w + (group >> 4) * SIZE


@helper
def codes(w, group, quad):
    """Groups of 16: a half block's 8 words have columns 4 l in their lowest two bits, then 32 + 4 l, ..."""
    words, j = block_of(w, group) + 64, group & 15
    lower = load_i32(words + 128 * (8 + (j >> 3) * 8 + (j & 1) * 4 + quad))
    third = mask(shift_right(load_i32(words + 128 * ((j & 1) * 4 + quad)), j >> 1), 0x01010101)
    return mask(shift_right(lower, j & 6), 0x03030303) | shift_left(third, 2)


@helper
def raised(w, four):
    """Four groups' scales, 32 above what they stand for, a byte each."""
    words = w + 64
    low = mask(shift_right(load_i32(words + 128 * (24 + (four & 1))), 4 * (four >> 1)), 0x0F0F0F0F)
    return low | shift_left(mask(shift_right(load_i32(words + 128 * 26), 2 * four), 0x03030303), 4)


@helper
def lowered(bytes_):
    """32 less in every byte up to 63, signed: borrowing from the bit that is set before and turned over again."""
    top = splat_i32(-0x7F7F7F80)  # 0x80 in every byte
    return ((bytes_ | top) - splat_i32(0x20202020)) ^ top


@helper
def scales(w, four):
    return lowered(raised(w, four))


@helper
def factor(w):
    return load_f16(w)


@helper
def scale(w, group):
    b, j = block_of(w, group), group & 15
    return factor(b) * to_f32(signed_byte(raised(b, j >> 2), j & 3) - splat_i32(32))


FORM = Form(
    q3_k.FORMAT,
    half_at=108,
    words_at=0,
    f32=coded(__name__, codes, code3_4, scale, rest=None, quads=4),
    **blocks_of_256(__name__, codes, scales, None, factor, None, quads=4, size=SIZE, bits=3),
)
