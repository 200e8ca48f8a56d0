"""IQ3_S, packed: d of 32 rows, then 27 words of 32 rows a block of 256: 16 of the lower 8 bits of rows of the grid, 2
of the ninth ones, 8 of signs, one of scales (quant/iq3_s.py).
"""

from __future__ import annotations

from .....quant import iq3_s
from ..machine.kernel import Kernel, helper
from ..machine.simd import load_i32, shift_left, store_i32
from ..matmul.form import Form
from ..matmul.grid import WORD, across, bits_of, field, grid, nibble_scales, signed, signs
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 64 + 27 * WORD
LEVELS = (1, 3, 5, 7, 9, 11, 13, 15)
row = grid(iq3_s.FORMAT, 512, 4, low=2, high=66)
value, above = signed(LEVELS)
scales, factor, scale = nibble_scales(SIZE, 26, groups=8, times=1.0)


def _across(first, last, w):
    """Blocks first..last of 32 rows: signs."""
    for i in range(first, last):
        for j in range(18, 26):
            at = w + i * SIZE + 64 + j * WORD
            store_i32(at, across(load_i32(at)))


@helper
def indices(w, group, quad):
    words, q = w + (group >> 3) * SIZE + 64, (group & 7) * 8 + quad
    return row(field(words, q, 8) | shift_left(field(words + 16 * WORD, q, 1), 8)) | signs(words + 18 * WORD, q)


@helper
def codes(w, group, quad):
    return above(indices(w, group, quad))


FORM = Form(
    iq3_s.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, indices, value, scale, rest=None, quads=8),
    **blocks_of_256(__name__, codes, scales, None, factor, None, quads=8, size=SIZE, bits=bits_of(LEVELS)),
    rearrange=Kernel(_across),
)
