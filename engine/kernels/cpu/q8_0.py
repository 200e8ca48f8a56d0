"""Q8_0, packed: d of 32 rows, then 8 words of 32 rows a block of 32 (quant/q8_0.py). Read as unsigned codes, 128
above the signed ones.
"""

from __future__ import annotations

from .integer import codes_q8_0
from .product import codes_f32, kernels
from .simd import code8_128, dot4_wide_tile, load_f16, load_i32, splat_i32
from .team import helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 32, 34, 0, 2
ACTIVATIONS = "Q8_0"
SIZE = 64 + 8 * 128


@helper
def codes(w, group, quad):
    return load_i32(w + group * SIZE + 64 + 128 * quad) ^ splat_i32(-0x7F7F7F80)  # 0x80 in every byte


@helper
def scale(w, group):
    return load_f16(w + group * SIZE)


@helper
def f32(w, size, x, K, tile, zero):
    return codes_f32(codes, code8_128, scale, None, 8, w, size, x, K, tile, zero)


@helper
def int8(w, size, x, K, tile, zero):
    return codes_q8_0(codes, dot4_wide_tile, 128, scale, w, size, x, K, tile, zero)


F32, INT8 = kernels(__name__, f32), kernels(__name__, int8)
