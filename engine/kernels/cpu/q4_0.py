"""Q4_0, packed: d of 32 rows, then 4 words of 32 rows a block of 32 (quant/q4_0.py)."""

from __future__ import annotations

from .product import TILE, block_rows, many, one
from .simd import code4_8, load_f16, load_i32, mask, shift_right
from .team import Kernel, helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 32, 18, 0, 2
SUMS = False
SIZE = 64 + 4 * 128


@helper
def codes(w, group, quad):  # type: ignore[no-untyped-def]
    words = load_i32(w + group * SIZE + 64 + 128 * (quad & 3))
    return mask(shift_right(words, quad & 4), 0x0F0F0F0F)


@helper
def scale(w, group):  # type: ignore[no-untyped-def]
    return load_f16(w + group * SIZE)


def f32_one(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code4_8, scale, None, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, 1, one())


def f32_many(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code4_8, scale, None, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, TILE, many())


F32 = Kernel(f32_one), Kernel(f32_many)
