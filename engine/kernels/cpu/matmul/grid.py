"""Codes of the formats over grids: a number picks a row of the grid, the levels of 4 or 8 columns at once.

A column's code is four bits: twice the rank of its level, and 1 where the sign is turned over. A row is a word of 32
bits: four columns' codes, a byte each, the next four's in the upper halves of the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .....quant.format import Format
from ..machine.kernel import helper
from ..machine.simd import load_f16, load_i32, mask, shift_left, shift_right, splat_f32, splat_i32, to_f32
from ..machine.tiles import table16, table16_f32, table32

WORD = 128  # bytes of 32 rows' words


def ranks(f: Format, rows: int, columns: int, low: int, high: int, scales: range) -> NDArray[np.integer[Any]]:
    """The grid of a format, [rows, columns]: each level's rank among the levels.

    Read off its decoder, from blocks that begin with each row: the number's lower 8 bits are byte `low`, its upper ones
    at the bottom of byte `high`, and bytes of `scales` make a scale above 0.
    """
    number = np.arange(rows)
    blocks = np.zeros((rows, f.bytes), np.uint8)
    blocks[:, scales.start : scales.stop] = 0x10
    blocks[:, low] = number & 0xFF
    if rows > 256:
        blocks[:, high] = number >> 8
    return np.unique(f.decode(blocks)[:, :columns], return_inverse=True)[1].reshape(rows, columns)


def grid(f: Format, rows: int, columns: int, low: int, high: int = 0, scales: range = range(2)) -> Any:
    """An operation: numbers of rows become rows. Arguments as of `ranks`, which is asked when a kernel is compiled.

    The digest of the compiled kernels does not know the table; a type of ggml's keeps its grid.
    """

    def words() -> Sequence[int]:
        column = np.arange(columns)
        codes = 2 * ranks(f, rows, columns, low, high, scales)
        found: list[int] = (codes << column % 4 * 8 + column // 4 * 4).sum(axis=1).tolist()
        return found

    return table32(words)


def stands_for(values: Sequence[int], offset: int) -> tuple[Any, Any]:
    """Of the values of the codes, the operations (codes, byte) -> value in float32, and codes -> unsigned bytes, each
    its value and the offset.
    """
    values = [*values, *[0] * (16 - len(values))]
    of_nibble, above = table16_f32([float(v) for v in values]), table16([v + offset for v in values])

    @helper
    def value(codes, byte):
        return of_nibble(codes, 2 * byte)

    return value, above


def signed(levels: Sequence[int]) -> tuple[Any, Any]:
    """The same of levels in ascending order, with signs; bytes as integer.py wants them of codes of bits_of(levels)."""
    return stands_for([v for level in levels for v in (level, -level)], 1 << bits_of(levels) - 1)


def bits_of(levels: Sequence[int]) -> int:
    """Of a number for every level with its sign."""
    return max(levels).bit_length() + 1


# ---- fields of a row block


@helper
def field(w, i, bits):
    """Number i of so many bits, 1, 2, 4, 8 or 16, of those that lie behind one another from w on."""
    per = 32 // bits
    return mask(shift_right(load_i32(w + i // per * WORD), i % per * bits), (1 << bits) - 1)


@helper
def four_bytes(nibbles, four):
    """Nibbles 0 to 3 of words, or 4 to 7, as bytes."""
    v = mask(shift_right(nibbles, 16 * four), 0xFFFF)
    v = mask(v | shift_left(v, 8), 0x00FF00FF)
    return mask(v | shift_left(v, 4), 0x0F0F0F0F)


@helper
def odd(numbers):
    """2 s + 1 of every number s, in float32."""
    return to_f32(shift_left(numbers, 1) | splat_i32(1))


@helper
def odd_bytes(bytes_):
    """The same of every byte, as bytes."""
    return shift_left(bytes_, 1) | splat_i32(0x01010101)


@helper
def signs(w, quad):
    """Of the block's four columns from 4 * quad on: the signs, at the bottom of a byte each. `across` laid them so."""
    return mask(shift_right(load_i32(w + (quad >> 3) * WORD), quad & 7), 0x01010101)


@helper
def half_row(row, quad):
    """Of rows of 8 the codes of columns 0 to 3, or 4 to 7."""
    return mask(shift_right(row, 4 * (quad & 1)), 0x0F0F0F0F)


def nibble_scales(size: int, at: int, groups: int, times: float) -> tuple[Any, Any, Any]:
    """Of blocks of so many bytes that begin with d and have a nibble s for each of 8 or 16 groups from word `at` on:
    the operations (w, four) -> 2 s + 1 of four groups, a byte each, w -> d * times, and (w, group) -> their product.
    """
    shift, rest = groups.bit_length() - 1, groups - 1

    @helper
    def scales(w, four):
        return odd_bytes(four_bytes(load_i32(w + 64 + (at + (four >> 1)) * WORD), four & 1))

    @helper
    def factor(w):
        return splat_f32(times) * load_f16(w)

    @helper
    def scale(w, group):
        b = w + (group >> shift) * size
        return factor(b) * odd(field(b + 64 + at * WORD, group & rest, 4))

    return scales, factor, scale


# ---- as a block is packed


@helper
def across(bits):
    """Of words of 32 columns' bits the one of column 4 g + j at bit 8 j + g: one shift and one mask bring four columns'
    to their bytes.
    """
    new = bits ^ bits
    for j in range(4):
        for g in range(8):
            new = new | shift_left(mask(shift_right(bits, 4 * g + j), 1), 8 * j + g)
    return new


@helper
def signs_of_28(bits):
    """Of 28 bits, seven of each eight columns' signs, whose number is even: all, laid as `signs` wants them."""
    v = mask(bits, 0x7F) | mask(shift_left(bits, 1), 0x7F00) | mask(shift_left(bits, 2), 0x7F0000)
    v = v | mask(shift_left(bits, 3), 0x7F000000)
    p = v ^ shift_right(v, 4)
    p = p ^ shift_right(p, 2)
    return across(v | shift_left(mask(p ^ shift_right(p, 1), 0x01010101), 7))
