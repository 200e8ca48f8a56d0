"""Q4_0, packed: d of 32 rows, then 4 words of 32 rows a block of 32 (quant/q4_0.py)."""

from __future__ import annotations

from .integer import codes_q8_0
from .product import codes_f32, kernels
from .simd import code4_8, dot4_tile, load_f16, load_i32, mask, shift_right
from .team import helper

BLOCK, BYTES, HALF_AT, WORDS_AT = 32, 18, 0, 2
ACTIVATIONS = "Q8_0"
SIZE = 64 + 4 * 128


@helper
def codes(w, group, quad):
    words = load_i32(w + group * SIZE + 64 + 128 * (quad & 3))
    return mask(shift_right(words, quad & 4), 0x0F0F0F0F)


@helper
def scale(w, group):
    return load_f16(w + group * SIZE)


@helper
def f32(w, size, x, K, tile, zero):
    return codes_f32(codes, code4_8, scale, None, 8, w, size, x, K, tile, zero)


@helper
def int8(w, size, x, K, tile, zero):
    return codes_q8_0(codes, dot4_tile, 8, scale, w, size, x, K, tile, zero)


F32, INT8 = kernels(__name__, f32), kernels(__name__, int8)
