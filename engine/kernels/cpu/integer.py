"""Products of quantised weights with activations from quantize.py: exact integer sums, then float32.

ggml's own arithmetic, up to the order of its float32 additions. Codes are unsigned, `offset` above what they stand
for, so an integer sum begins at -offset times the sum of the activations. For one token and for many as product.py
says; a tile's parts lie as quantize.py says. `multiply` is dot4_tile, or dot4_wide_tile for codes over 128.
"""

from __future__ import annotations

from .product import PIECE, TILE, VECTOR, fetch_ahead, many
from .simd import fma_tile, load_f32, load_i32, scale2_tile, scale_tile, spread_tile, start_tile, store_f32, store_i32
from .team import helper


@helper
def dot_pair(codes, multiply, w, g, quads, x, p, q):
    """p and q, and the sums of code * x of the groups g and g + 1, for one token."""
    x += g * quads * 4
    for quad in range(quads):
        p = multiply(codes(w, g, quad), x + 4 * quad, p)
        q = multiply(codes(w, g + 1, quad), x + 4 * (quads + quad), q)
    return p, q


@helper
def q8_0_one(codes, multiply, offset, scale, w, size, x, K, zero):
    """A row block of weights in blocks of 32 times one token in Q8_0."""
    steps = x + K
    sums = steps + K // 32 * 4
    groups = K // 32
    group_size = size // groups
    acc = zero
    for g in range(0, groups - 1, 2):
        fetch_ahead(w + g * group_size, 2 * group_size)
        p, q = start_tile(sums + 4 * g, -offset, zero), start_tile(sums + 4 * g + 4, -offset, zero)
        p, q = dot_pair(codes, multiply, w, g, 8, x, p, q)
        acc = scale2_tile(p, scale(w, g), steps + 4 * g, acc)
        acc = scale2_tile(q, scale(w, g + 1), steps + 4 * g + 4, acc)
    if groups % 2:
        g = groups - 1
        p = start_tile(sums + 4 * g, -offset, zero)
        for quad in range(8):
            p = multiply(codes(w, g, quad), x + 32 * g + 4 * quad, p)
        acc = scale2_tile(p, scale(w, g), steps + 4 * g, acc)
    return acc


@helper
def q8_k_one(codes, multiply, offset, scale, minimum, quads, w, size, x, K, zero):
    """A row block of weights in blocks of 256, their groups of 4 * quads columns, times one token in Q8_K."""
    steps = x + K
    sums16 = steps + K // 256 * 4
    sums32 = sums16 + K // 16 * 4
    groups = 64 // quads
    group_size = size // (K // 256 * groups)
    acc = zero
    for b in range(K // 256):
        part = zero
        for g in range(b * groups, (b + 1) * groups, 2):
            fetch_ahead(w + g * group_size, 2 * group_size)
            p, q = start_tile(sums16 + 4 * g, -offset, zero), start_tile(sums16 + 4 * g + 4, -offset, zero)
            p, q = dot_pair(codes, multiply, w, g, quads, x, p, q)
            part = scale_tile(p, scale(w, g), part)
            if minimum is not None:
                part = fma_tile(minimum(w, g), sums32 + 4 * g, part)
            part = scale_tile(q, scale(w, g + 1), part)
            if minimum is not None:
                part = fma_tile(minimum(w, g + 1), sums32 + 4 * g + 4, part)
        acc = spread_tile(part, steps + 4 * b, acc)
    return acc


@helper
def fill_codes(codes, scale, minimum, quads, w, k, width, panel):
    """Columns k..k + width of a row block: codes, four columns to a vector, then each group's scale and minimum."""
    scales = panel + PIECE * VECTOR
    first = k // (4 * quads)
    for g in range(width // (4 * quads)):
        for quad in range(quads):
            store_i32(panel + (g * quads + quad) * VECTOR, codes(w, first + g, quad))
        store_f32(scales + 2 * g * VECTOR, scale(w, first + g))
        if minimum is not None:
            store_f32(scales + (2 * g + 1) * VECTOR, minimum(w, first + g))


@helper
def dot(multiply, panel, quads, x, p):
    """p and a group's sum of code * x, for a tile."""
    for quad in range(quads):
        p = multiply(load_i32(panel + quad * VECTOR), x + quad * TILE * 4, p)
    return p


@helper
def q8_0_many(multiply, offset, panel, x, k, width, K, acc):
    """acc and a panel of fill_codes times a tile in Q8_0."""
    scales = panel + PIECE * VECTOR
    steps = x + (K + k // 32 * 4) * TILE
    sums = steps + K // 32 * TILE * 4
    x += k * TILE
    for g in range(width // 32):
        p = start_tile(sums + g * TILE * 4, -offset, acc)
        p = dot(multiply, panel + g * 8 * VECTOR, 8, x + g * 32 * TILE, p)
        acc = scale2_tile(p, load_f32(scales + 2 * g * VECTOR), steps + g * TILE * 4, acc)
    return acc


@helper
def q8_k_many(multiply, offset, minimum, quads, panel, x, k, width, K, acc):
    """acc and a panel of one block times a tile in Q8_K."""
    scales = panel + PIECE * VECTOR
    steps = x + (K + k // 256 * 4) * TILE
    sums16 = x + (K + K // 256 * 4 + k // 16 * 4) * TILE
    sums32 = x + (K + K // 256 * 4 + K // 16 * 4 + k // 32 * 4) * TILE
    x += k * TILE
    part = many()
    for g in range(64 // quads):
        p = start_tile(sums16 + g * TILE * 4, -offset, acc)
        p = dot(multiply, panel + g * quads * VECTOR, quads, x + g * quads * 4 * TILE, p)
        part = scale_tile(p, load_f32(scales + 2 * g * VECTOR), part)
        if minimum is not None:
            part = fma_tile(load_f32(scales + (2 * g + 1) * VECTOR), sums32 + g * TILE * 4, part)
    return spread_tile(part, steps, acc)
