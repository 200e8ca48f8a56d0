"""y = x W^T: what the products of all weight formats share, and those of float32 activations.

Weight rows lie in vector lanes: 32 rows of a packed matrix are one row block, and an output's additions run along k
in one order, whatever the number of tokens, threads or lanes. For one token, and for few, FEW at a time, weights are
decoded on their way to the sums. For many, a piece of a row block is decoded once into a panel in the cache, and the
tokens pass over it, TILE at a time; sums wait in memory between pieces, and the same columns of ROWS row blocks come
one after the other, so that x comes from the second-level cache for all but the first. A tile of x is one piece of
memory, written by `lay_out` here or in quantize.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.codegen import LANES, floats
from ..machine.kernel import Kernel, helper, specialise
from ..machine.paths import SET
from ..machine.simd import get_f32, load_f32, load_f32_first, scratch, set_f32, store_f32, total
from ..machine.tiles import (
    add_neighbours,
    add_tile,
    fma_tile,
    load_part,
    load_tile,
    part_of,
    scale_tile,
    store_columns,
    store_parts,
    store_tile,
    tile_width,
    zero_tile,
)
from ..machine.work import fetch, fetch_ahead
from . import eights, parts
from .eights import as_it_is
from .form import Products

TILE, FEW, ABREAST, PARTS = SET.tile_f32, SET.few, SET.abreast, SET.parts
VECTOR = 4 * LANES  # bytes
PIECE = 256  # columns decoded at a time: a panel of them fits the first-level cache
ROWS = 4  # row blocks that a piece of x is in the cache for: the sums of more would take its place
SUMS = 48 * max(SET.tile_f32, SET.tile)  # that wait for one part of a row block, a vector's part each
TILES = SUMS // SET.tile_f32  # that pass over a panel before the next is decoded

PART, PANEL = VECTOR // PARTS, (PIECE + 64) * VECTOR // PARTS  # bytes: of a vector, and of a panel
one, many = zero_tile(floats, 1), zero_tile(part_of(PARTS), TILE)
load_own, store_all = load_part(PARTS), store_parts(PARTS, PANEL)
panel_memory, sums_memory = scratch(PARTS * PANEL), scratch(ROWS * SUMS * VECTOR)
OUT = TILE  # tokens of a tile
COLUMN, ASKS = 4 * TILE, False  # bytes of a column of a tile, and whether it is asked for before its turn
block: Any = None  # `kernels` puts a format's own in the place of these four
fill: Any = None
pass_over: Any = None
finish: Any = None


def product_few(first, last, w, size, x, x_size, y, stride, rows, K, tiles):
    """Row blocks first..last, `size` bytes each, times the tiles of x, `x_size` bytes each, of OUT tokens; y: `rows`
    outputs a token, `stride` bytes apart. Weights come from memory for the first tile, from the caches for the others.
    """
    for r in range(first, last):
        for i in range(tiles):
            acc = block(w + r * size, size, x + i * x_size, K, one())
            store_tile(y + i * OUT * stride + r * VECTOR, stride, finish(acc), rows - r * LANES)


def product_many(first, last, w, size, x, x_size, y, stride, rows, K, tiles):
    """The same where so many tokens come that decoding of its own pays. They pass over each part's panel by itself.

    ASKS: a tile's bytes are few, and lie far behind the last one's, so that the machine does not foresee them; and an
    output's lines come from afar before they are written, while the sums of the next tiles wait.
    """
    panel, sums = panel_memory(), sums_memory()
    for start in range(first, last, ROWS):
        for i in range(0, tiles, TILES):
            here = min(TILES, tiles - i)
            for k in range(0, K, PIECE):
                width = min(PIECE, K - k)
                for r in range(start, min(start + ROWS, last)):
                    fill(w + r * size, size, k, width, K, panel)
                    for part in range(PARTS):
                        for j in range(here):
                            at = sums + (((r - start) * PARTS + part) * TILES + j) * TILE * PART
                            if ASKS and r == start:
                                fetch(x + (i + j + 1) * x_size + k * COLUMN, width * COLUMN)
                            if ASKS and k + PIECE >= K:
                                for t in range((i + j + 2) * OUT, (i + j + 3) * OUT):
                                    fetch(y + t * stride + r * VECTOR + part * PART, PART)
                            acc = many()
                            if k:
                                acc = load_tile(at, acc)
                            acc = pass_over(panel + part * PANEL, x + (i + j) * x_size, k, width, K, acc)
                            if k + PIECE < K:
                                store_tile(at, PART, acc, LANES)
                            else:
                                to = y + (i + j) * OUT * stride + r * VECTOR + part * PART
                                store_tile(to, stride, finish(acc), rows - r * LANES - part * (LANES // PARTS))


def kernels(
    form: str,
    name: str,
    block: Any,
    fill: Any,
    pass_over: Any,
    tile: int = TILE,
    parts: int = PARTS,
    halves: int = 1,
    few: int = FEW,
) -> Products:
    """The product kernels of a format, for one token, for few and for many.

    block(w, size, x, K, zero): a row block times a tile as wide as `zero`. fill(w, size, k, width, K, panel): its
    columns k to k + width, decoded. pass_over(panel, x, k, width, K, acc): acc and those columns times a tile, of
    `tile` vectors of 32 / parts lanes. halves: vectors of a tile that make one token, their sum. few: vectors of a tile
    where there are few tokens.
    """
    finish = as_it_is if halves == 1 else add_neighbours
    of_one, of_few = zero_tile(floats, halves), zero_tile(floats, few)
    own: dict[str, Any] = {"__name__": form, "block": block, "finish": finish}
    of_many = {"many": zero_tile(part_of(parts), tile), "TILE": tile, "PARTS": parts, "PART": VECTOR // parts}
    of_many |= {"TILES": SUMS // tile, "COLUMN": tile, "ASKS": SET.asks} if name != "f32" else {}
    return (
        specialise(product_few, f"{name}_one", one=of_one, OUT=1, **own),
        specialise(product_few, f"{name}_few", one=of_few, OUT=few // halves, **own),
        specialise(
            product_many,
            f"{name}_many",
            fill=fill,
            pass_over=pass_over,
            OUT=tile // halves,
            **of_many,
            **own,
        ),
    )


# ---- float32 activations


turn, TURNS = store_columns(TILE), TILE > 2  # two tokens' lines are soon full
SUMMED = 32  # columns of a group, whose sum a minimum meets; for groups of 16 `lay_out_16` puts its own here


def tile_size(K: int, tile: int, summed: int) -> int:
    """Bytes of a tile of float32 activations: x [K, tile], then its sums over `summed` columns [K / summed, tile]."""
    return (K + K // summed) * tile * 4


@helper
def turn_tile(x, stride, K, to, summed):
    """A tile whose tokens are all there: what _lay_out writes, 8 columns of all tokens at a time."""
    for k in range(0, K, PIECE):
        end = min(k + PIECE, K)
        for c in range(k, end - 7, 8):
            turn(x + 4 * c, stride, to + 4 * TILE * c)
        for t in range(TILE):
            row = x + t * stride
            for c in range(end // 8 * 8, end):
                set_f32(to + 4 * (TILE * c + t), get_f32(row + 4 * c))
            for g in range(k // summed, end // summed):
                set_f32(to + 4 * (TILE * (K + g) + t), total(load_f32_first(row + 4 * summed * g, summed)))


def _lay_out(first, last, x, stride, T, K, tile, out, out_size):
    """Tiles first..last of x, float32 [T, K] with rows `stride` bytes apart; tokens past T are zeros."""
    for i in range(first, last):
        if TURNS and tile == TILE and (i + 1) * tile <= T:
            turn_tile(x + i * tile * stride, stride, K, out + i * out_size, SUMMED)
            continue
        for t in range(tile):
            row, to = x + (i * tile + t) * stride, out + i * out_size + 4 * t
            sums = to + K * tile * 4
            if i * tile + t >= T:
                for k in range(K + K // SUMMED):
                    set_f32(to + 4 * tile * k, np.float32(0))
                continue
            if tile == 1:
                for k in range(0, K - LANES + 1, LANES):
                    store_f32(to + 4 * k, load_f32(row + 4 * k))
            for k in range(K // LANES * LANES if tile == 1 else 0, K):
                set_f32(to + 4 * tile * k, get_f32(row + 4 * k))
            for g in range(K // SUMMED):
                set_f32(sums + 4 * tile * g, total(load_f32_first(row + 4 * SUMMED * g, SUMMED)))


lay_out = Kernel(_lay_out)
lay_out_16 = specialise(_lay_out, "lay_out_16", __name__=__name__, SUMMED=16)


@helper
def codes_one(codes, value, scale, rest, quads, w, size, x, K, zero):
    """A row block of codes times a tile in float32.

    For each group of 4 * quads columns that shares a scale a chain of fused multiply-adds sums code * x, both exact;
    one more adds scale * that to the output. Where the format stores w = scale * u - minimum with u from 0, the code
    is u - 2, u - 8 or u - 16 here, and `rest`, -minimum + 8 * scale (2, 16), times the group's sum of x is one more
    multiply-add: with smaller terms the rounding error stays that of a plain dot product. Two groups at a time, where
    registers allow: their chains are independent, which hides the latency of the additions.

    codes(w, group, quad): four columns' codes, a byte each; value(codes, byte); scale(w, group); rest(w, group) or
    None.
    """
    groups = K // (4 * quads)
    paired = groups // 2 * 2
    group_size = size // groups
    step = 2 * group_size // quads
    word = 4 * tile_width(zero)
    sums = x + word * K
    acc = zero
    for g in range(0, paired, 2):
        p, q = zero, zero
        at = x + g * quads * 4 * word
        for quad in range(quads):
            fetch_ahead(w + g * group_size + quad * step, step)
            c, d = codes(w, g, quad), codes(w, g + 1, quad)
            for byte in range(4):
                p = fma_tile(value(c, byte), at + (quad * 4 + byte) * word, p)
                q = fma_tile(value(d, byte), at + ((quads + quad) * 4 + byte) * word, q)
        acc = scale_tile(p, scale(w, g), acc)
        if rest is not None:
            acc = fma_tile(rest(w, g), sums + word * g, acc)
        acc = scale_tile(q, scale(w, g + 1), acc)
        if rest is not None:
            acc = fma_tile(rest(w, g + 1), sums + word * (g + 1), acc)
    for g in range(paired, groups):
        p = zero
        for quad in range(quads):
            fetch_ahead(w + g * group_size + quad * (step // 2), step // 2)
            c = codes(w, g, quad)
            for byte in range(4):
                p = fma_tile(value(c, byte), x + ((g * quads + quad) * 4 + byte) * word, p)
        acc = scale_tile(p, scale(w, g), acc)
        if rest is not None:
            acc = fma_tile(rest(w, g), sums + word * g, acc)
    return acc


codes_kernel = codes_one if ABREAST else parts.codes_by_halves


@helper
def fill_values(codes, value, scale, rest, quads, w, k, width, panel):
    """Columns k..k + width of a row block: the codes' values, column by column, then each group's scale and rest."""
    scales = panel + PIECE * PART
    first = k // (4 * quads)
    for g in range(width // (4 * quads)):
        for quad in range(quads):
            c = codes(w, first + g, quad)
            for byte in range(4):
                store_all(panel + ((g * quads + quad) * 4 + byte) * PART, value(c, byte))
        store_all(scales + 2 * g * PART, scale(w, first + g))
        if rest is not None:
            store_all(scales + (2 * g + 1) * PART, rest(w, first + g))


@helper
def values_many(rest, quads, panel, x, k, width, K, acc):
    """acc and a panel of fill_values times a tile of float32: the chains that codes_one has."""
    scales = panel + PIECE * PART
    sums = x + (K + k // (4 * quads)) * TILE * 4
    x += k * TILE * 4
    for g in range(width // (4 * quads)):
        p = many()
        for c in range(g * 4 * quads, (g + 1) * 4 * quads):
            p = fma_tile(load_own(panel + c * PART), x + c * TILE * 4, p)
        acc = scale_tile(p, load_own(scales + 2 * g * PART), acc)
        if rest is not None:
            acc = fma_tile(load_own(scales + (2 * g + 1) * PART), sums + g * TILE * 4, acc)
    return acc


def coded(form: str, codes: Any, value: Any, scale: Any, rest: Any, quads: int) -> Products:
    """The products of a format of codes with float32 activations (codes_one says what these are)."""

    @helper
    def one(w, size, x, K, zero):
        return codes_kernel(codes, value, scale, rest, quads, w, size, x, K, zero)

    @helper
    def fill(w, size, k, width, K, panel):
        fill_values(codes, value, scale, rest, quads, w, k, width, panel)

    @helper
    def many(panel, x, k, width, K, acc):
        return values_many(rest, quads, panel, x, k, width, K, acc)

    made = kernels(form, "f32", one, fill, many)
    if not SET.eights:
        return made
    return made[0], eights.few_f32(form, eights.coded(codes, value, scale, rest, quads)), made[2]


@helper
def columns_one(column, w, size, x, K, zero):
    """The same for weights that are floats, column(w, k): chains of 32 columns, then their sum."""
    word = 4 * tile_width(zero)
    acc = zero
    paired = K // 64 * 64 if ABREAST else 0
    for g in range(0, paired, 64):
        p, q = zero, zero
        for k in range(g, g + 32):
            fetch_ahead(w + size // K * (2 * k - g), size // K * 2)
            p = fma_tile(column(w, k), x + word * k, p)
            q = fma_tile(column(w, k + 32), x + word * (k + 32), q)
        acc = add_tile(q, add_tile(p, acc))
    for g in range(paired, K, 32):
        p = zero
        for k in range(g, min(g + 32, K)):
            fetch_ahead(w + size // K * k, size // K)
            p = fma_tile(column(w, k), x + word * k, p)
        acc = add_tile(p, acc)
    return acc


@helper
def fill_columns(column, w, k, width, panel):
    for c in range(width):
        store_all(panel + c * PART, column(w, k + c))


@helper
def columns_many(panel, x, k, width, K, acc):
    x += k * TILE * 4
    for g in range(0, width, 32):
        p = many()
        for c in range(g, min(g + 32, width)):
            p = fma_tile(load_own(panel + c * PART), x + c * TILE * 4, p)
        acc = add_tile(p, acc)
    return acc


def columns(form: str, column: Any) -> Products:
    """The products of a format of floats, column(w, k), with float32 activations."""

    @helper
    def one(w, size, x, K, zero):
        return columns_one(column, w, size, x, K, zero)

    @helper
    def fill(w, size, k, width, K, panel):
        fill_columns(column, w, k, width, panel)

    made = kernels(form, "f32", one, fill, columns_many)
    return (made[0], eights.few_f32(form, eights.columns(column)), made[2]) if SET.eights else made
