"""y = x W^T: what the products of all weight formats share, and those of float32 activations.

Weight rows lie in vector lanes: 32 rows of a packed matrix are one row block, and an output's additions run along k
in one order, whatever the number of tokens, threads or lanes. A format says how one row block meets one tile of
tokens, `block(w, size, x, K, tile, zero) -> tile of outputs`; `kernels` makes of it the kernels for one token and for
many. Tokens go TILE at a time; a tile of x is one piece of memory that one of the layouts here or in quantize.py has
written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .simd import (
    LANES,
    PATH,
    add_tile,
    floats,
    fma_tile,
    get_f32,
    load_f32,
    prefetch,
    scale_tile,
    set_f32,
    store_f32,
    store_tile,
    total,
    zero_tile,
)
from .team import Kernel, helper, specialise

AHEAD = 4096  # bytes; about what memory delivers while one line is on its way
TILE = {"avx512": 4, "avx2": 2, "plain": 1}[PATH]

one, many = zero_tile(floats, 1), zero_tile(floats, TILE)
block: Any = None  # `kernels` puts a format's own in the place of these three
tile: Any = None
zero: Any = None


def product(first, last, w, size, x, x_size, y, stride, rows, K, tiles):
    """Row blocks first..last, `size` bytes each, times all tiles of x; y: rows `stride` bytes apart, `rows` outputs."""
    for r in range(first, last):
        for i in range(tiles):
            acc = block(w + r * size, size, x + i * x_size, K, tile, zero())
            store_tile(y + i * tile * stride + r * LANES * 4, stride, acc, rows - r * LANES)


def kernels(form: str, block: Callable[..., Any]) -> tuple[Kernel, Kernel]:
    """The product kernels of a format for one token and for many."""
    name = f"{block.__name__}_{{}}"
    return (
        specialise(product, name.format("one"), __name__=form, block=block, tile=1, zero=one),
        specialise(product, name.format("many"), __name__=form, block=block, tile=TILE, zero=many),
    )


# ---- float32 activations


def tile_size(K: int, tile: int) -> int:
    """Bytes of a tile of float32 activations: x [K, tile], then its sums over 32 columns [K / 32, tile]."""
    return (K + K // 32) * tile * 4


def _lay_out(first, last, x, stride, T, K, tile, out, out_size):
    """Tiles first..last of x, float32 [T, K] with rows `stride` bytes apart; tokens past T are zeros."""
    for i in range(first, last):
        for t in range(tile):
            row, to = x + (i * tile + t) * stride, out + i * out_size + 4 * t
            sums = to + K * tile * 4
            if i * tile + t >= T:
                for k in range(K + K // 32):
                    set_f32(to + 4 * tile * k, np.float32(0))
                continue
            if tile == 1:
                for k in range(0, K - LANES + 1, LANES):
                    store_f32(to + 4 * k, load_f32(row + 4 * k))
            for k in range(K // LANES * LANES if tile == 1 else 0, K):
                set_f32(to + 4 * tile * k, get_f32(row + 4 * k))
            for g in range(K // 32):
                set_f32(sums + 4 * tile * g, total(load_f32(row + 128 * g)))


lay_out = Kernel(_lay_out)


@helper
def fetch_ahead(w, count):
    """Asks for the weights AHEAD of these `count` bytes: prefetching by the machine alone gave a third of the speed."""
    for i in range(0, count, 64):
        prefetch(w + AHEAD + i)


@helper
def dot(codes, value, w, group, quads, x, tile, zero):
    """A group's sum of code * x."""
    p = zero
    x += group * quads * 16 * tile
    for quad in range(quads):
        c = codes(w, group, quad)
        for byte in range(4):
            p = fma_tile(value(c, byte), x + (quad * 4 + byte) * 4 * tile, p)
    return p


@helper
def dot_pair(codes, value, w, group, quads, x, tile, zero):
    """The sums of two neighbouring groups, each the chain that `dot` has."""
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
def codes_f32(codes, value, scale, rest, quads, w, size, x, K, tile, zero):
    """A row block of codes times a tile of float32.

    For each group of 4 * quads columns that shares a scale a chain of fused multiply-adds sums code * x, both exact;
    one more adds scale * that to the output. Where the format stores w = scale * u - minimum with u from 0, the code
    is u - 8 or u - 16 here, and `rest`, -minimum + 8 * scale, times the group's sum of x is one more multiply-add: with
    smaller terms the rounding error stays that of a plain dot product. Two groups at a time: their chains are
    independent, which hides the latency of the additions.

    codes(w, group, quad): four columns' codes, a byte each; value(codes, byte); scale(w, group); rest(w, group) or
    None.
    """
    groups = K // (4 * quads)
    group_size = size // groups
    sums = x + K * tile * 4
    acc = zero
    for g in range(0, groups - 1, 2):
        if tile == 1:
            fetch_ahead(w + g * group_size, 2 * group_size)
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
def floats_f32(column, w, size, x, K, tile, zero):
    """The same for weights that are floats, column(w, k): chains of 32 columns, then their sum."""
    acc = zero
    for g in range(0, K - 63, 64):
        if tile == 1:
            fetch_ahead(w + size // K * g, size // K * 64)
        p, q = zero, zero
        for k in range(g, g + 32):
            p = fma_tile(column(w, k), x + k * tile * 4, p)
            q = fma_tile(column(w, k + 32), x + (k + 32) * tile * 4, q)
        acc = add_tile(q, add_tile(p, acc))
    for g in range(K // 64 * 64, K, 32):
        p = zero
        for k in range(g, min(g + 32, K)):
            p = fma_tile(column(w, k), x + k * tile * 4, p)
        acc = add_tile(p, acc)
    return acc
