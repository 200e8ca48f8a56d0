"""Q5_1, packed: 6 words of 32 rows a block of 32: d and m, the fifth bits as in q5_0.py, and 4 of codes
(quant/q5_1.py).
"""

from __future__ import annotations

from .....quant import q5_1
from ..machine.kernel import helper, specialise
from ..machine.simd import high_half, load_i32, low_half, splat_f32
from ..machine.tiles import code5_16, dot4_tile
from ..matmul.form import Form
from ..matmul.integer import blocks_of_32
from ..matmul.product import coded
from .q5_0 import codes_at, spread

SIZE, BITS_AT = 6 * 128, 128


@helper
def codes(w, group, quad):
    return codes_at(w + group * SIZE + BITS_AT, quad)


@helper
def scale(w, group):
    return low_half(load_i32(w + group * SIZE))


@helper
def minimum(w, group):
    return high_half(load_i32(w + group * SIZE))


@helper
def rest(w, group):
    return splat_f32(16.0) * scale(w, group) + minimum(w, group)


FORM = Form(
    q5_1.FORMAT,
    half_at=-1,
    words_at=0,
    f32=coded(__name__, codes, code5_16, scale, rest=rest, quads=8),
    **blocks_of_32(__name__, codes, dot4_tile, 0, scale, bits=5, minimum=minimum),
    rearrange=specialise(spread, "spread", __name__=__name__, SIZE=SIZE, BITS_AT=BITS_AT),
)
