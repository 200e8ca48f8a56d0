"""IQ2_XXS, packed: d of 32 rows, then 17 words of 32 rows a block of 256: 8 of rows of the grid, 8 of signs, one of
scales (quant/iq2_xxs.py). The file has 16: of eight signs seven, for their number is even, and a scale beside 28.
"""

from __future__ import annotations

from .....quant import iq2_xxs
from ..machine.kernel import Kernel, helper
from ..machine.simd import load_i32, scratch, shift_left, shift_right, splat_i32, store_i32
from ..matmul.form import Form
from ..matmul.grid import WORD, bits_of, field, grid, half_row, nibble_scales, signed, signs, signs_of_28
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 64 + 17 * WORD
LEVELS = (8, 25, 43)
file_memory = scratch(16 * WORD)
row = grid(iq2_xxs.FORMAT, 256, 8, low=2)
value, above = signed(LEVELS)
scales, factor, scale = nibble_scales(SIZE, 16, groups=8, times=0.125)


def _part(first, last, w):
    """Blocks first..last of 32 rows, of which the file has words of rows and of signs in turns."""
    file = file_memory()
    for i in range(first, last):
        words, scales = w + i * SIZE + 64, splat_i32(0)
        for j in range(16):
            store_i32(file + j * WORD, load_i32(words + j * WORD))
        for j in range(8):
            both = load_i32(file + (2 * j + 1) * WORD)
            scales = scales | shift_left(shift_right(both, 28), 4 * j)
            store_i32(words + j * WORD, load_i32(file + 2 * j * WORD))
            store_i32(words + (8 + j) * WORD, signs_of_28(both))
        store_i32(words + 16 * WORD, scales)


@helper
def indices(w, group, quad):
    words, q = w + (group >> 3) * SIZE + 64, (group & 7) * 8 + quad
    return half_row(row(field(words, q >> 1, 8)), q) | signs(words + 8 * WORD, q)


@helper
def codes(w, group, quad):
    return above(indices(w, group, quad))


FORM = Form(
    iq2_xxs.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, indices, value, scale, rest=None, quads=8),
    **blocks_of_256(__name__, codes, scales, None, factor, None, quads=8, size=SIZE, bits=bits_of(LEVELS)),
    rearrange=Kernel(_part),
    extra=1,
)
