"""Products of quantised weights with activations from quantize.py: exact integer sums, then float32.

ggml's own arithmetic, up to the order of its float32 additions. Codes are unsigned, `offset` above what they stand
for, so an integer sum begins at -offset times the sum of the activations; where a format has minima, the sum meets
these instead. For one token and for many as product.py
says; a tile's parts lie as quantize.py says. `multiply` is dot4_tile, or dot4_wide_tile for codes over 128.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.codegen import floats
from ..machine.kernel import helper
from ..machine.neon import scaled_group_tile
from ..machine.paths import SET
from ..machine.simd import (
    even_bytes,
    load_f32,
    load_i32,
    mask,
    odd_bytes,
    shift_left,
    shift_right,
    signed_byte,
    splat_i32,
    store_f32,
    store_i32,
)
from ..machine.tiles import (
    dot2_tile,
    dot4_tile,
    dot4_wide_tile,
    fma_tile,
    group_scale,
    group_tile,
    multiply_tile,
    planes_of,
    scale2_tile,
    scale_tile,
    spread_tile,
    start_tile,
    tile_width,
    vectors_of,
    zero_tile,
    zeros_like,
)
from ..machine.work import fetch_ahead
from . import eights
from .eights import FEW, store_pairs
from .form import Integer, Products
from .integer_parts import q8_0_by_halves, q8_k_by_halves
from .product import ABREAST, PIECE, VECTOR, kernels

TILE = SET.tile
many = zero_tile(floats, TILE)
GROUPS = PIECE // 32  # of a panel, where blocks are of 32


@helper
def dot_group(codes, multiply, w, g, quads, x, p, here, step):
    """p and the sums of code * x of the group g, for a tile; each quad reads `step` of the bytes from `here` on."""
    word = 4 * tile_width(p)
    x += g * quads * word
    for quad in range(quads):
        fetch_ahead(here + quad * step, step)
        p = multiply(codes(w, g, quad), x + word * quad, p)
    return p


@helper
def dot_pair(codes, multiply, w, g, quads, x, p, q, here, step):
    """The same of the groups g and g + 1, whose chains are independent."""
    word = 4 * tile_width(p)
    x += g * quads * word
    for quad in range(quads):
        fetch_ahead(here + quad * step, step)
        p = multiply(codes(w, g, quad), x + word * quad, p)
        q = multiply(codes(w, g + 1, quad), x + word * (quads + quad), q)
    return p, q


@helper
def meet_stored(minimum, steps, sums, acc):
    """acc + a minimum times a block's activations, in Q8_1, which has the step times their sum as a half."""
    return fma_tile(minimum, sums, acc)


@helper
def meet_counted(minimum, steps, sums, acc):
    """The same in Q16_0, which has the exact sum."""
    return scale2_tile(start_tile(sums, 1, acc), minimum, steps, acc)


@helper
def q8_0_one(codes, multiply, offset, scale, minimum, meet, w, size, x, K, zero):
    """A row block of weights in blocks of 32 times one token in Q8_0 or Q8_1, or its two halves in Q16_0.

    minimum(w, group), or None; meet: meet_stored or meet_counted. With minima `offset` is 0.
    """
    word = 4 * tile_width(zero)
    steps = x + K // 4 * word
    sums = steps + K // 32 * word
    groups = K // 32
    paired = groups // 2 * 2
    group_size = size // groups
    acc = zero
    for g in range(0, paired, 2):
        p, q = start_tile(sums + word * g, -offset, zero), start_tile(sums + word * (g + 1), -offset, zero)
        p, q = dot_pair(codes, multiply, w, g, 8, x, p, q, w + g * group_size, group_size // 4)
        acc = scale2_tile(p, scale(w, g), steps + word * g, acc)
        if minimum is not None:
            acc = meet(minimum(w, g), steps + word * g, sums + word * g, acc)
        acc = scale2_tile(q, scale(w, g + 1), steps + word * (g + 1), acc)
        if minimum is not None:
            acc = meet(minimum(w, g + 1), steps + word * (g + 1), sums + word * (g + 1), acc)
    for g in range(paired, groups):
        p = start_tile(sums + word * g, -offset, zero)
        p = dot_group(codes, multiply, w, g, 8, x, p, w + g * group_size, group_size // 8)
        acc = scale2_tile(p, scale(w, g), steps + word * g, acc)
        if minimum is not None:
            acc = meet(minimum(w, g), steps + word * g, sums + word * g, acc)
    return acc


@helper
def dot_pairs(bytes_, power, sums, acc):
    """acc and four groups' bytes, times 2^power, times the sums of their activations."""
    acc = dot2_tile(even_bytes(bytes_, power), sums, acc)
    return dot2_tile(odd_bytes(bytes_, power), sums + 4 * tile_width(acc), acc)


@helper
def q8_k_one(codes, multiply, scales, minima, factor, min_factor, quads, power, size, w, x, K, zero):
    """A row block of weights in blocks of 256, their groups of 4 * quads columns, times one token in Q8_K, or its two
    halves in Q16_K.

    Integers to the end of a block, as in ggml: sums of groups times scales, less the minima's share or, without
    minima, the share of the 2^power that codes are above what they stand for (None: signed codes, which are not).
    scales(w, four) and minima(w, four) are bytes of four groups; factor(w) and min_factor(w) multiply them; size: bytes
    of a block.
    """
    word = 4 * tile_width(zero)
    steps = x + K // 4 * word
    sums16 = steps + K // 256 * word
    sums32 = sums16 + K // 32 * word
    fours = 16 // quads
    acc = zero
    for b in range(K // 256):
        total, least = zeros_like(zero), zeros_like(zero)
        for four in range(fours):
            bytes_ = scales(w, four)
            for i in range(0, 4, 2):
                g, here = 4 * four + i, w + (4 * four + i) * (size // fours // 4)
                p, q = zeros_like(zero), zeros_like(zero)
                p, q = dot_pair(codes, multiply, w, g, quads, x, p, q, here, size // 32)
                total = multiply_tile(p, signed_byte(bytes_, i), total)
                total = multiply_tile(q, signed_byte(bytes_, i + 1), total)
            own = sums16 if quads == 4 else sums32
            if minima is None and power is not None:
                total = dot_pairs(bytes_, power, own + 2 * four * word, total)
            if minima is not None:
                least = dot_pairs(minima(w, four), 0, own + 2 * four * word, least)
        part = scale_tile(total, factor(w), zero)
        if minima is not None:
            part = scale_tile(least, min_factor(w), part)
        acc = spread_tile(part, steps + word * b, acc)
        w, x, sums16, sums32 = w + size, x + 64 * word, sums16 + 8 * word, sums32 + 4 * word
    return acc


q8_0, q8_k = (q8_0_one, q8_k_one) if ABREAST else (q8_0_by_halves, q8_k_by_halves)


@helper
def store_code(code, vectors, at):
    """Four columns' codes to `at` as group_tile wants them (vectors_of)."""
    if vectors == 1:
        store_i32(at, code)
    else:
        store_i32(at, mask(code, 0x00FF00FF))
        store_i32(at + VECTOR, mask(shift_right(code, 8), 0x00FF00FF))


@helper
def store_planes(code, planes, vectors, at, step):
    """The same; of two planes low nibbles, and `step` bytes on the high ones."""
    if planes == 1:
        store_code(code, vectors, at)
    else:
        store_code(mask(code, 0x0F0F0F0F), vectors, at)
        store_code(mask(shift_right(code, 4), 0x0F0F0F0F), vectors, at + step)


@helper
def fill_codes(codes, planes, vectors, scale, minimum, w, k, width, panel):
    """Columns k..k + width of a row block in blocks of 32: codes, four columns to a vector, then the groups' scales and
    minima.

    planes: 1, or 2 where a group's low nibbles lie before its high ones.
    """
    first = k // 32
    for g in range(width // 32):
        for quad in range(8):
            at = panel + (g * planes * 8 + quad) * vectors * VECTOR
            store_planes(codes(w, first + g, quad), planes, vectors, at, 8 * vectors * VECTOR)
        store_f32(panel + (PIECE + g) * VECTOR, scale(w, first + g))
        if minimum is not None:
            store_f32(panel + (PIECE + GROUPS + g) * VECTOR, minimum(w, first + g))


@helper
def fill_block(codes, planes, vectors, scales, of_group, minima, factor, min_factor, quads, power, size, w, k, panel):
    """The block of 256 columns from k on: 64 vectors of codes (of each plane, a group's one after the other), the
    groups' scales as of_group makes them (for each plane), then pairs of bytes for dot2, two vectors for four groups,
    and the factors.
    """
    w += k // 256 * size
    groups = 64 // quads
    at = panel + 64 * planes * vectors * VECTOR
    pairs = at + groups * planes * VECTOR
    for four in range(groups // 4):
        bytes_ = scales(w, four)
        for i in range(4):
            first = (4 * four + i) * planes
            for quad in range(quads):
                code = codes(w, 4 * four + i, quad)
                to = panel + (first * quads + quad) * vectors * VECTOR
                store_planes(code, planes, vectors, to, quads * vectors * VECTOR)
            store_i32(at + first * VECTOR, of_group(signed_byte(bytes_, i)))
            if planes == 2:
                store_i32(at + (first + 1) * VECTOR, of_group(shift_left(signed_byte(bytes_, i), 4)))
        if minima is None and power is not None:
            store_pairs(bytes_, power, pairs + 2 * four * VECTOR)
        if minima is not None:
            store_pairs(minima(w, four), 0, pairs + 2 * four * VECTOR)
    factors = pairs + groups // 2 * VECTOR
    store_f32(factors, factor(w))
    if minima is not None:
        store_f32(factors + VECTOR, min_factor(w))


@helper
def q8_0_many(group, of_group, planes, vectors, offset, minimum, meet, panel, x, k, width, K, acc):
    """acc and a panel of fill_codes times a tile in Q8_0 or Q8_1. group: of 8 quads."""
    steps = x + (K + k // 32 * 4) * TILE
    sums = steps + K // 32 * TILE * 4
    x += k * TILE
    for g in range(width // 32):
        at, scale = panel + g * planes * 8 * vectors * VECTOR, PIECE + g
        own, step = sums + g * TILE * 4, steps + g * TILE * 4
        if ABREAST:
            p = start_tile(own, -offset, acc)
            for plane in range(planes):
                codes = at + plane * 8 * vectors * VECTOR
                p = group(codes, x + g * 32 * TILE, of_group(splat_i32(np.int32(1 << 4 * plane))), p)
            acc = scale2_tile(p, load_f32(panel + scale * VECTOR), step, acc)
        else:
            acc = scaled_group_tile(at, x + g * 32 * TILE, own, -offset, panel + scale * VECTOR, step, acc)
        if minimum is not None:
            least = load_f32(panel + (PIECE + GROUPS + g) * VECTOR)
            acc = meet(least, steps + g * TILE * 4, sums + g * TILE * 4, acc)
    return acc


@helper
def q8_k_many(group, planes, vectors, minima, quads, power, panel, x, k, K, acc):
    """acc and a panel of fill_block times a tile in Q8_K. group: of `quads` quads."""
    groups = 64 // quads
    scales = panel + 64 * planes * vectors * VECTOR
    pairs = scales + groups * planes * VECTOR
    factors = pairs + groups // 2 * VECTOR
    steps = x + (K + k // 256 * 4) * TILE
    sums16 = x + (K + K // 256 * 4 + k // 32 * 4) * TILE
    sums32 = x + (K + K // 256 * 4 + K // 32 * 4 + k // 64 * 4) * TILE
    x += k * TILE
    total = zeros_like(acc)
    for g in range(groups * planes):
        at = panel + g * quads * vectors * VECTOR
        total = group(at, x + g // planes * quads * 4 * TILE, load_i32(scales + g * VECTOR), total)
    own = sums16 if quads == 4 else sums32
    if minima is None and power is not None:
        for i in range(groups // 2):
            total = dot2_tile(load_i32(pairs + i * VECTOR), own + i * TILE * 4, total)
    part = scale_tile(total, load_f32(factors), many())
    if minima is not None:
        least = zeros_like(acc)
        for i in range(groups // 2):
            least = dot2_tile(load_i32(pairs + i * VECTOR), own + i * TILE * 4, least)
        part = scale_tile(least, load_f32(factors + VECTOR), part)
    return spread_tile(part, steps, acc)


def blocks_of_32(
    form: str, codes: Any, multiply: Any, offset: int, scale: Any, bits: int, planes: int = 1, minimum: Any = None
) -> Integer:
    """The products of a format in blocks of 32 with activations of 8 and of 16 bits. bits: of a code, or of each plane
    of one. minimum(w, group): where it has minima, and so meets Q8_1 instead of Q8_0.
    """
    group, of_group, vectors = group_tile(8, bits), group_scale(bits), vectors_of(bits)

    def products(precision: str, halves: int, meet: Any) -> Products:
        @helper
        def one(w, size, x, K, zero):
            return q8_0(codes, multiply, offset, scale, minimum, meet, w, size, x, K, zero)

        @helper
        def fill(w, size, k, width, K, panel):
            fill_codes(codes, planes, vectors, scale, minimum, w, k, width, panel)

        @helper
        def many(panel, x, k, width, K, acc):
            return q8_0_many(group, of_group, planes, vectors, offset, minimum, meet, panel, x, k, width, K, acc)

        made = kernels(form, precision, one, fill, many, TILE, 1, halves, FEW)
        if not SET.eights:
            return made
        lines = 1 + 2 * bits * planes + (minimum is not None)
        few = eights.group_products(8, bits, planes)

        @helper
        def block(w, size, x, K, shared, sums, zeros):
            eights.q8_0_eights(few, codes, offset, scale, minimum, meet, lines, w, size, x, K, shared, sums, zeros)

        return *eights.kernels(form, precision, block, halves), made[2]

    return Integer(int8=products("int8", 1, meet_stored), int16=products("int16", 2, meet_counted))


def blocks_of_256(
    form: str,
    codes: Any,
    scales: Any,
    minima: Any,
    factor: Any,
    min_factor: Any,
    quads: int,
    size: int,
    bits: int,
) -> Integer:
    """The same of a format in blocks of 256 (q8_k_one says what these are). bits: of a code; one of 8 bits is signed
    where dot products take it so, and two planes of nibbles where many tokens' sums would not fit 16 bits.
    """
    signed, planes = SET.signed and bits > 7, planes_of(bits)
    parts = bits // planes
    group, of_group, vectors = group_tile(quads, parts), group_scale(parts), vectors_of(parts)
    multiply = dot4_wide_tile if bits > 7 and not signed else dot4_tile
    block_size, power = size, None if signed else bits - 1

    @helper
    def one(w, size, x, K, zero):
        return q8_k(codes, multiply, scales, minima, factor, min_factor, quads, power, block_size, w, x, K, zero)

    @helper
    def fill(w, size, k, width, K, panel):
        fill_block(
            codes, planes, vectors, scales, of_group, minima, factor, min_factor, quads, power, block_size, w, k, panel
        )

    @helper
    def many(panel, x, k, width, K, acc):
        return q8_k_many(group, planes, vectors, minima, quads, power, panel, x, k, K, acc)

    def products(precision: str, halves: int) -> Products:
        made = kernels(form, precision, one, fill, many, TILE, 1, halves, FEW)
        if not SET.eights:
            return made
        groups = eights.groups_of_256(quads, bits, size)

        @helper
        def block(w, size, x, K, shared, sums, zeros):
            eights.q8_k_eights(
                groups,
                codes,
                scales,
                minima,
                factor,
                min_factor,
                quads,
                power,
                w,
                block_size,
                x,
                K,
                shared,
                sums,
                zeros,
            )

        return *eights.kernels(form, precision, block, halves), made[2]

    return Integer(int8=products("int8", 1), int16=products("int16", 2))
