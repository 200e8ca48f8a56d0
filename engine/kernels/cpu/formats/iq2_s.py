"""IQ2_S, packed: d of 32 rows, then 20 words of 32 rows a block of 256: 8 of the lower 8 bits of rows of the grid, 8 of
signs, 2 of the rows' upper bits, 2 of scales (quant/iq2_s.py).
"""

from __future__ import annotations

from .....quant import iq2_s
from ..machine.kernel import Kernel, helper
from ..machine.simd import load_i32, shift_left, store_i32
from ..matmul.form import Form
from ..matmul.grid import WORD, across, bits_of, field, grid, half_row, nibble_scales, signed, signs
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 64 + 20 * WORD
LEVELS = (8, 25, 43)
row = grid(iq2_s.FORMAT, 1024, 8, low=2, high=66)
value, above = signed(LEVELS)
scales, factor, scale = nibble_scales(SIZE, 18, groups=16, times=0.125)


def _across(first, last, w):
    """Blocks first..last of 32 rows: signs."""
    for i in range(first, last):
        for j in range(8, 16):
            at = w + i * SIZE + 64 + j * WORD
            store_i32(at, across(load_i32(at)))


@helper
def indices(w, group, quad):
    words, q = w + (group >> 4) * SIZE + 64, (group & 15) * 4 + quad
    number = field(words, q >> 1, 8) | shift_left(field(words + 16 * WORD, q >> 1, 2), 8)
    return half_row(row(number), q) | signs(words + 8 * WORD, q)


@helper
def codes(w, group, quad):
    return above(indices(w, group, quad))


FORM = Form(
    iq2_s.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, indices, value, scale, rest=None, quads=4),
    **blocks_of_256(__name__, codes, scales, None, factor, None, quads=4, size=SIZE, bits=bits_of(LEVELS)),
    rearrange=Kernel(_across),
)
