"""TQ2_0, packed: d of 32 rows, then 16 words of 32 rows a block of 256 (quant/tq2_0.py)."""

from __future__ import annotations

from .....quant import tq2_0
from ..machine.kernel import helper
from ..machine.simd import load_f16, load_i32, mask, shift_right, splat_i32
from ..machine.tiles import code2_1
from ..matmul.form import Form
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded

SIZE = 64 + 16 * 128


@helper
def codes(w, group, quad):
    """A half block's 8 words have columns 4 l in their lowest two bits, then 32 + 4 l, ..."""
    j = group & 7
    words = load_i32(w + (group >> 3) * SIZE + 64 + 128 * ((j >> 2) * 8 + quad))
    return mask(shift_right(words, 2 * (j & 3)), 0x03030303)


@helper
def scale(w, group):
    return load_f16(w + (group >> 3) * SIZE)


@helper
def raised(w, group, quad):
    """The same 4 above what they stand for: integer products take a power of two, and codes up to 3 may be there."""
    return codes(w, group, quad) + splat_i32(0x03030303)


@helper
def ones(w, four):
    """A block has one scale, which is its factor."""
    return splat_i32(0x01010101)


@helper
def factor(w):
    return load_f16(w)


FORM = Form(
    tq2_0.FORMAT,
    half_at=64,
    words_at=0,
    f32=coded(__name__, codes, code2_1, scale, rest=None, quads=8),
    **blocks_of_256(__name__, raised, ones, None, factor, None, quads=8, size=SIZE, bits=3),
)
