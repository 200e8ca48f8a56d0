"""y = x W^T in float32: the part that all weight formats share.

Weight rows lie in vector lanes: 32 rows of a packed matrix are one row block, and an output's additions run along k in one
order, whatever the number of tokens, threads or lanes. For each group of columns that shares a scale (16 or 32, the format's
own) a chain of fused multiply-adds sums code * x, both exact; one more adds scale * that to the output. Where the format
stores w = scale * u - minimum with u from 0, the code is u - 8 or u - 16 here, and the rest, -minimum + 8 * scale, times the
group's sum of x is one more multiply-add: with smaller terms the rounding error stays that of a plain dot product.

A format gives `codes(w, group, quad)` (four columns' codes, a byte each), `value(codes, byte)`, `scale(w, group)` and, or None,
`rest(w, group)`. Two groups are worked at a time: their chains are independent, which hides the latency of the additions.

Tokens go TILE at a time, x as `lay_out` leaves it: [tiles, K, tile], and its sums over 32 columns [tiles, K / 32, tile].
"""

from __future__ import annotations

import numpy as np

from .simd import (
    LANES,
    PATH,
    add_tile,
    floats,
    fma_tile,
    get_f32,
    load_f32,
    scale_tile,
    set_f32,
    store_f32,
    store_tile,
    total,
    zero_tile,
)
from .team import Kernel, helper

TILE = {"avx512": 4, "avx2": 2, "plain": 1}[PATH]

one, many = zero_tile(floats, 1), zero_tile(floats, TILE)


def _lay_out(first, last, x, stride, T, K, tile, out, sums):  # type: ignore[no-untyped-def]
    """Tiles first..last of x, float32 [T, K] with rows `stride` bytes apart; tokens past T are zeros; sums may be 0 (none)."""
    for i in range(first, last):
        for t in range(tile):
            row, to = x + (i * tile + t) * stride, out + (i * K * tile + t) * 4
            if i * tile + t >= T:
                for k in range(K):
                    set_f32(to + 4 * tile * k, np.float32(0))
            elif tile == 1:
                for k in range(0, K - LANES + 1, LANES):
                    store_f32(to + 4 * k, load_f32(row + 4 * k))
                for k in range(K // LANES * LANES, K):
                    set_f32(to + 4 * k, get_f32(row + 4 * k))
            else:
                for k in range(K):
                    set_f32(to + 4 * tile * k, get_f32(row + 4 * k))
            if sums:
                for g in range(K // 32):
                    s = np.float32(0) if i * tile + t >= T else total(load_f32(row + 128 * g))
                    set_f32(sums + ((i * (K // 32) + g) * tile + t) * 4, s)


lay_out = Kernel(_lay_out)


@helper
def dot(codes, value, w, group, quads, x, tile, p):  # type: ignore[no-untyped-def]
    """p + the group's sum of code * x."""
    x += group * quads * 16 * tile
    for quad in range(quads):
        c = codes(w, group, quad)
        for byte in range(4):
            p = fma_tile(value(c, byte), x + (quad * 4 + byte) * 4 * tile, p)
    return p


@helper
def dot_pair(codes, value, w, group, quads, x, tile, zero):  # type: ignore[no-untyped-def]
    """The sums of two neighbouring groups, each the same chain as `dot` has."""
    p, q = zero, zero
    x0 = x + group * quads * 16 * tile
    x1 = x0 + quads * 16 * tile
    for quad in range(quads):
        c, d = codes(w, group, quad), codes(w, group + 1, quad)
        for byte in range(4):
            at = (quad * 4 + byte) * 4 * tile
            p = fma_tile(value(c, byte), x0 + at, p)
            q = fma_tile(value(d, byte), x1 + at, q)
    return p, q


@helper
def product(codes, value, scale, rest, groups, quads, w, x, sums, tile, zero):  # type: ignore[no-untyped-def]
    """One row block times one tile of tokens."""
    acc = zero
    for g in range(0, groups - 1, 2):
        p, q = dot_pair(codes, value, w, g, quads, x, tile, zero)
        acc = scale_tile(p, scale(w, g), acc)
        acc = scale_tile(q, scale(w, g + 1), acc)
        if rest is not None:
            acc = fma_tile(rest(w, g), sums + g * 4 * tile, acc)
            acc = fma_tile(rest(w, g + 1), sums + (g + 1) * 4 * tile, acc)
    if groups % 2:
        g = groups - 1
        acc = scale_tile(dot(codes, value, w, g, quads, x, tile, zero), scale(w, g), acc)
        if rest is not None:
            acc = fma_tile(rest(w, g), sums + g * 4 * tile, acc)
    return acc


@helper
def block_rows(codes, value, scale, rest, quads, first, last, w, size, x, sums, y, stride, rows, K, tiles, tile, zero):  # type: ignore[no-untyped-def]
    """Row blocks first..last, `size` bytes each, times all tiles; y rows are `stride` bytes apart and hold `rows` outputs."""
    groups = K // (4 * quads)
    for r in range(first, last):
        for i in range(tiles):
            s = sums + i * (K // 32) * tile * 4
            acc = product(codes, value, scale, rest, groups, quads, w + r * size, x + i * K * tile * 4, s, tile, zero)
            store_tile(y + i * tile * stride + r * LANES * 4, stride, acc, rows - r * LANES)


@helper
def float_rows(values, first, last, w, size, x, y, stride, rows, K, tiles, tile, zero):  # type: ignore[no-untyped-def]
    """The same for weights that are floats: chains of 32 columns, then their sum. values(w, k) is a column."""
    for r in range(first, last):
        block = w + r * size
        for i in range(tiles):
            xt = x + i * K * tile * 4
            acc = zero
            for g in range(0, K - 63, 64):
                p, q = zero, zero
                for k in range(g, g + 32):
                    p = fma_tile(values(block, k), xt + k * tile * 4, p)
                    q = fma_tile(values(block, k + 32), xt + (k + 32) * tile * 4, q)
                acc = add_tile(q, add_tile(p, acc))
            for g in range(K // 64 * 64, K, 32):
                p = zero
                for k in range(g, min(g + 32, K)):
                    p = fma_tile(values(block, k), xt + k * tile * 4, p)
                acc = add_tile(p, acc)
            store_tile(y + i * tile * stride + r * LANES * 4, stride, acc, rows - r * LANES)
