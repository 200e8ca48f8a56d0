"""integer.py's products of one token and few in halves of the rows, where registers are few (parts.py)."""

from __future__ import annotations

from typing import Any

from ..machine.codegen import LANES
from ..machine.kernel import helper
from ..machine.simd import even_bytes, odd_bytes, signed_byte
from ..machine.tiles import (
    dot2_tile,
    dot4_tile,
    load_tile,
    multiply_tile,
    put_tile,
    scale2_tile,
    scale_tile,
    spread_tile,
    start_tile,
    tile_width,
    zeros_like,
)
from ..machine.work import fetch_ahead
from .parts import begin, both_halves, halves, memory, zeros_half


def _of_32(take: Any, fetches: bool) -> Any:
    @helper
    def half(codes, offset, scale, minimum, meet, w, g, step, x, steps, sums, zero, at):
        word, p = 4 * tile_width(zero), start_tile(sums, -offset, zero)
        for quad in range(0, 8, 2):
            if fetches:
                fetch_ahead(w + (g * 8 + quad) * step, 2 * step)
            p = dot4_tile(take(codes(w, g, quad)), x + word * quad, p)
            p = dot4_tile(take(codes(w, g, quad + 1)), x + word * (quad + 1), p)
        acc = scale2_tile(p, take(scale(w, g)), steps, load_tile(at, zero))
        if minimum is not None:
            acc = meet(take(minimum(w, g)), steps, sums, acc)
        put_tile(at, acc)

    return half


def _of_256(take: Any, fetches: bool) -> Any:
    @helper
    def pairs(bytes_, power, sums, acc):
        acc = dot2_tile(take(even_bytes(bytes_, power)), sums, acc)
        return dot2_tile(take(odd_bytes(bytes_, power)), sums + 4 * tile_width(acc), acc)

    @helper
    def half(codes, scales, minima, factor, min_factor, quads, power, step, w, x, steps, own, zero, at):
        word = 4 * tile_width(zero)
        total, least = zeros_like(zero), zeros_like(zero)
        for four in range(16 // quads):
            for g in range(4 * four, 4 * four + 4):
                p = zeros_like(zero)
                for c in range(g * quads, (g + 1) * quads, 2):
                    if fetches:
                        fetch_ahead(w + c * step, 2 * step)
                    p = dot4_tile(take(codes(w, g, c - g * quads)), x + word * c, p)
                    p = dot4_tile(take(codes(w, g, c - g * quads + 1)), x + word * (c + 1), p)
                total = multiply_tile(p, take(signed_byte(scales(w, four), g & 3)), total)
            if minima is None and power is not None:
                total = pairs(scales(w, four), power, own + 2 * four * word, total)
            if minima is not None:
                least = pairs(minima(w, four), 0, own + 2 * four * word, least)
        part = scale_tile(total, take(factor(w)), zero)
        if minima is not None:
            part = scale_tile(least, take(min_factor(w)), part)
        put_tile(at, spread_tile(part, steps, load_tile(at, zero)))

    return half


(first_of_32, second_of_32), (first_of_256, second_of_256) = (
    (make(halves[0], True), make(halves[1], False)) for make in (_of_32, _of_256)
)


@helper
def q8_0_by_halves(codes, multiply, offset, scale, minimum, meet, w, size, x, K, zero):
    """integer.q8_0_one, a group's halves one after the other."""
    word, groups, half, at = 4 * tile_width(zero), K // 32, zeros_half(zero), memory()
    steps, step, other = x + K // 4 * word, size // groups // 8, at + tile_width(zero) * 2 * LANES
    begin(at, half, 2)
    for g in range(groups):
        xs, own, sums = x + g * 8 * word, steps + word * g, steps + (groups + g) * word
        first_of_32(codes, offset, scale, minimum, meet, w, g, step, xs, own, sums, half, at)
        second_of_32(codes, offset, scale, minimum, meet, w, g, step, xs, own, sums, half, other)
    return both_halves(at, half)


@helper
def q8_k_by_halves(codes, multiply, scales, minima, factor, min_factor, quads, power, size, w, x, K, zero):
    """integer.q8_k_one, a block's halves one after the other."""
    word, half, at = 4 * tile_width(zero), zeros_half(zero), memory()
    steps, other = x + K // 4 * word, at + tile_width(zero) * 2 * LANES
    sums16 = steps + K // 256 * word
    own, of_block = (sums16, 8 * word) if quads == 4 else (sums16 + K // 32 * word, 4 * word)
    begin(at, half, 2)
    for b in range(K // 256):
        here, xs, step = w + b * size, x + 64 * word * b, steps + word * b
        first_of_256(codes, scales, minima, factor, min_factor, quads, power, size // 64, here, xs, step, own, half, at)
        second_of_256(
            codes, scales, minima, factor, min_factor, quads, power, size // 64, here, xs, step, own, half, other
        )
        own += of_block
    return both_halves(at, half)
