"""IQ1_S, packed: d of 32 rows, then 12 words of 32 rows a block of 256: 8 of the lower 8 bits of rows of the grid, 4 of
16 bits each 32 columns: four rows' upper three bits, three of a scale, and the shift's sign (quant/iq1_s.py).

Levels are eighths, for the shift is one: the code of level -1, 0 or 1 is even where an eighth is added, odd where it is
taken away.
"""

from __future__ import annotations

from .....quant import iq1_s
from ..machine.kernel import helper
from ..machine.simd import load_f16, load_i32, mask, shift_left, shift_right, splat_f32, splat_i32
from ..matmul.form import Form
from ..matmul.grid import WORD, field, grid, half_row, odd, odd_bytes, stands_for
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 64 + 12 * WORD
EIGHTHS = (-7, -9, 1, -1, 9, 7)
row = grid(iq1_s.FORMAT, 2048, 8, low=2, high=34)
value, above = stands_for(EIGHTHS, 16)


@helper
def indices(w, group, quad):
    words, j = w + (group >> 3) * SIZE + 64, group & 7
    upper = field(words + 8 * WORD, j, 16)
    number = field(words, 4 * j + (quad >> 1), 8) | shift_left(mask(shift_right(upper, 3 * (quad >> 1)), 7), 8)
    return half_row(row(number), quad) | shift_right(upper, 15) * splat_i32(0x01010101)


@helper
def codes(w, group, quad):
    return above(indices(w, group, quad))


@helper
def two_scales(bits):
    """Of two groups' 16 bits, as bytes."""
    v = mask(shift_right(bits, 12), 0x00070007)
    return mask(v | shift_right(v, 8), 0x0707)


@helper
def scales(w, four):
    words = w + 64 + (8 + 2 * four) * WORD
    return odd_bytes(two_scales(load_i32(words)) | shift_left(two_scales(load_i32(words + WORD)), 16))


@helper
def factor(w):
    return splat_f32(0.125) * load_f16(w)


@helper
def scale(w, group):
    b = w + (group >> 3) * SIZE
    return factor(b) * odd(mask(shift_right(field(b + 64 + 8 * WORD, group & 7, 16), 12), 7))


FORM = Form(
    iq1_s.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, indices, value, scale, rest=None, quads=8),
    **blocks_of_256(__name__, codes, scales, None, factor, None, quads=8, size=SIZE, bits=5),
)
