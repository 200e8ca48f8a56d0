"""Q4_0, packed: d of 32 rows, then 4 words of 32 rows a block of 32 (quant/q4_0.py)."""

from __future__ import annotations

from .....quant import q4_0
from ..machine.kernel import helper
from ..machine.simd import load_f16, load_i32, mask, shift_right
from ..machine.tiles import code4_8, dot4_tile
from ..matmul.form import Form
from ..matmul.integer import blocks_of_32
from ..matmul.product import coded

SIZE = 64 + 4 * 128


@helper
def codes_at(b, quad):
    """b: where the codes begin; Q4_1 has them elsewhere."""
    return mask(shift_right(load_i32(b + 128 * (quad & 3)), quad & 4), 0x0F0F0F0F)


@helper
def codes(w, group, quad):
    return codes_at(w + group * SIZE + 64, quad)


@helper
def scale(w, group):
    return load_f16(w + group * SIZE)


FORM = Form(
    q4_0.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, codes, code4_8, scale, rest=None, quads=8),
    **blocks_of_32(__name__, codes, dot4_tile, 8, scale, bits=4),
)
