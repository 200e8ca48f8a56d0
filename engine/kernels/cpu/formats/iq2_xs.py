"""IQ2_XS, packed: d of 32 rows, then 19 words of 32 rows a block of 256: 8 of the lower 8 bits of rows of the grid, one
of the ninth ones, 8 of signs, 2 of scales (quant/iq2_xs.py). The file has 18: of eight signs seven, for their number is
even.
"""

from __future__ import annotations

from .....quant import iq2_xs
from ..machine.kernel import Kernel, helper
from ..machine.simd import load_i32, mask, scratch, shift_left, shift_right, splat_i32, store_i32
from ..matmul.form import Form
from ..matmul.grid import WORD, bits_of, field, grid, half_row, nibble_scales, signed, signs, signs_of_28
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 64 + 19 * WORD
LEVELS = (8, 25, 43)
file_memory = scratch(18 * WORD)
row = grid(iq2_xs.FORMAT, 512, 8, low=2, high=3)
value, above = signed(LEVELS)
scales, factor, scale = nibble_scales(SIZE, 17, groups=16, times=0.125)


def _part(first, last, w):
    """Blocks first..last of 32 rows, of which the file has 16 bits each eight columns: nine of a row, seven signs."""
    file = file_memory()
    for i in range(first, last):
        words, ninth = w + i * SIZE + 64, splat_i32(0)
        for j in range(18):
            store_i32(file + j * WORD, load_i32(words + j * WORD))
        for j in range(8):
            low, seven = splat_i32(0), splat_i32(0)
            for o in range(4):
                both = field(file, 4 * j + o, 16)
                low = low | shift_left(mask(both, 0xFF), 8 * o)
                ninth = ninth | shift_left(mask(shift_right(both, 8), 1), 4 * j + o)
                seven = seven | shift_left(shift_right(both, 9), 7 * o)
            store_i32(words + j * WORD, low)
            store_i32(words + (9 + j) * WORD, signs_of_28(seven))
        store_i32(words + 8 * WORD, ninth)
        for j in range(2):
            store_i32(words + (17 + j) * WORD, load_i32(file + (16 + j) * WORD))


@helper
def indices(w, group, quad):
    words, q = w + (group >> 4) * SIZE + 64, (group & 15) * 4 + quad
    number = field(words, q >> 1, 8) | shift_left(field(words + 8 * WORD, q >> 1, 1), 8)
    return half_row(row(number), q) | signs(words + 9 * WORD, q)


@helper
def codes(w, group, quad):
    return above(indices(w, group, quad))


FORM = Form(
    iq2_xs.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, indices, value, scale, rest=None, quads=4),
    **blocks_of_256(__name__, codes, scales, None, factor, None, quads=4, size=SIZE, bits=bits_of(LEVELS)),
    rearrange=Kernel(_part),
    extra=1,
)
