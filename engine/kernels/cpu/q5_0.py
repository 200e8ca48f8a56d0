"""Q5_0, packed: d of 32 rows, then 5 words of 32 rows a block of 32: the fifth bits, and 4 of codes (quant/q5_0.py).

ggml has column i's fifth bit at bit i. Packed, the bit of column 16 h + 4 g + j is at bit 8 j + 4 h + g, so that one
shift and one mask bring four columns' bits to their bytes.
"""

from __future__ import annotations

from ....quant import q5_0
from .integer import fill_codes, q8_0_many, q8_0_one
from .product import codes_one, fill_values, kernels, values_many
from .simd import code5_16, dot4_tile, group_tile, load_f16, load_i32, mask, shift_left, shift_right, store_i32
from .team import Kernel, helper

FORMAT = q5_0.FORMAT
HALF_AT, WORDS_AT = 0, 2
SIZE = 64 + 5 * 128
GROUP = group_tile(8, 5)


def _spread(first, last, w):
    """Blocks first..last of 32 rows: the fifth bits from ggml's order to ours."""
    for i in range(first, last):
        at = w + i * SIZE + 64
        old = load_i32(at)
        new = old ^ old
        for j in range(4):
            for h in range(2):
                for g in range(4):
                    bit = mask(shift_right(old, 16 * h + 4 * g + j), 1)
                    new = new | shift_left(bit, 8 * j + 4 * h + g)
        store_i32(at, new)


REARRANGE = Kernel(_spread)


@helper
def codes(w, group, quad):
    b, h = w + group * SIZE + 64, quad >> 2
    low = mask(shift_right(load_i32(b + 128 * (1 + (quad & 3))), 4 * h), 0x0F0F0F0F)
    return low | shift_left(mask(shift_right(load_i32(b), quad), 0x01010101), 4)


@helper
def scale(w, group):
    return load_f16(w + group * SIZE)


@helper
def f32_one(w, size, x, K, zero):
    return codes_one(codes, code5_16, scale, None, 8, w, size, x, K, zero)


@helper
def f32_fill(w, k, width, panel):
    fill_values(codes, code5_16, scale, None, 8, w, k, width, panel)


@helper
def f32_many(panel, x, k, width, K, acc):
    return values_many(None, 8, panel, x, k, width, K, acc)


@helper
def int8_one(w, size, x, K, zero):
    return q8_0_one(codes, dot4_tile, 16, scale, w, size, x, K, zero)


@helper
def int8_fill(w, k, width, panel):
    fill_codes(codes, 1, scale, w, k, width, panel)


@helper
def int8_many(panel, x, k, width, K, acc):
    return q8_0_many(GROUP, 1, 16, panel, x, k, width, K, acc)


F32 = kernels(__name__, "f32", f32_one, f32_fill, f32_many)
INT8 = kernels(__name__, "int8", int8_one, int8_fill, int8_many)
INT16 = kernels(__name__, "int16", int8_one, int8_fill, int8_many, halves=2)
