"""Attention's two products and its soft-max, and how keys and values lie in the cache.

Keys have 32 positions side by side, [K, S / 32, H, 32], so that a query's products with 32 keys need no sum across
lanes; values have 32 columns of all positions one after the other, [K, H / 32, S, 32]. Query heads that share a kv
head go HEADS at a time over the same keys and values. Sums over H are chains of 8, over positions chains of 32, then
the sum of the chains; a query's keys are always those from position 0 to its own, in that order.
"""

from __future__ import annotations

import numpy as np

from .elementary import exp
from .machine.codegen import LANES, floats
from .machine.kernel import Kernel, helper
from .machine.paths import SET
from .machine.simd import (
    first,
    float_of_bits,
    get_f32,
    get_i32,
    load_f32,
    load_f32_first,
    maximum,
    set_f32,
    splat_f32,
    store_f32_first,
    total,
    where_less,
)
from .machine.tiles import add_tile, divide_tile, first_tile, fma_rows_tile, store_tile, zero_tile
from .machine.work import fetch

SHARES = 16  # of the positions, for each kv head
AHEAD = 4096  # bytes of keys and values that are asked for before they are needed
HEADS = SET.heads  # that go together

one, many = zero_tile(floats, 1), zero_tile(floats, HEADS)


def _append(begin, end, k, k_stride, v, v_stride, positions, K, H, keys, keys_size, values, values_size):
    """New rows begin..end of [K, H] to their positions in a layer's cache; *_size: bytes of one head."""
    for t in range(begin, end):
        p = get_i32(positions + 4 * t)
        for head in range(K):
            key = keys + head * keys_size + (p // LANES * LANES * H + p % LANES) * 4
            for h in range(H):
                set_f32(key + h * LANES * 4, get_f32(k + t * k_stride + (head * H + h) * 4))
            value = values + head * values_size + p * LANES * 4
            step = values_size // ((H + LANES - 1) // LANES)
            for h in range(H):
                to = value + h // LANES * step + h % LANES * 4
                set_f32(to, get_f32(v + t * v_stride + (head * H + h) * 4))


@helper
def score_tile(q, H, keys, seen, root, zero):
    """A tile of query heads, H numbers each, times 32 keys, by sqrt(H); 0 from key `seen` on."""
    acc = zero
    if seen > 0:
        for g in range(0, H, 8):  # short chains: Transformers' sums err as little
            p = zero
            for h in range(g, min(g + 8, H)):
                fetch(keys + h * LANES * 4 + AHEAD, LANES * 4)
                p = fma_rows_tile(load_f32(keys + h * LANES * 4), q + 4 * h, 4 * H, p)
            acc = add_tile(p, acc)
        acc = first_tile(seen, divide_tile(root, acc))
    return acc


def _scores(begin, end, q, q_stride, keys, keys_size, positions, T, K, G, H, root_bits, out, S):
    """Items: (share, kv head), all T queries; a share has every SHARES-th block of 32 keys, so that shares are alike.
    out [N, T, S] beyond a query's position: 0, up to the last position.
    """
    length = get_i32(positions + 4 * (T - 1)) + 1
    root = splat_f32(float_of_bits(root_bits))
    for i in range(begin, end):
        head = i % K
        for s in range(i // K * LANES, length, SHARES * LANES):
            block = keys + head * keys_size + s * H * 4
            for t in range(T):
                seen = get_i32(positions + 4 * t) + 1 - s
                row, to = q + t * q_stride + head * G * H * 4, out + ((head * G * T + t) * S + s) * 4
                g = 0
                while G >= HEADS and g < G:
                    g = min(g, G - HEADS)  # the last tile may overlap the one before it, with equal results
                    a = score_tile(row + g * H * 4, H, block, seen, root, many())
                    store_tile(to + g * T * S * 4, T * S * 4, a, length - s)
                    g += HEADS
                while g < G:
                    b = score_tile(row + g * H * 4, H, block, seen, root, one())
                    store_tile(to + g * T * S * 4, T * S * 4, b, length - s)
                    g += 1


def _softmax(begin, end, x, positions, T, S, window, y):
    """Rows begin..end of [N T, S]: soft-max over the last `window` keys up to the query, 0 elsewhere, up to the last
    position."""
    low, zero = splat_f32(np.float32(-np.inf)), splat_f32(np.float32(0))
    length = get_i32(positions + 4 * (T - 1)) + 1
    for row in range(begin, end):
        at, to = x + row * S * 4, y + row * S * 4
        count = get_i32(positions + row % T * 4) + 1
        oldest = max(count - window, 0)
        start = oldest // LANES * LANES
        top = low
        for i in range(start, count, LANES):
            v = first(load_f32_first(at + 4 * i, count - i), count - i, low)
            v = first(low, oldest - i, v)
            top = where_less(top, v, v, top)
        top = splat_f32(maximum(top))
        sums = zero
        for i in range(0, start, LANES):
            store_f32_first(to + 4 * i, zero, length - i)
        for i in range(start, count, LANES):
            e = first(exp(load_f32_first(at + 4 * i, count - i) - top), count - i, zero)
            e = first(zero, oldest - i, e)
            store_f32_first(to + 4 * i, e, length - i)
            sums = sums + e
        divisor = splat_f32(total(sums))
        for i in range(start, count, LANES):
            p = first(load_f32_first(to + 4 * i, length - i) / divisor, count - i, zero)  # the divisor may be NaN
            store_f32_first(to + 4 * i, first(zero, oldest - i, p), length - i)
        for i in range((count + LANES - 1) // LANES * LANES, length, LANES):
            store_f32_first(to + 4 * i, zero, length - i)


@helper
def mix_tile(p, stride, values, count, zero):
    """Sum over `count` positions of a tile's probabilities, rows `stride` bytes apart, times 32 columns of values."""
    acc = zero
    for s in range(0, count, 32):
        part = zero
        for j in range(s, min(s + 32, count)):
            fetch(values + j * LANES * 4 + AHEAD, LANES * 4)
            part = fma_rows_tile(load_f32(values + j * LANES * 4), p + 4 * j, stride, part)
        acc = add_tile(part, acc)
    return acc


def _mix(begin, end, p, S, values, values_size, positions, T, K, G, H, out):
    """Items: (query, kv head, 32 columns). out [T, N, H]."""
    slices = (H + LANES - 1) // LANES
    for i in range(begin, end):
        t, head, h = i // slices // K, i // slices % K, i % slices * LANES
        count = get_i32(positions + 4 * t) + 1
        column = values + head * values_size + h // LANES * (values_size // slices)
        row, to = p + (head * G * T + t) * S * 4, out + ((t * K + head) * G * H + h) * 4
        g = 0
        while G >= HEADS and g < G:
            g = min(g, G - HEADS)
            a = mix_tile(row + g * T * S * 4, T * S * 4, column, count, many())
            store_tile(to + g * H * 4, 4 * H, a, H - h)
            g += HEADS
        while g < G:
            b = mix_tile(row + g * T * S * 4, T * S * 4, column, count, one())
            store_tile(to + g * H * 4, 4 * H, b, H - h)
            g += 1


KERNELS = append, scores, softmax, mix = Kernel(_append), Kernel(_scores), Kernel(_softmax), Kernel(_mix)
