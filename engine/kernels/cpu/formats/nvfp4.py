"""NVFP4, packed: 9 words of 32 rows a block of 64: the scales, then 8 of codes, which are mxfp4.py's, low nibbles of 8
columns before their high ones (quant/nvfp4.py).
"""

from __future__ import annotations

from .....quant import nvfp4
from ..machine.kernel import helper
from ..machine.simd import absolute, load_i32, mask, shift_right, splat_f32, where_less
from ..machine.tiles import float8
from ..matmul.form import Form
from ..matmul.product import coded
from .mxfp4 import value

SIZE = 9 * 128
level = float8(3)


@helper
def codes(w, group, quad):
    words = load_i32(w + (group >> 2) * SIZE + 128 * (1 + 2 * (group & 3) + (quad & 1)))
    return mask(shift_right(words, 2 * (quad & 2)), 0x0F0F0F0F)


@helper
def scale(w, group):
    """As ggml reads it: 0x7F is 0, and the sign of all others nothing."""
    v = level(load_i32(w + (group >> 2) * SIZE), group & 3)
    return splat_f32(0.5) * where_less(splat_f32(479.0), v, splat_f32(0.0), absolute(v))


FORM = Form(
    nvfp4.FORMAT,
    half_at=-1,
    words_at=0,
    f32=coded(__name__, codes, value, scale, rest=None, quads=4),
)
