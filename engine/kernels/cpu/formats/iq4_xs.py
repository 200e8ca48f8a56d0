"""IQ4_XS, packed: 34 words of 32 rows a block of 256: d and the scales' upper bits, their lower ones, then 32 of codes,
which are iq4_nl.py's (quant/iq4_xs.py).
"""

from __future__ import annotations

from .....quant import iq4_xs
from ..machine.kernel import helper
from ..machine.paths import SET
from ..machine.simd import load_i32, low_half, mask, shift_left, shift_right, splat_i32, to_f32
from ..machine.tiles import code8_128
from ..matmul.form import Form
from ..matmul.grid import four_bytes
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded
from .iq4_nl import look_up, look_up_signed
from .q3_k import lowered

SIZE = 34 * 128


@helper
def block_of(w, group):
    return w + (group >> 3) * SIZE


@helper
def indices(w, group, quad):
    words = load_i32(block_of(w, group) + 128 * (2 + (group & 7) * 4 + (quad & 3)))
    return mask(shift_right(words, quad & 4), 0x0F0F0F0F)


@helper
def codes(w, group, quad):
    return look_up(indices(w, group, quad))


@helper
def signed(w, group, quad):
    return look_up_signed(indices(w, group, quad))


@helper
def scale(w, group):
    b, j = block_of(w, group), group & 7
    first = load_i32(b)
    low = mask(shift_right(load_i32(b + 128), 4 * j), 15)
    high = mask(shift_right(first, 16 + 2 * j), 3)
    return low_half(first) * to_f32((low | shift_left(high, 4)) - splat_i32(32))


@helper
def scales(w, four):
    """Four groups' as signed bytes."""
    high = mask(shift_right(load_i32(w), 16 + 8 * four), 0xFF)
    high = mask(high | shift_left(high, 12), 0x000F000F)
    high = mask(high | shift_left(high, 6), 0x03030303)
    return lowered(four_bytes(load_i32(w + 128), four) | shift_left(high, 4))


@helper
def factor(w):
    return low_half(load_i32(w))


FORM = Form(
    iq4_xs.FORMAT,
    half_at=-1,
    words_at=0,
    f32=coded(__name__, codes, code8_128, scale, rest=None, quads=8),
    **blocks_of_256(__name__, signed if SET.signed else codes, scales, None, factor, None, quads=8, size=SIZE, bits=8),
)
