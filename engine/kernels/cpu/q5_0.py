"""Q5_0, packed: d of 32 rows, then 5 words of 32 rows a block of 32: the fifth bits, and 4 of codes (quant/q5_0.py).

ggml has column i's fifth bit at bit i. Packed, the bit of column 16 h + 4 g + j is at bit 8 j + 4 h + g, so that one shift and one mask
bring four columns' bits to their bytes.
"""

from __future__ import annotations

from .product import TILE, block_rows, many, one
from .simd import code5_16, load_f16, load_i32, mask, shift_left, shift_right, store_i32
from .team import Kernel, helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 32, 22, 0, 2
SUMS = False
SIZE = 64 + 5 * 128


def _spread(first, last, w):  # type: ignore[no-untyped-def]
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
def codes(w, group, quad):  # type: ignore[no-untyped-def]
    b, h = w + group * SIZE + 64, quad >> 2
    low = mask(shift_right(load_i32(b + 128 * (1 + (quad & 3))), 4 * h), 0x0F0F0F0F)
    return low | shift_left(mask(shift_right(load_i32(b), quad), 0x01010101), 4)


@helper
def scale(w, group):  # type: ignore[no-untyped-def]
    return load_f16(w + group * SIZE)


def f32_one(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code5_16, scale, None, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, 1, one())


def f32_many(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code5_16, scale, None, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, TILE, many())


F32 = Kernel(f32_one), Kernel(f32_many)
