"""Q8_0, packed: d of 32 rows, then 8 words of 32 rows a block of 32 (quant/q8_0.py). Read as unsigned codes, 128
above the signed ones.
"""

from __future__ import annotations

from ....quant import q8_0
from .integer import fill_codes, q8_0_many, q8_0_one
from .product import codes_one, fill_values, kernels, values_many
from .simd import SET, code8_128, dot4_wide_tile, group_tile, load_f16, load_i32, splat_i32
from .team import helper

FORMAT = q8_0.FORMAT
HALF_AT, WORDS_AT = 0, 2
SIZE = 64 + 8 * 128
PLANES = SET.planes
GROUP = group_tile(8, 8 // PLANES)


@helper
def codes(w, group, quad):
    return load_i32(w + group * SIZE + 64 + 128 * quad) ^ splat_i32(-0x7F7F7F80)  # 0x80 in every byte


@helper
def scale(w, group):
    return load_f16(w + group * SIZE)


@helper
def f32_one(w, size, x, K, zero):
    return codes_one(codes, code8_128, scale, None, 8, w, size, x, K, zero)


@helper
def f32_fill(w, k, width, panel):
    fill_values(codes, code8_128, scale, None, 8, w, k, width, panel)


@helper
def f32_many(panel, x, k, width, K, acc):
    return values_many(None, 8, panel, x, k, width, K, acc)


@helper
def int8_one(w, size, x, K, zero):
    return q8_0_one(codes, dot4_wide_tile, 128, scale, w, size, x, K, zero)


@helper
def int8_fill(w, k, width, panel):
    fill_codes(codes, PLANES, scale, w, k, width, panel)


@helper
def int8_many(panel, x, k, width, K, acc):
    return q8_0_many(GROUP, PLANES, 128, panel, x, k, width, K, acc)


F32 = kernels(__name__, "f32", f32_one, f32_fill, f32_many)
INT8 = kernels(__name__, "int8", int8_one, int8_fill, int8_many)
INT16 = kernels(__name__, "int16", int8_one, int8_fill, int8_many, halves=2)
