"""Q6_K, packed: d of 32 rows, then 52 words of 32 rows a block of 256: 32 low halves of codes, 16 of upper bits, 4 of scales (quant/q6_k.py)."""

from __future__ import annotations

from .product import TILE, block_rows, many, one
from .simd import code6_32, load_f16, load_i32, mask, shift_left, shift_right, signed_byte, to_f32
from .team import Kernel, helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 256, 210, 208, 0
SUMS = False
SIZE = 64 + 52 * 128


@helper
def block_of(w, group):  # type: ignore[no-untyped-def]
    return w + (group >> 4) * SIZE


@helper
def codes(w, group, quad):  # type: ignore[no-untyped-def]
    """Groups of 16. Of a half block's 128 columns, word l of the low halves has columns 4 l (low) and 64 + 4 l (high nibbles)."""
    words, j = block_of(w, group) + 64, group & 15
    half, quarter, at = j >> 3, (j & 7) >> 1, (j & 1) * 4 + quad
    low = load_i32(words + 128 * (half * 16 + (quarter & 1) * 8 + at))
    high = load_i32(words + 128 * (32 + half * 8 + at))
    upper = mask(shift_right(high, 2 * quarter), 0x03030303)
    return mask(shift_right(low, 4 * (quarter >> 1)), 0x0F0F0F0F) | shift_left(upper, 4)


@helper
def scale(w, group):  # type: ignore[no-untyped-def]
    b, j = block_of(w, group), group & 15
    return load_f16(b) * to_f32(signed_byte(load_i32(b + 64 + 128 * (48 + (j >> 2))), j & 3))


def f32_one(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code6_32, scale, None, 4, first, last, w, size, x, sums, y, stride, rows, K, tiles, 1, one())


def f32_many(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code6_32, scale, None, 4, first, last, w, size, x, sums, y, stride, rows, K, tiles, TILE, many())


F32 = Kernel(f32_one), Kernel(f32_many)
