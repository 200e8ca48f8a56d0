"""Q8_0, packed: d of 32 rows, then 8 words of 32 rows a block of 32 (quant/q8_0.py). Read as unsigned codes, 128 above the signed ones."""

from __future__ import annotations

from .product import TILE, block_rows, many, one
from .simd import code8_128, load_f16, load_i32, splat_i32
from .team import Kernel, helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 32, 34, 0, 2
SUMS = False
SIZE = 64 + 8 * 128


@helper
def codes(w, group, quad):  # type: ignore[no-untyped-def]
    return load_i32(w + group * SIZE + 64 + 128 * quad) ^ splat_i32(-0x7F7F7F80)  # 0x80 in every byte


@helper
def scale(w, group):  # type: ignore[no-untyped-def]
    return load_f16(w + group * SIZE)


def f32_one(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code8_128, scale, None, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, 1, one())


def f32_many(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    block_rows(codes, code8_128, scale, None, 8, first, last, w, size, x, sums, y, stride, rows, K, tiles, TILE, many())


F32 = Kernel(f32_one), Kernel(f32_many)
