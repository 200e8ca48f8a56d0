"""Q6_K, packed: d of 32 rows, then 52 words of 32 rows a block of 256: 32 low halves of codes, 16 of upper bits, 4 of
scales (quant/q6_k.py).
"""

from __future__ import annotations

from .....quant import q6_k
from ..machine.kernel import helper
from ..machine.simd import load_f16, load_i32, mask, shift_left, shift_right, signed_byte, to_f32
from ..machine.tiles import code6_32
from ..matmul.form import Form
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 64 + 52 * 128


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


FORM = Form(
    q6_k.FORMAT,
    half_at=208,
    words_at=0,
    f32=coded(__name__, codes, code6_32, scale, rest=None, quads=4),
    **blocks_of_256(__name__, codes, scales, None, factor, None, quads=4, size=SIZE, bits=6),
)
