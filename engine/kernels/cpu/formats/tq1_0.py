"""TQ1_0, packed: d of 32 rows, then 13 words of 32 rows a block of 256 (quant/tq1_0.py).

A byte is a fraction of 256, of base-3 digits: times 3^i its digits from i on are left behind the point, and times 3
the next one is before it.
"""

from __future__ import annotations

from .....quant import tq1_0
from ..machine.kernel import helper
from ..machine.simd import load_f16, load_i32, mask, shift_left, shift_right, splat_i32
from ..machine.tiles import code2_1
from ..matmul.form import Form
from ..matmul.integer import blocks_of_256
from ..matmul.product import coded
from .tq2_0 import factor, ones

SIZE = 64 + 13 * 128
POWERS = 0x51_1B_09_03_01  # of 3, a byte each


@helper
def digits(v, power):
    """Of the bytes 0 and 2 of each lane."""
    return mask(shift_right(mask(v * power, 0x00FF00FF) * splat_i32(3), 8), 0x00FF00FF)


@helper
def codes(w, group, quad):
    """Of 8 words the first digits are 32 columns, the second ones the next; of 4 words 16, of the last 4."""
    q = (group & 7) * 8 + quad
    if q < 40:
        digit, word = q >> 3, q & 7
    elif q < 60:
        digit, word = (q - 40) >> 2, 8 + (q & 3)
    else:
        digit, word = q - 60, 12
    v = load_i32(w + (group >> 3) * SIZE + 64 + 128 * word)
    power = splat_i32(POWERS >> 8 * digit & 0xFF)
    even, odd = mask(v, 0x00FF00FF), mask(shift_right(v, 8), 0x00FF00FF)
    return digits(even, power) | shift_left(digits(odd, power), 8)


@helper
def scale(w, group):
    return load_f16(w + (group >> 3) * SIZE)


@helper
def raised(w, group, quad):
    return codes(w, group, quad) + splat_i32(0x03030303)


FORM = Form(
    tq1_0.FORMAT,
    half_at=52,
    words_at=0,
    f32=coded(__name__, codes, code2_1, scale, rest=None, quads=8),
    **blocks_of_256(__name__, raised, ones, None, factor, None, quads=8, size=SIZE, bits=3),
)
