"""Norm, rotary embedding, SiLU, sum and product, a row at a time. Sums along a row take 32 lanes and one fixed tree."""

from __future__ import annotations

import numpy as np

from .elementary import cos_sin, exp
from .machine.codegen import LANES
from .machine.kernel import Kernel, helper
from .machine.simd import (
    float_of_bits,
    fma,
    get_f32,
    get_i32,
    load_f32,
    load_f32_first,
    set_f32,
    splat_f32,
    store_f32_first,
    total,
)


@helper
def sum_of_squares(x, D):
    a = splat_f32(np.float32(0))
    b = a
    for i in range(0, D - 63, 64):
        u, v = load_f32(x + 4 * i), load_f32(x + 4 * i + 128)
        a, b = fma(u, u, a), fma(v, v, b)
    for i in range(D // 64 * 64, D, LANES):
        u = load_f32_first(x + 4 * i, D - i)
        a = fma(u, u, a)
    return total(a + b)


def _rms_norm(first_row, last, x, stride, gain, eps_bits, heads, D, y):
    """Each head of D values of a row by itself; a row that is normalised whole is one head."""
    for t in range(first_row, last):
        for n in range(heads):
            row, to = x + t * stride + n * D * 4, y + (t * heads + n) * D * 4
            mean = sum_of_squares(row, D) / np.float32(D)
            root = splat_f32(np.sqrt(mean + float_of_bits(eps_bits)))
            for i in range(0, D, LANES):
                v = load_f32_first(row + 4 * i, D - i) / root * load_f32_first(gain + 4 * i, D - i)
                store_f32_first(to + 4 * i, v, D - i)


def _add(first_row, last, x, x_stride, y, y_stride, D, z):
    for t in range(first_row, last):
        for i in range(0, D, LANES):
            v = load_f32_first(x + t * x_stride + 4 * i, D - i) + load_f32_first(y + t * y_stride + 4 * i, D - i)
            store_f32_first(z + (t * D + i) * 4, v, D - i)


def _mul(first_row, last, x, x_stride, y, y_stride, D, z):
    for t in range(first_row, last):
        for i in range(0, D, LANES):
            v = load_f32_first(x + t * x_stride + 4 * i, D - i) * load_f32_first(y + t * y_stride + 4 * i, D - i)
            store_f32_first(z + (t * D + i) * 4, v, D - i)


def _silu(first_row, last, x, stride, D, y):
    one, zero = splat_f32(np.float32(1)), splat_f32(np.float32(0))
    for t in range(first_row, last):
        for i in range(0, D, LANES):
            v = load_f32_first(x + t * stride + 4 * i, D - i)
            store_f32_first(y + (t * D + i) * 4, v / (one + exp(zero - v)), D - i)


def _rotary_table(first_row, last, start, inv_freq, half, magnitude_bits, cos, sin):
    """Cosine and sine of position * frequency from position start on, that product rounded to float32 as in HF; then
    each times the magnitude."""
    size = float_of_bits(magnitude_bits)
    for p in range(first_row, last):
        for j in range(half):
            c, s = cos_sin(float(np.float32(start + p) * get_f32(inv_freq + 4 * j)))
            set_f32(cos + (p * half + j) * 4, np.float32(c) * size)
            set_f32(sin + (p * half + j) * 4, np.float32(s) * size)


def _rope(first_row, last, x, stride, positions, start, cos, sin, heads, half, y):
    for t in range(first_row, last):
        p = (get_i32(positions + 4 * t) - start) * half * 4
        for n in range(heads):
            at, to = x + t * stride + n * half * 8, y + (t * heads + n) * half * 8
            for j in range(0, half, LANES):
                left = half - j
                a, b = load_f32_first(at + 4 * j, left), load_f32_first(at + 4 * (half + j), left)
                c, s = load_f32_first(cos + p + 4 * j, left), load_f32_first(sin + p + 4 * j, left)
                store_f32_first(to + 4 * j, a * c - b * s, left)
                store_f32_first(to + 4 * (half + j), b * c + a * s, left)


rms_norm, add, mul, silu = Kernel(_rms_norm), Kernel(_add), Kernel(_mul), Kernel(_silu)
rotary_table, rope = Kernel(_rotary_table), Kernel(_rope)
KERNELS = rms_norm, add, mul, silu, rotary_table, rope
