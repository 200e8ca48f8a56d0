"""The integer products of one token and of few where a vector of 32 lanes would take four of sixteen registers
(machine/eights.py): the arithmetic of integer.py, to the bit, 8 rows at a time.

Of one group, or of one block of 256 columns, the 8 rows' codes are decoded once for all tokens of a tile, and the next
rows' come after it, out of the first-level cache. What they share, and the outputs' sums, wait in memory meanwhile. A
block's groups are spelled out, for shifts by what is known cost half, and nothing is kept for another turn of a loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.codegen import LANES
from ..machine.eights import (
    PARTS,
    ROWS,
    add_high_values,
    add_low_values,
    add_products,
    floats8,
    load_f32_8,
    load_i32_8,
    pair_of_byte0,
    pair_of_byte1,
    pair_of_byte2,
    pair_of_byte3,
    sums_like,
    widen,
    widen_high,
)
from ..machine.kernel import Kernel, helper, specialise
from ..machine.paths import SET
from ..machine.simd import (
    even_bytes,
    mask,
    odd_bytes,
    prefetch_second,
    scratch,
    shift_right,
    splat_f32,
    splat_i32,
    store_f32,
    store_i32,
)
from ..machine.tiles import (
    TOGETHER,
    add_neighbours,
    add_tile,
    dot2_tile,
    fma_tile,
    load_part,
    load_tile,
    part_of,
    scale2_tile,
    scale_tile,
    spread_tile,
    start_tile,
    store_tile,
    tile_width,
    zero_tile,
)
from ..machine.work import AHEAD, fetch_ahead

FEW = SET.few_ints

VECTOR = 4 * LANES  # bytes
PART = VECTOR // PARTS
sums_memory, shared_memory = scratch(16 * VECTOR), scratch(28 * VECTOR)
FACTORS, MINIMA, ONES = 24 * VECTOR, 25 * VECTOR, 26 * VECTOR  # behind 16 groups' scales and 8 vectors of pairs
PARTS_F32 = 2  # of 32 rows in float32: sums of 4 tokens are 8 chains of additions, half of the registers
OUT = 1  # tokens of a tile
block: Any = None  # `kernels` puts a format's own in the place of these three
zeros: Any = None
finish: Any = None


@helper
def as_it_is(acc):
    return acc


def product_eights(first, last, w, size, x, x_size, y, stride, rows, K, tiles):
    """As product_few of product.py."""
    sums, shared = sums_memory(), shared_memory()
    store_i32(shared + ONES, splat_i32(0x00010001))
    width = tile_width(zeros())
    for r in range(first, last):
        for i in range(tiles):
            for v in range(width):
                store_f32(sums + v * VECTOR, splat_f32(np.float32(0)))
            block(w + r * size, size, x + i * x_size, K, shared, sums, zeros())
            for part in range(PARTS):
                to = y + i * OUT * stride + r * VECTOR + part * PART
                acc = finish(load_tile(sums + part * width * PART, zeros()))
                store_tile(to, stride, acc, rows - r * LANES - part * (LANES // PARTS))


def kernels(form: str, precision: str, block: Any, halves: int) -> tuple[Kernel, Kernel]:
    """The products of one token, in `halves` vectors of a tile, and of few.

    block(w, size, x, K, shared, sums, zeros): adds a row block times a tile to `sums`, where part by part of 8 rows has
    a vector for each of the tile's; shared: memory for what the rows of a part share.
    """
    finish = as_it_is if halves == 1 else add_neighbours
    own: dict[str, Any] = {"__name__": form, "block": block, "finish": finish}
    return (
        specialise(product_eights, f"{precision}_one", zeros=zero_tile(floats8, halves), **own),
        specialise(product_eights, f"{precision}_few", zeros=zero_tile(floats8, FEW), OUT=FEW // halves, **own),
    )


def few_f32(form: str, block: Any) -> Kernel:
    """The product of few tokens with float32 activations; the block's parts are PARTS_F32."""
    own: dict[str, Any] = {"PARTS": PARTS_F32, "PART": VECTOR // PARTS_F32, "OUT": SET.few, "finish": as_it_is}
    zeros = zero_tile(part_of(PARTS_F32), SET.few)
    return specialise(product_eights, "f32_few", __name__=form, block=block, zeros=zeros, **own)


# ---- float32


@helper
def _four_columns(codes, value, w, g, quad, x, p):
    c, word = codes(w, g, quad), 4 * tile_width(p)
    x += 4 * quad * word
    p = add_low_values(value(c, 0), x, p)
    p = add_low_values(value(c, 1), x + word, p)
    p = add_low_values(value(c, 2), x + 2 * word, p)
    return add_low_values(value(c, 3), x + 3 * word, p)


def _twice_columns(f: Any, quads: int) -> Any:
    @helper
    def both(codes, value, w, g, quad, x, p):
        p = f(codes, value, w, g, quad, x, p)
        return f(codes, value, w, g, quad + quads, x, p)

    return both


def coded(codes: Any, value: Any, scale: Any, rest: Any, quads: int) -> Any:
    """The block of product.py's codes_one for few tokens, one group's chains at a time."""
    own, parts, part_size = load_part(PARTS_F32), PARTS_F32, VECTOR // PARTS_F32
    add = _four_columns
    for doubled in range(quads.bit_length() - 1):
        add = _twice_columns(add, 1 << doubled)

    @helper
    def block(w, size, x, K, shared, sums, zeros):
        word = 4 * tile_width(zeros)
        of_groups = x + K * word
        group_size = size // (K // (4 * quads))
        for g in range(K // (4 * quads)):
            store_f32(shared + FACTORS, scale(w, g))
            if rest is not None:
                store_f32(shared + MINIMA, rest(w, g))
            for part in range(parts):
                fetch_ahead(w + g * group_size + part * (group_size // parts), group_size // parts)
                p = add(codes, value, w + part * part_size, g, 0, x + 4 * quads * g * word, zeros)
                at = sums + part * tile_width(zeros) * part_size
                acc = scale_tile(p, own(shared + FACTORS + part * part_size), load_tile(at, zeros))
                if rest is not None:
                    acc = fma_tile(own(shared + MINIMA + part * part_size), of_groups + word * g, acc)
                store_tile(at, part_size, acc, LANES // parts)

    return block


@helper
def _add_to(at, p):
    store_tile(at, VECTOR // PARTS_F32, add_tile(p, load_tile(at, p)), LANES // PARTS_F32)


def columns(column: Any) -> Any:
    """The block of product.py's columns_one for few tokens: the first half of the lanes, then the other."""

    @helper
    def block(w, size, x, K, shared, sums, zeros):
        word, step = 4 * tile_width(zeros), size // K
        for g in range(0, K, LANES):
            low, high = zeros, zeros
            for k in range(g, min(g + LANES, K)):
                fetch_ahead(w + step * k, step)
                low = add_low_values(column(w, k), x + word * k, low)
            _add_to(sums, low)
            for k in range(g, min(g + LANES, K)):
                high = add_high_values(column(w, k), x + word * k, high)
            _add_to(sums + tile_width(zeros) * VECTOR // PARTS_F32, high)

    return block


# ---- a group's integer products


def _twice(f: Any, quads: int) -> Any:
    @helper
    def both(codes, w, g, quad, x, factors, p, q):
        p, q = f(codes, w, g, quad, x, factors, p, q)
        return f(codes, w, g, quad + quads, x, factors, p, q)

    return both


@helper
def _whole(codes, w, g, quad, x, factors, p, q):
    """p and q with a quad's products; q is for the high nibbles of codes of 8 bits."""
    return add_products(codes(w, g, quad), x + 4 * tile_width(p) * quad, p), q


@helper
def _in_nibbles(codes, w, g, quad, x, factors, p, q):
    u, at = codes(w, g, quad), x + 4 * tile_width(p) * quad
    return add_products(mask(u, 0x0F0F0F0F), at, p), add_products(mask(shift_right(u, 4), 0x0F0F0F0F), at, q)


def group_products(quads: int, bits: int, planes: int) -> Any:
    """(codes, w, g, quad, x, factors, p, q) -> p + the products of a group's codes, of `bits` bits or of as many planes
    of these, with the bytes at x, times the pairs at `factors`. q comes back as it was.
    """
    together = min(quads, TOGETHER.get(bits, 1))
    add = _whole if planes == 1 else _in_nibbles
    for doubled in range(together.bit_length() - 1):
        add = _twice(add, 1 << doubled)

    @helper
    def widened(codes, w, g, quad, x, factors, p, q):
        low, high = add(codes, w, g, quad, x, factors, sums_like(p), sums_like(p))
        p = widen(low, factors, p)
        return p if planes == 1 else widen_high(high, factors, p), q

    whole = widened
    while together < quads:
        whole, together = _twice(whole, together), 2 * together
    return whole


@helper
def store_pairs(bytes_, power, at):
    """Four groups' bytes, times 2^power: two vectors for dot2."""
    store_i32(at, even_bytes(bytes_, power))
    store_i32(at + VECTOR, odd_bytes(bytes_, power))


# ---- blocks of 32


@helper
def fetch_lines(w, first, count):
    """Asks for so many cache lines AHEAD of w, from that one on. In the first-level cache a line on its way holds one
    of few places until memory has sent it.
    """
    for i in range(first, first + count):
        prefetch_second(w + AHEAD + i * 64)


@helper
def q8_0_eights(group, codes, offset, scale, minimum, meet, lines, w, size, x, K, shared, sums, zeros):
    """integer.py's q8_0_one. lines: cache lines of a group."""
    word = 4 * tile_width(zeros)
    steps = x + K // 4 * word
    totals = steps + K // 32 * word
    group_size = size // (K // 32)
    for g in range(K // 32):
        store_f32(shared + FACTORS, scale(w, g))
        if minimum is not None:
            store_f32(shared + MINIMA, minimum(w, g))
        for part in range(PARTS):
            fetch_lines(w + g * group_size, part * lines // PARTS, -(-lines // PARTS))
            p = start_tile(totals + word * g, -offset, zeros)
            p, _ = group(codes, w + part * PART, g, 0, x + 8 * g * word, shared + ONES, p, p)
            at = sums + part * tile_width(zeros) * PART
            acc = scale2_tile(p, load_f32_8(shared + FACTORS + part * PART), steps + word * g, load_tile(at, zeros))
            if minimum is not None:
                own = load_f32_8(shared + MINIMA + part * PART)
                acc = meet(own, steps + word * g, totals + word * g, acc)
            store_tile(at, PART, acc, ROWS)


# ---- blocks of 256


@helper
def q8_k_eights(groups, codes, scales, minima, factor, min_factor, quads, power, w, size, x, K, shared, sums, zeros):
    """integer.py's q8_k_one. groups: the products of all groups of a block."""
    word = 4 * tile_width(zeros)
    steps = x + K // 4 * word
    sums16 = steps + K // 256 * word
    sums32 = sums16 + K // 32 * word
    pairs = shared + 16 * VECTOR
    for b in range(K // 256):
        for four in range(16 // quads):
            bytes_, at = scales(w, four), shared + 4 * four * VECTOR
            store_i32(at, pair_of_byte0(bytes_))
            store_i32(at + VECTOR, pair_of_byte1(bytes_))
            store_i32(at + 2 * VECTOR, pair_of_byte2(bytes_))
            store_i32(at + 3 * VECTOR, pair_of_byte3(bytes_))
            if minima is not None:
                store_pairs(minima(w, four), 0, pairs + 2 * four * VECTOR)
            elif power is not None:
                store_pairs(bytes_, power, pairs + 2 * four * VECTOR)
        store_f32(shared + FACTORS, factor(w))
        if minima is not None:
            store_f32(shared + MINIMA, min_factor(w))
        own = sums16 if quads == 4 else sums32
        for part in range(PARTS):
            total, least = sums_like(zeros), sums_like(zeros)
            total = groups(codes, w, part, 0, x, shared + part * PART, total)
            if minima is not None:
                for i in range(32 // quads):
                    least = dot2_tile(load_i32_8(pairs + i * VECTOR + part * PART), own + i * word, least)
            elif power is not None:
                for i in range(32 // quads):
                    total = dot2_tile(load_i32_8(pairs + i * VECTOR + part * PART), own + i * word, total)
            sum_ = scale_tile(total, load_f32_8(shared + FACTORS + part * PART), zeros)
            if minima is not None:
                sum_ = scale_tile(least, load_f32_8(shared + MINIMA + part * PART), sum_)
            at = sums + part * tile_width(zeros) * PART
            store_tile(at, PART, spread_tile(sum_, steps + word * b, load_tile(at, zeros)), ROWS)
        w, x, sums16, sums32 = w + size, x + 64 * word, sums16 + 8 * word, sums32 + 4 * word


def groups_of_256(quads: int, bits: int, size: int) -> Any:
    """(codes, w, part, g, x, factors, total) -> total + the products of a block's groups, of `size` bytes, 8 rows."""
    group, lines = group_products(quads, *((4, 2) if bits > 7 else (bits, 1))), size // 64

    @helper
    def groups(codes, w, part, g, x, factors, total):
        first = lines * g * quads // 64
        fetch_lines(w, part * lines // PARTS + first // PARTS, -(-lines * quads // 64 // PARTS))
        at = x + g * quads * 4 * tile_width(total)
        return group(codes, w + part * PART, g, 0, at, factors + g * VECTOR, total, total)[0]

    for doubled in range((64 // quads).bit_length() - 1):
        groups = _twice_groups(groups, 1 << doubled)
    return groups


def _twice_groups(f: Any, count: int) -> Any:
    @helper
    def both(codes, w, part, g, x, factors, total):
        total = f(codes, w, part, g, x, factors, total)
        return f(codes, w, part, g + count, x, factors, total)

    return both
