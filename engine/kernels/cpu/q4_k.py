"""Q4_K, packed: 36 words of 32 rows a block of 256: d and dmin, three of 6-bit scales and mins, 32 of codes (quant/q4_k.py)."""

from __future__ import annotations

from .product import TILE, block_rows, many, one
from .simd import code4_8, high_half, load_i32, low_half, mask, shift_left, shift_right, splat_f32, to_f32
from .team import Kernel, helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 256, 144, -1, 0
SUMS = True


@helper
def block_of(w, group):  # type: ignore[no-untyped-def]
    return w + (group >> 3) * (36 * 128)


@helper
def six_bits(w, group, minimum):  # type: ignore[no-untyped-def]
    """Scale or minimum 0..63: groups 0-3 in words 0 and 1; 4-7 half in word 2, their upper bits on top of words 0 and 1."""
    j = group & 3
    first = load_i32(block_of(w, group) + 128 * (1 + minimum))
    if group & 4:
        last = shift_right(load_i32(block_of(w, group) + 128 * 3), 8 * j + 4 * minimum)
        return mask(last, 15) | shift_left(mask(shift_right(first, 8 * j + 6), 3), 4)
    return mask(shift_right(first, 8 * j), 63)


@helper
def codes(w, group, quad):  # type: ignore[no-untyped-def]
    words = load_i32(block_of(w, group) + 128 * (4 + ((group & 7) >> 1) * 8 + quad))
    return mask(shift_right(words, 4 * (group & 1)), 0x0F0F0F0F)


@helper
def scale(w, group):  # type: ignore[no-untyped-def]
    return low_half(load_i32(block_of(w, group))) * to_f32(six_bits(w, group, 0))


@helper
def minimum(w, group):  # type: ignore[no-untyped-def]
    return high_half(load_i32(block_of(w, group))) * to_f32(six_bits(w, group, 1))


@helper
def rest(w, group):  # type: ignore[no-untyped-def]
    return splat_f32(8.0) * scale(w, group) - minimum(w, group)


def f32_one(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code4_8, scale, rest, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, 1, one())


def f32_many(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code4_8, scale, rest, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, TILE, many())


F32 = Kernel(f32_one), Kernel(f32_many)
