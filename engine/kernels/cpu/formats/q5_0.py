"""Q5_0, packed: d of 32 rows, then 5 words of 32 rows a block of 32: the fifth bits, and 4 of codes (quant/q5_0.py).

ggml has column i's fifth bit at bit i. Packed, the bit of column 16 h + 4 g + j is at bit 8 j + 4 h + g, so that one
shift and one mask bring four columns' bits to their bytes.
"""

from __future__ import annotations

from .....quant import q5_0
from ..machine.kernel import Kernel, helper
from ..machine.simd import load_f16, load_i32, mask, shift_left, shift_right, store_i32
from ..machine.tiles import code5_16, dot4_tile
from ..matmul.form import Form
from ..matmul.integer import blocks_of_32
from ..matmul.product import coded

SIZE = 64 + 5 * 128
BITS_AT = 64  # Q5_1 has its own in the place of these two


def spread(first, last, w):
    """Blocks first..last of 32 rows: the fifth bits from ggml's order to ours."""
    for i in range(first, last):
        at = w + i * SIZE + BITS_AT
        old = load_i32(at)
        new = old ^ old
        for j in range(4):
            for h in range(2):
                for g in range(4):
                    bit = mask(shift_right(old, 16 * h + 4 * g + j), 1)
                    new = new | shift_left(bit, 8 * j + 4 * h + g)
        store_i32(at, new)


@helper
def codes_at(b, quad):
    """b: where the fifth bits begin; Q5_1 has them elsewhere."""
    low = mask(shift_right(load_i32(b + 128 * (1 + (quad & 3))), 4 * (quad >> 2)), 0x0F0F0F0F)
    return low | shift_left(mask(shift_right(load_i32(b), quad), 0x01010101), 4)


@helper
def codes(w, group, quad):
    return codes_at(w + group * SIZE + BITS_AT, quad)


@helper
def scale(w, group):
    return load_f16(w + group * SIZE)


FORM = Form(
    q5_0.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, codes, code5_16, scale, rest=None, quads=8),
    **blocks_of_32(__name__, codes, dot4_tile, 16, scale, bits=5),
    rearrange=Kernel(spread),
)
