"""F16, packed: column by column, 32 rows side by side."""

from __future__ import annotations

from .product import TILE, float_rows, many, one
from .simd import load_f16
from .team import Kernel, helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 1, 2, 0, 2
SUMS = False


@helper
def column(w, k):  # type: ignore[no-untyped-def]
    return load_f16(w + 64 * k)


def f32_one(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    float_rows(column, first, last, w, size, x, y, stride, rows, K, tiles, 1, one())


def f32_many(first, last, w, size, x, sums, y, stride, rows, K, tiles):  # type: ignore[no-untyped-def]
    float_rows(column, first, last, w, size, x, y, stride, rows, K, tiles, TILE, many())


F32 = Kernel(f32_one), Kernel(f32_many)
