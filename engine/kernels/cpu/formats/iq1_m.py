"""IQ1_M, packed: 14 words of 32 rows a block of 256: 8 of the lower 8 bits of rows of the grid, 4 of four bits a row:
its upper three, and the shift's sign; 2 of three bits a scale, and d in what is left (quant/iq1_m.py).
"""

from __future__ import annotations

from .....quant import iq1_m
from ..machine.kernel import helper
from ..machine.simd import load_i32, low_half, mask, shift_left, shift_right, splat_f32, splat_i32
from ..matmul.form import Form
from ..matmul.grid import WORD, field, grid, half_row, odd, odd_bytes
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded
from .iq1_s import above, value

SIZE = 14 * WORD
row = grid(iq1_m.FORMAT, 2048, 8, low=0, high=32, scales=range(48, 56))


@helper
def indices(w, group, quad):
    words, q = w + (group >> 4) * SIZE, (group & 15) * 4 + quad
    upper = field(words + 8 * WORD, q >> 1, 4)
    number = field(words, q >> 1, 8) | shift_left(mask(upper, 7), 8)
    return half_row(row(number), q) | shift_right(upper, 3) * splat_i32(0x01010101)


@helper
def codes(w, group, quad):
    return above(indices(w, group, quad))


@helper
def scales(w, four):
    """Of four groups' 12 bits."""
    bits = field(w + 12 * WORD, four, 16)
    low = mask(bits, 7) | shift_left(mask(bits, 0x38), 5)
    return odd_bytes(low | shift_left(mask(bits, 0x1C0), 10) | shift_left(mask(bits, 0xE00), 15))


@helper
def factor(w):
    """d has its lowest four bits on top of the first 16, and so on."""
    first, second = load_i32(w + 12 * WORD), load_i32(w + 13 * WORD)
    low = mask(shift_right(first, 12), 0xF) | mask(shift_right(first, 24), 0xF0)
    high = mask(shift_right(second, 4), 0xF00) | mask(shift_right(second, 16), 0xF000)
    return splat_f32(0.125) * low_half(low | high)


@helper
def scale(w, group):
    b, j = w + (group >> 4) * SIZE, group & 15
    return factor(b) * odd(mask(shift_right(field(b + 12 * WORD, j >> 2, 16), 3 * (j & 3)), 7))


FORM = Form(
    iq1_m.FORMAT,
    half_at=-1,
    words_at=0,
    f32=coded(__name__, indices, value, scale, rest=None, quads=4),
    **blocks_of_256(__name__, codes, scales, None, factor, None, quads=4, size=SIZE, bits=5),
)
