"""INT_ACT/bits/scales, packed: whole numbers whose columns are of any group (quant/by_column.py), in their own places,
for a sum takes them in their order. Also INT in groups of no multiple of 32 columns.

In front of all rows lies the group of each column, 16 bits. A row block is its number, a word of each row; of each
group the scales of 32 rows and what goes with them, in float32, for each column asks for its own; then the codes, a
word of each row at a time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .....quant.codes import scales_of
from .....quant.tensor import QTensor, by_column, format_of
from ..machine.codegen import LANES
from ..machine.kernel import helper
from ..machine.simd import fma, get_i32, get_u16, load_f32
from ..machine.tiles import tile_width
from ..machine.work import fetch_ahead
from ..matmul.form import Columns, Form, Products
from ..matmul.grouped import (
    CHAIN,
    CODES,
    LARGEST,
    ROUND,
    add_chain,
    as_it_is,
    begin,
    end,
    fill_chain,
    memory,
)
from ..matmul.product import PART, VECTOR, columns_many, kernels

LINE = 64  # bytes: what stands in front is whole lines
GROUPS = 1 << 16  # at most


@helper
def value_f32(code, scale, zero):
    return (code - zero) * scale


@helper
def value_16(code, scale, offset):
    """The same with -zero * scale: of a scale of 16 bits no step rounds."""
    return fma(code, scale, offset)


VALUES = {"F32": value_f32, "F16": value_16, "BF16": value_16}


def fits(scale: NDArray[np.float32], zero: NDArray[Any], bits: int, scales: str) -> bool:
    """Whether the products give values of these scales and zero points to the bit."""
    levels = 1 << bits
    sizes = abs(scale.astype(np.float64)) * levels
    return bool(((zero >= 0) & (zero <= levels) & (sizes <= LARGEST[scales])).all())


@helper
def front_of(w, size, K):
    """Where the columns' groups lie, from any row block."""
    return w - get_i32(w) * size - (2 * K + LINE - 1) // LINE * LINE


@helper
def shared_at(w, front, k):
    """Where what the group of column k shares lies, in the row block at w."""
    return w + VECTOR + get_u16(front + 2 * k) * (2 * VECTOR)


@cache
def products(bits: str, scales: str) -> Products:
    code, rounded, number = CODES[bits], ROUND[scales], VALUES[scales]
    width = int(bits)

    @helper
    def value(words, i, k, row):
        w, front, first = row
        at = shared_at(w, front, first + k)
        return rounded(number(code(words, i), load_f32(at), load_f32(at + VECTOR)))

    @helper
    def one(w, size, x, K, zero):
        front, codes = front_of(w, size, K), w + size - K * width // 8 * LANES
        fetch_ahead(w, codes - w)
        acc = begin(memory(), zero)
        for g in range(0, K, CHAIN):
            at = x + g * 4 * tile_width(zero)
            acc = add_chain(value, as_it_is, width, codes, (w, front, g), at, zero, acc)
            codes += width * VECTOR
        return end(acc, zero)

    @helper
    def fill(w, size, k, count, K, panel):
        front, codes = front_of(w, size, K), w + size - K * width // 8 * LANES
        for g in range(k, k + count, CHAIN):
            at = panel + (g - k) * PART
            fill_chain(value, as_it_is, width, codes + g // CHAIN * width * VECTOR, (w, front, g), at)

    return kernels(__name__, f"f32_{bits}_{scales}", one, fill, columns_many)


def FORM(bits: str, scales: str) -> Form | None:
    if bits not in CODES:
        return None

    def columns(w: QTensor) -> Columns | None:
        (O, I), whole = w.shape, by_column(w)
        if whole:
            (scale_OG, zero_OG), codes_OB, group_I = whole.scales_and_zeros(), whole.stream(), whole.group_I
        else:
            f = format_of(w.format)
            b = w.data.view(f.struct).reshape(O, -1)
            scale_OG, zero_OG, codes_OB, group_I = (
                b["scale"],
                b["zero"],
                b["qs"].reshape(O, -1),
                np.arange(I) // f.block,
            )
        scale = scales_of(scale_OG, scales)
        if scale.shape[1] > GROUPS or not fits(scale, zero_OG, int(bits), scales):
            return None
        zero = zero_OG.astype(np.float32)
        other = zero if scales == "F32" else np.float32(0) - zero * scale
        block_O1 = (np.arange(O, dtype=np.int32) // LANES)[:, None]
        shared = np.stack((scale, other), -1).reshape(O, -1)
        rows = [np.ascontiguousarray(x).view(np.uint8) for x in (block_O1, shared, codes_OB[:, : I * int(bits) // 8])]
        front = np.zeros(-(-2 * I // LINE) * LINE, np.uint8)
        front[: 2 * I] = group_I.astype(np.uint16).view(np.uint8)
        return Columns(np.concatenate(rows, axis=1), front)

    f = replace(format_of(f"INT/{bits}/{CHAIN}/{scales}"), name=f"INT_ACT/{bits}/{scales}")
    return Form(f, half_at=-1, words_at=0, f32=products(bits, scales), columns=columns)
