"""Q4_1, packed: 5 words of 32 rows a block of 32: d and m, then 4 of codes (quant/q4_1.py)."""

from __future__ import annotations

from .....quant import q4_1
from ..machine.kernel import helper
from ..machine.simd import high_half, load_i32, low_half, splat_f32
from ..machine.tiles import code4_8, dot4_tile
from ..matmul.form import Form
from ..matmul.integer import blocks_of_32
from ..matmul.product import coded
from .q4_0 import codes_at

SIZE = 5 * 128


@helper
def codes(w, group, quad):
    return codes_at(w + group * SIZE + 128, quad)


@helper
def scale(w, group):
    return low_half(load_i32(w + group * SIZE))


@helper
def minimum(w, group):
    """What code 0 stands for; K-quants have the same with the other sign."""
    return high_half(load_i32(w + group * SIZE))


@helper
def rest(w, group):
    return splat_f32(8.0) * scale(w, group) + minimum(w, group)


FORM = Form(
    q4_1.FORMAT,
    half_at=-1,
    words_at=0,
    f32=coded(__name__, codes, code4_8, scale, rest=rest, quads=8),
    **blocks_of_32(__name__, codes, dot4_tile, 0, scale, bits=4, minimum=minimum),
)
