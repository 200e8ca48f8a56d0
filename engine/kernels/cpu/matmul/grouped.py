"""Products of the formats whose groups are of any size: codes of 4 or 8 bits, and what a group shares in front of them.

A weight is decoded to the very float32 that its format's file decodes, and its products are added up in the order of
product.columns: so results are, to the bit, those of the same matrix decoded and packed as F32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..machine.codegen import LANES
from ..machine.kernel import helper
from ..machine.simd import absolute, as_f32, as_i32, fma, load_i32, mask, splat_f32, where_less
from ..machine.tiles import add_tile, code4, code8, fma_tile, tile_width
from .form import Products
from .product import PART, VECTOR, columns_many, fetch_ahead, kernels, store_all

CHAIN = 32  # columns that are summed before they meet the others; a group is a number of them
COLUMN = LANES // 8  # bytes of a column of a row block, for each bit of a code
CODES = {"4": code4, "8": code8}  # by their bits


# ---- rounding to the type of the scales


@helper
def as_it_is(v):
    return v


@helper
def exponent(v):
    """The power of two below each number, with its sign."""
    return as_f32(mask(as_i32(v), -0x800000))


@helper
def round_f16(v):
    """To the nearest IEEE half, ties to even, of numbers within LARGEST that are multiples of the smallest half.

    Beside 2^13 times its own power of two a float32 keeps ten bits behind the point, as a half has.
    """
    power = exponent(v)
    return fma(power, splat_f32(-8192.0), fma(power, splat_f32(8192.0), v))


@helper
def round_bf16(v):
    """To the nearest bfloat16, ties to even, of numbers within LARGEST that are multiples of the smallest bfloat16."""
    power = exponent(v)
    return fma(power, splat_f32(-65536.0), fma(power, splat_f32(65536.0), v))


@helper
def round_f16_small(v):
    """As round_f16, of any numbers within LARGEST: below 2^-14 halves lie as far apart as there."""
    power, least = absolute(exponent(v)), splat_f32(2.0**-14)
    step = where_less(power, least, least, power) * splat_f32(1.5 * 8192.0)
    return v + step - step


ROUND = {"F32": as_it_is, "F16": round_f16, "BF16": round_bf16}
ROUND_ALL = ROUND | {"F16": round_f16_small}  # not only multiples of the smallest
LARGEST = {"F32": np.inf, "F16": 65504.0, "BF16": 2.0**110}
SMALLEST = {"F32": 0.0, "F16": 0.0, "BF16": 2.0**-126}  # beside 0, of numbers that need not be such multiples


def rounds(sizes: NDArray[np.floating[Any]], least: float, most: float, scales: str) -> bool:
    """Whether ROUND_ALL rounds codes of these sizes (not 0) times these scales, which have no sign here, to the bit."""
    size = sizes.astype(np.float64)
    fit = ((size * least >= SMALLEST[scales]) | (size == 0)) & (size * most <= LARGEST[scales])
    return bool(fit.all())


# ---- products


@helper
def group_width(bits, header, size, K):
    """Columns of a group, of a row block that takes `size` bytes: `header` bytes a group, and its codes."""
    return K // ((size - COLUMN * bits * K) // header)


@helper
def values_one(shared, value, bits, header, w, size, x, K, zero):
    """A row block times a tile in float32.

    shared(w): what a group's columns share. value(words, i, shared): the weight that is code i of those in 32-bit
    words, one a row.
    """
    word = 4 * tile_width(zero)
    per_word = 32 // bits
    width = group_width(bits, header, size, K)
    acc = zero
    for _ in range(K // width):
        group = shared(w)
        fetch_ahead(w, header)
        w += header
        for _ in range(width // CHAIN):
            p = zero
            for _ in range(bits):
                fetch_ahead(w, VECTOR)
                words = load_i32(w)
                for i in range(per_word):
                    p = fma_tile(value(words, i, group), x + i * word, p)
                w += VECTOR
                x += per_word * word
            acc = add_tile(p, acc)
    return acc


@helper
def fill_group_values(shared, value, bits, header, w, size, k, width, K, panel):
    """Columns k..k + width of a row block, one behind the other."""
    per_word = 32 // bits
    every = group_width(bits, header, size, K)
    for c in range(k, k + width, CHAIN):
        at = w + c // every * (header + every * bits * COLUMN)
        group = shared(at)
        at += header + c % every * bits * COLUMN
        for _ in range(bits):
            words = load_i32(at)
            for i in range(per_word):
                store_all(panel + i * PART, value(words, i, group))
            at += VECTOR
            panel += per_word * PART


def grouped(form: str, name: str, shared: Any, value: Any, bits: int, header: int) -> Products:
    """The products of a format with groups, of float32 activations (values_one says what these are)."""

    @helper
    def one(w, size, x, K, zero):
        return values_one(shared, value, bits, header, w, size, x, K, zero)

    @helper
    def fill(w, size, k, width, K, panel):
        fill_group_values(shared, value, bits, header, w, size, k, width, K, panel)

    return kernels(form, f"f32_{name}", one, fill, columns_many)
