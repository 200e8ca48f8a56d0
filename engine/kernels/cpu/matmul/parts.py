"""Chains in parts of the rows, where registers are few: a vector of 32 lanes is eight of NEON's 32.

Sums of two tokens, weights on their way from codes to floats and what a group shares are together more than that. Of a
half or a quarter of the rows they fit. So a group's columns, which lie in the first-level cache then, pass once for
each part; each output's additions are those of product.py and grouped.py, in their order.
"""

from __future__ import annotations

from typing import Any

from ..machine.codegen import LANES
from ..machine.kernel import helper
from ..machine.neon import add_part, fma_part, hidden, join, store_part, words_part, zeros_part
from ..machine.paths import SET
from ..machine.simd import scratch
from ..machine.tiles import put_tile, tile_width
from ..machine.work import fetch_ahead

VECTOR = 4 * LANES  # bytes
quarters = tuple((words_part(i, 4), fma_part(i, 4), add_part(i, 4), store_part(i, 4)) for i in range(4))
zeros_half, zeros_quarter, join_halves = zeros_part(2), zeros_part(4), join(2)
memory = scratch(SET.few * VECTOR)


@helper
def sums_in_memory(zero):
    """Where a tile of sums waits, 0 at first: parts of it are added to, one after the other."""
    at = hidden(memory())
    put_tile(at, zero)
    return at


def _half_chain(part: int) -> Any:
    fma, fetches = fma_part(part, 2), part == 0

    @helper
    def half(codes, value, quads, w, g, step, x, zero):
        word = 4 * tile_width(zero)
        p = zeros_half(zero)
        for quad in range(quads):
            if fetches:
                fetch_ahead(w + (g * quads + quad) * step, step)
            c, at = codes(w, g, quad), x + quad * 4 * word
            p = fma(value(c, 0), at, p)
            p = fma(value(c, 1), at + word, p)
            p = fma(value(c, 2), at + 2 * word, p)
            p = fma(value(c, 3), at + 3 * word, p)
        return p

    return half


first_half, second_half = _half_chain(0), _half_chain(1)


@helper
def codes_chain(codes, value, quads, w, g, step, x, zero):
    """product.whole_chain's sums."""
    p = first_half(codes, value, quads, w, g, step, x, zero)
    return join_halves(p, second_half(codes, value, quads, w, g, step, x, zero))
