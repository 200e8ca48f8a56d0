"""Products of the formats whose groups are of any size: codes of 2 to 8 bits, and what a group shares in front of them.

A weight is decoded to the very float32 that its format's file decodes, and its products are added up in the order of
product.columns: so results are, to the bit, those of the same matrix decoded and packed as F32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..machine.codegen import LANES
from ..machine.kernel import helper
from ..machine.simd import (
    absolute,
    as_f32,
    as_i32,
    fma,
    load_i32,
    mask,
    shift_left,
    shift_right,
    splat_f32,
    where_less,
)
from ..machine.tiles import add_tile, fma_tile, tile_width, unsigned_code
from ..machine.work import fetch_ahead
from .form import Products
from .product import PART, VECTOR, columns_many, kernels, store_all

CHAIN = 32  # columns that are summed before they meet the others; a group is a number of them
COLUMN = LANES // 8  # bytes of a column of a row block, for each bit of a code
CODES = {str(bits): unsigned_code(bits) for bits in (2, 3, 4, 5, 6, 8)}


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
def abreast(bits):
    """How many codes a word holds whole: 16, 8 or 4."""
    return 16 if bits == 2 else 8 if bits <= 4 else 4


@helper
def words_at(w, number, bits):
    """32-bit words, one a row, that begin with code number * abreast(bits) of the CHAIN whose stream begins at w; what
    lies above as many codes is any."""
    first = number * abreast(bits) * bits
    low = load_i32(w + first // 32 * VECTOR)
    if 32 % bits == 0:
        return low
    high = load_i32(w + min(first // 32 + 1, bits - 1) * VECTOR)
    return shift_right(low, first % 32) | shift_left(shift_left(high, 1), 31 - first % 32)


@helper
def values_one(shared, value, bits, header, w, size, x, K, zero):
    """A row block times a tile in float32.

    shared(w): what a group's columns share. value(words, i, shared): the weight that is code i of those in words_at.
    """
    word = 4 * tile_width(zero)
    per_word = abreast(bits)
    width = group_width(bits, header, size, K)
    acc = zero
    for _ in range(K // width):
        group = shared(w)
        fetch_ahead(w, header)
        w += header
        for _ in range(width // CHAIN):
            p = zero
            for number in range(CHAIN // per_word):
                if number < bits:
                    fetch_ahead(w + number * VECTOR, VECTOR)
                words = words_at(w, number, bits)
                for i in range(per_word):
                    p = fma_tile(value(words, i, group), x + i * word, p)
                x += per_word * word
            w += bits * VECTOR
            acc = add_tile(p, acc)
    return acc


@helper
def fill_group_values(shared, value, bits, header, w, size, k, width, K, panel):
    """Columns k..k + width of a row block, one behind the other."""
    per_word = abreast(bits)
    every = group_width(bits, header, size, K)
    for c in range(k, k + width, CHAIN):
        at = w + c // every * (header + every * bits * COLUMN)
        group = shared(at)
        at += header + c % every * bits * COLUMN
        for number in range(CHAIN // per_word):
            words = words_at(at, number, bits)
            for i in range(per_word):
                store_all(panel + i * PART, value(words, i, group))
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
