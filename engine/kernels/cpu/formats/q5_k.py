"""Q5_K, packed: 44 words of 32 rows a block of 256: as Q4_K, with 8 words of fifth bits before the codes
(quant/q5_k.py).
"""

from __future__ import annotations

from .....quant import q5_k
from ..machine.kernel import helper
from ..machine.simd import load_i32, mask, shift_left, shift_right, splat_f32
from ..machine.tiles import code5_16
from ..matmul.form import Form
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded
from .q4_k import factor, min_factor, minima, minimum_in, scale_in, scales

SIZE = 44 * 128


@helper
def block_of(w, group):
    return w + (group >> 3) * SIZE


@helper
def codes(w, group, quad):
    b, j = block_of(w, group), group & 7
    low = mask(shift_right(load_i32(b + 128 * (12 + (j >> 1) * 8 + quad)), 4 * (j & 1)), 0x0F0F0F0F)
    return low | shift_left(mask(shift_right(load_i32(b + 128 * (4 + quad)), j), 0x01010101), 4)


@helper
def scale(w, group):
    return scale_in(block_of(w, group), group & 7)


@helper
def minimum(w, group):
    return minimum_in(block_of(w, group), group & 7)


@helper
def rest(w, group):
    return splat_f32(16.0) * scale(w, group) - minimum(w, group)


FORM = Form(
    q5_k.FORMAT,
    half_at=-1,
    words_at=0,
    f32=coded(__name__, codes, code5_16, scale, rest=rest, quads=8),
    **blocks_of_256(__name__, codes, scales, minima, factor, min_factor, quads=8, size=SIZE, bits=5),
)
