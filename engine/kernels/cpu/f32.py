"""F32, packed: column by column, 32 rows side by side."""

from __future__ import annotations

from ....quant import f32
from .product import columns_many, columns_one, fill_columns, kernels
from .simd import load_f32
from .team import helper

FORMAT = f32.FORMAT
HALF_AT, WORDS_AT = -1, 0


@helper
def column(w, k):
    return load_f32(w + 128 * k)


@helper
def f32_one(w, size, x, K, zero):
    return columns_one(column, w, size, x, K, zero)


@helper
def f32_fill(w, k, width, panel):
    fill_columns(column, w, k, width, panel)


F32 = kernels(__name__, "f32", f32_one, f32_fill, columns_many)
