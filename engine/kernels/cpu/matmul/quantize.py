"""Activations for integer products, a tile of tokens in one piece: as ggml makes them, to the bit, Q8_0 for weights in
blocks of 32, Q8_1 where these have minima, Q8_K for 256 (quant/q8_0.py, q8_1.py, q8_k.py); or with 16 bits, Q16_0 and
Q16_K (quant/q16.py), where a token is two, its codes' high bytes and its low ones:

Q8_0: x int8 [K / 4, tile, 4], steps float32 [K / 32, tile], sums of 32 x int32 [K / 32, tile]
Q8_1: as Q8_0, but the sums are ggml's: times the step before that became a half, and halves too (held as float32)
Q8_K: x, steps [K / 256, tile], less the sums of 16 x, int16 [K / 32, tile, 2], and of 32 x, [K / 64, tile, 2]. Of four
sums the first and third are a pair, the second and fourth another: dot2's order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.codegen import LANES
from ..machine.kernel import Kernel, helper, specialise
from ..machine.simd import (
    absolute,
    add_pairs,
    as_i32,
    get_f32,
    get_i32,
    half_rounded,
    load_f32,
    maximum,
    scratch,
    set_f32,
    set_i32,
    set_u16,
    shift_left,
    shift_right,
    splat_f32,
    splat_i32,
    store_i32,
    store_words_of_bytes,
    total_ints,
    where_less,
)


def tile_size(K: int, tile: int, block: int) -> int:
    """Bytes of a tile in Q8_0 or Q8_1 (block 32), or Q8_K (256)."""
    numbers = K // 32 + K // 32 if block == 32 else K // 256 + K // 32 + K // 64
    return (K + 4 * numbers) * tile


# Of a code of 16 bits: both bytes are signed. Not quant/q16.py's own: the kernels' cache knows this folder's sources.
LARGEST = 127 * 256 + 127

numbers_memory = scratch(256)

ROUND = np.float32(1.5 * 2**23)  # added, it leaves a number rounded to an integer, ties to even, in the low bits


@helper
def whole(x):
    """The integers nearest to |x| < 2^22, ties to even."""
    return as_i32(x + splat_f32(ROUND)) - splat_i32(0x4B400000)


@helper
def ratio(a, b):
    """a / b, and 0 where that is infinite (quant/fit.py)."""
    quotient = np.float32(a) / b
    return np.float32(0) if abs(quotient) == np.float32(np.inf) else quotient


BLOCK, HALVES = 32, 1  # `layout` puts a kind's own in the place of these three
write: Any = None


def _quantize(first, last, x, stride, T, K, tile, out, out_size):
    """Tiles first..last of x, float32 [T, K] with rows `stride` bytes apart; tokens past T are zeros. A token is HALVES
    of a tile's.
    """
    numbers = numbers_memory()
    for i in range(first, last):
        to = out + i * out_size
        steps = to + K * tile
        sums = steps + K // BLOCK * tile * 4
        for t in range(0, tile, HALVES):
            token = (i * tile + t) // HALVES
            for k in range(0, K, BLOCK):
                step = steps + (k // BLOCK * tile + t) * 4
                write(x + token * stride + 4 * k, token < T, step, numbers, to, sums, k, K, tile, t)


def layout(name: str, block: int, halves: int, write: Any) -> Kernel:
    """write(x, there, step, numbers, to, sums, k, K, tile, t): the block at x, columns from k on of the tile's token t;
    zeros if it is not there. numbers: memory to use.
    """
    return specialise(_quantize, name, __name__=__name__, BLOCK=block, HALVES=halves, write=write)


@helper
def store_32(n, to, sums, k, tile, t):
    """Codes of 32 columns from k on of the tile's token t, and their sum."""
    store_words_of_bytes(to + k * tile + 4 * t, 4 * tile, n)
    set_i32(sums + (k // 32 * tile + t) * 4, total_ints(n))


@helper
def write_q8_0(x, there, step, numbers, to, sums, k, K, tile, t):
    v = load_f32(x) if there else splat_f32(np.float32(0))
    extreme = maximum(absolute(v))
    set_f32(step, half_rounded(extreme / np.float32(127)))
    store_32(whole(v * splat_f32(ratio(127, extreme))), to, sums, k, tile, t)


@helper
def signed_half(x):
    size = half_rounded(abs(x))
    return -size if x < 0 else size


@helper
def write_q8_1(x, there, step, numbers, to, sums, k, K, tile, t):
    v = load_f32(x) if there else splat_f32(np.float32(0))
    extreme = maximum(absolute(v))
    d = extreme / np.float32(127)
    set_f32(step, half_rounded(d))
    n = whole(v * splat_f32(ratio(127, extreme)))
    store_words_of_bytes(to + k * tile + 4 * t, 4 * tile, n)
    set_f32(sums + (k // 32 * tile + t) * 4, signed_half(np.float32(total_ints(n)) * d))


@helper
def signed_extreme(x):
    """Of 256 numbers the first that is largest by size."""
    high = load_f32(x)
    low = high
    for k in range(LANES, 256, LANES):
        v = load_f32(x + 4 * k)
        high, low = where_less(high, v, v, high), where_less(v, low, v, low)
    most, least = maximum(high), -maximum(splat_f32(np.float32(0)) - low)
    if most > -least:
        return most
    if most < -least:
        return least
    for k in range(256):
        v = get_f32(x + 4 * k)
        if abs(v) == most:
            return v
    return most


@helper
def code8(x, inverse, there):
    """32 numbers' codes, 0 if they are not there."""
    if not there:
        return splat_i32(0)
    v, most = load_f32(x) * splat_f32(inverse), splat_f32(np.float32(127))
    return whole(where_less(most, v, most, v))


@helper
def set_negatives(numbers, count, pairs, i, tile, t):
    """Numbers i to i + count of a token's, negative: of four, 0 and 2 lie side by side, then 1 and 3."""
    for j in range(i, i + count):
        at = pairs + ((j // 4 * 2 + j % 2) * tile + t) * 4 + j % 4 // 2 * 2
        set_u16(at, np.uint16(-get_i32(numbers + 4 * (j - i))))


@helper
def store_128(a, b, c, d, numbers, to, sums, k, K, tile, t):
    """The same of 128 columns, and the sums of 16 and 32 of them."""
    at = to + k * tile + 4 * t
    store_words_of_bytes(at, 4 * tile, a)
    store_words_of_bytes(at + 32 * tile, 4 * tile, b)
    store_words_of_bytes(at + 64 * tile, 4 * tile, c)
    store_words_of_bytes(at + 96 * tile, 4 * tile, d)
    of_4 = add_pairs(add_pairs(a, b), add_pairs(c, d))
    of_8 = add_pairs(of_4, of_4)
    of_16 = add_pairs(of_8, of_8)
    store_i32(numbers, of_16)
    store_i32(numbers + 128, add_pairs(of_16, of_16))
    set_negatives(numbers, 8, sums, k // 16, tile, t)
    set_negatives(numbers + 128, 4, sums + K // 32 * tile * 4, k // 32, tile, t)


@helper
def write_q8_k(x, there, step, numbers, to, sums, k, K, tile, t):
    inverse = ratio(-127, signed_extreme(x) if there else np.float32(0))
    set_f32(step, ratio(1, inverse))
    for h in range(0, 256, 128):
        at = x + 4 * h
        a, b = code8(at, inverse, there), code8(at + 128, inverse, there)
        c, d = code8(at + 256, inverse, there), code8(at + 384, inverse, there)
        store_128(a, b, c, d, numbers, to, sums, k + h, K, tile, t)


@helper
def code16(x, inverse, there):
    """The same with 16 bits."""
    return whole(load_f32(x) * splat_f32(inverse)) if there else splat_i32(0)


@helper
def high(q):
    """The upper byte of a code, so that the lower one is signed too."""
    return shift_right(q + splat_i32(0x8080), 8) - splat_i32(0x80)


@helper
def low(q):
    return q - shift_left(high(q), 8)


@helper
def set_steps(at, step):
    """A token's two halves' steps."""
    set_f32(at, np.float32(256) * step)
    set_f32(at + 4, step)


@helper
def write_q16_0(x, there, step, numbers, to, sums, k, K, tile, t):
    """As Q8_0 lays out two tokens: the high halves, then the low ones."""
    size = maximum(absolute(load_f32(x))) if there else np.float32(0)
    set_steps(step, size / np.float32(LARGEST))
    q = code16(x, ratio(LARGEST, size), there)
    store_32(high(q), to, sums, k, tile, t)
    store_32(low(q), to, sums, k, tile, t + 1)


@helper
def write_q16_k(x, there, step, numbers, to, sums, k, K, tile, t):
    """As Q8_K lays out two tokens."""
    size = abs(signed_extreme(x)) if there else np.float32(0)
    set_steps(step, size / np.float32(LARGEST))
    inverse = ratio(LARGEST, size)
    for h in range(0, 256, 128):
        at = x + 4 * h
        a, b = code16(at, inverse, there), code16(at + 128, inverse, there)
        c, d = code16(at + 256, inverse, there), code16(at + 384, inverse, there)
        store_128(high(a), high(b), high(c), high(d), numbers, to, sums, k + h, K, tile, t)
        store_128(low(a), low(b), low(c), low(d), numbers, to, sums, k + h, K, tile, t + 1)


Q8_0, Q8_1 = layout("q8_0", 32, 1, write_q8_0), layout("q8_1", 32, 1, write_q8_1)
Q8_K = layout("q8_k", 256, 1, write_q8_k)
Q16_0, Q16_K = layout("q16_0", 32, 2, write_q16_0), layout("q16_k", 256, 2, write_q16_k)
