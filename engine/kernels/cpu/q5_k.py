"""Q5_K, packed: 44 words of 32 rows a block of 256: as Q4_K, with 8 words of fifth bits before the codes (quant/q5_k.py)."""

from __future__ import annotations

from .product import TILE, block_rows, many, one
from .q4_k import six_bits
from .simd import code5_16, high_half, load_i32, low_half, mask, shift_left, shift_right, splat_f32, to_f32
from .team import Kernel, helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 256, 176, -1, 0
SUMS = True


@helper
def block_of(w, group):  # type: ignore[no-untyped-def]
    return w + (group >> 3) * (44 * 128)


@helper
def codes(w, group, quad):  # type: ignore[no-untyped-def]
    b, j = block_of(w, group), group & 7
    low = mask(shift_right(load_i32(b + 128 * (12 + (j >> 1) * 8 + quad)), 4 * (j & 1)), 0x0F0F0F0F)
    return low | shift_left(mask(shift_right(load_i32(b + 128 * (4 + quad)), j), 0x01010101), 4)


@helper
def scale(w, group):  # type: ignore[no-untyped-def]
    b = block_of(w, group)
    return low_half(load_i32(b)) * to_f32(six_bits(b, group & 7, 0))


@helper
def minimum(w, group):  # type: ignore[no-untyped-def]
    b = block_of(w, group)
    return high_half(load_i32(b)) * to_f32(six_bits(b, group & 7, 1))


@helper
def rest(w, group):  # type: ignore[no-untyped-def]
    return splat_f32(16.0) * scale(w, group) - minimum(w, group)


def f32_one(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code5_16, scale, rest, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, 1, one())


def f32_many(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code5_16, scale, rest, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, TILE, many())


F32 = Kernel(f32_one), Kernel(f32_many)
