"""IQ3_XXS, packed: d of 32 rows, then 25 words of 32 rows a block of 256: 16 of rows of the grid, 8 of signs, one of
scales (quant/iq3_xxs.py). The file has 24: of eight signs seven, for their number is even, and a scale beside 28.
"""

from __future__ import annotations

from .....quant import iq3_xxs
from ..machine.kernel import Kernel, helper
from ..machine.simd import load_i32, shift_left, shift_right, splat_i32, store_i32
from ..matmul.form import Form
from ..matmul.grid import WORD, bits_of, field, grid, nibble_scales, signed, signs, signs_of_28
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 64 + 25 * WORD
LEVELS = (4, 12, 20, 28, 36, 44, 52, 62)
row = grid(iq3_xxs.FORMAT, 256, 4, low=2)
value, above = signed(LEVELS)
scales, factor, scale = nibble_scales(SIZE, 24, groups=8, times=0.25)


def _part(first, last, w):
    """Blocks first..last of 32 rows: signs, and scales behind them."""
    for i in range(first, last):
        words, scales = w + i * SIZE + 64, splat_i32(0)
        for j in range(8):
            both = load_i32(words + (16 + j) * WORD)
            scales = scales | shift_left(shift_right(both, 28), 4 * j)
            store_i32(words + (16 + j) * WORD, signs_of_28(both))
        store_i32(words + 24 * WORD, scales)


@helper
def indices(w, group, quad):
    words, q = w + (group >> 3) * SIZE + 64, (group & 7) * 8 + quad
    return row(field(words, q, 8)) | signs(words + 16 * WORD, q)


@helper
def codes(w, group, quad):
    return above(indices(w, group, quad))


FORM = Form(
    iq3_xxs.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, indices, value, scale, rest=None, quads=8),
    **blocks_of_256(__name__, codes, scales, None, factor, None, quads=8, size=SIZE, bits=bits_of(LEVELS)),
    rearrange=Kernel(_part),
    extra=1,
)
