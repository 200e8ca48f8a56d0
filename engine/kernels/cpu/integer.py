"""Products of quantised weights with activations from quantize.py: exact integer sums, then float32.

ggml's own arithmetic, up to the order of its float32 additions. Codes are unsigned, `offset` above what they stand
for, so an integer sum begins at -offset times the sum of the activations. A tile's parts lie as quantize.py says.
"""

from __future__ import annotations

from .product import fetch_ahead
from .simd import scale2_tile, scale_tile, spread_tile, start_tile
from .team import helper


@helper
def dot(codes, multiply, w, group, quads, x, tile, p):
    """p + a group's sum of code * x, in integers."""
    x += group * quads * 4 * tile
    for quad in range(quads):
        p = multiply(codes(w, group, quad), x + quad * 4 * tile, p)
    return p


@helper
def dot_pair(codes, multiply, w, group, quads, x, tile, p, q):
    """Those of two neighbouring groups."""
    x += group * quads * 4 * tile
    for quad in range(quads):
        p = multiply(codes(w, group, quad), x + quad * 4 * tile, p)
        q = multiply(codes(w, group + 1, quad), x + (quads + quad) * 4 * tile, q)
    return p, q


@helper
def codes_q8_0(codes, multiply, offset, scale, w, size, x, K, tile, zero):
    """A row block of weights in blocks of 32 times a tile in Q8_0."""
    steps = x + K * tile
    sums = steps + (K // 32 + K // 16) * tile * 4
    group_size = size // (K // 32)
    acc = zero
    for g in range(0, K // 32 - 1, 2):
        if tile == 1:
            fetch_ahead(w + g * group_size, 2 * group_size)
        at = g * tile * 4
        p, q = start_tile(sums + at, -offset, zero), start_tile(sums + at + tile * 4, -offset, zero)
        p, q = dot_pair(codes, multiply, w, g, 8, x, tile, p, q)
        acc = scale2_tile(p, scale(w, g), steps + at, acc)
        acc = scale2_tile(q, scale(w, g + 1), steps + at + tile * 4, acc)
    if K // 32 % 2:
        g = K // 32 - 1
        p = start_tile(sums + g * tile * 4, -offset, zero)
        p = dot(codes, multiply, w, g, 8, x, tile, p)
        acc = scale2_tile(p, scale(w, g), steps + g * tile * 4, acc)
    return acc


@helper
def codes_q8_k(codes, multiply, offset, scale, minimum, quads, w, size, x, K, tile, zero):
    """A row block of weights in blocks of 256 times a tile in Q8_K; the blocks' groups have 4 * quads columns."""
    steps = x + K * tile
    sums = steps + (K // 256 + (K // 16 if quads == 8 else 0)) * tile * 4
    groups = 64 // quads
    group_size = size // (K // 256 * groups)
    acc = zero
    for b in range(K // 256):
        part = zero
        for g in range(b * groups, (b + 1) * groups, 2):
            if tile == 1:
                fetch_ahead(w + g * group_size, 2 * group_size)
            at = sums + g * tile * 4
            p, q = start_tile(at, -offset, zero), start_tile(at + tile * 4, -offset, zero)
            p, q = dot_pair(codes, multiply, w, g, quads, x, tile, p, q)
            part = scale_tile(p, scale(w, g), part)
            part = scale_tile(q, scale(w, g + 1), part)
            if minimum is not None:
                part = scale_tile(start_tile(at, -1, zero), minimum(w, g), part)
                part = scale_tile(start_tile(at + tile * 4, -1, zero), minimum(w, g + 1), part)
        acc = spread_tile(part, steps + b * tile * 4, acc)
    return acc
