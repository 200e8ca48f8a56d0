"""Q8_0, packed: d of 32 rows, then 8 words of 32 rows a block of 32 (quant/q8_0.py). Read as unsigned codes, 128
above the signed ones, but for dot products of signed codes.
"""

from __future__ import annotations

from .....quant import q8_0
from ..machine.kernel import helper
from ..machine.paths import SET
from ..machine.simd import load_f16, load_i32, splat_i32
from ..machine.tiles import code8_128, dot4_tile, dot4_wide_tile
from ..matmul.form import Form
from ..matmul.integer import blocks_of_32
from ..matmul.product import coded

SIZE = 64 + 8 * 128
PLANES = SET.planes
MULTIPLY, OFFSET = (dot4_tile, 0) if SET.signed else (dot4_wide_tile, 128)


@helper
def signed(w, group, quad):
    return load_i32(w + group * SIZE + 64 + 128 * quad)


@helper
def codes(w, group, quad):
    return signed(w, group, quad) ^ splat_i32(-0x7F7F7F80)  # 0x80 in every byte


@helper
def scale(w, group):
    return load_f16(w + group * SIZE)


FORM = Form(
    q8_0.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, codes, code8_128, scale, rest=None, quads=8),
    **blocks_of_32(__name__, signed if SET.signed else codes, MULTIPLY, OFFSET, scale, bits=8 // PLANES, planes=PLANES),
)
