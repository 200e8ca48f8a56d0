"""Products in parts of the rows, where registers are few: a vector of 32 lanes is eight of NEON's 32.

Sums of two tokens, weights on their way from codes to numbers and what a group shares are together more than that. Of a
half or a quarter of the rows they fit. So columns, which lie in the first-level cache then, pass once for each part,
and sums that meet them later wait in memory; each output's additions are those of product.py, grouped.py and
integer.py, in their order.
"""

from __future__ import annotations

from typing import Any

from ..machine.codegen import LANES
from ..machine.kernel import helper
from ..machine.neon import hidden_memory, join, store_part, take_part, words_part, zeros_part
from ..machine.paths import SET
from ..machine.tiles import fma_tile, load_tile, put_tile, scale_tile, tile_width
from ..machine.work import fetch_ahead

quarters = tuple((take_part(i, 4), words_part(i, 4), store_part(i, 4)) for i in range(4))
halves = take_part(0, 2), take_part(1, 2)
zeros_half, zeros_quarter = zeros_part(2), zeros_part(4)
join_halves, join_quarters = join(2), join(4)
memory = hidden_memory(SET.few * 4 * LANES)  # for a tile, part by part


@helper
def begin(at, part, parts):
    """Sums of 0 in memory, of all parts."""
    for i in range(parts):
        put_tile(at + i * tile_width(part) * (4 * LANES // parts), part)


@helper
def both_halves(at, half):
    return join_halves(load_tile(at, half), load_tile(at + tile_width(half) * 2 * LANES, half))


@helper
def all_quarters(at, part):
    size = tile_width(part) * LANES
    first, second = load_tile(at, part), load_tile(at + size, part)
    return join_quarters(first, second, load_tile(at + 2 * size, part), load_tile(at + 3 * size, part))


def _half(take: Any, fetches: bool) -> Any:
    @helper
    def half(codes, value, scale, rest, quads, w, g, step, x, sums, zero, at):
        word = 4 * tile_width(zero)
        p = zero
        for quad in range(quads):
            if fetches:
                fetch_ahead(w + (g * quads + quad) * step, step)
            c, xs = codes(w, g, quad), x + quad * 4 * word
            p = fma_tile(take(value(c, 0)), xs, p)
            p = fma_tile(take(value(c, 1)), xs + word, p)
            p = fma_tile(take(value(c, 2)), xs + 2 * word, p)
            p = fma_tile(take(value(c, 3)), xs + 3 * word, p)
        acc = scale_tile(p, take(scale(w, g)), load_tile(at, zero))
        if rest is not None:
            acc = fma_tile(take(rest(w, g)), sums, acc)
        put_tile(at, acc)

    return half


first_half, second_half = _half(halves[0], True), _half(halves[1], False)


@helper
def codes_by_halves(codes, value, scale, rest, quads, w, size, x, K, zero):
    """product.codes_one, a group's halves one after the other."""
    groups, word, half, at = K // (4 * quads), 4 * tile_width(zero), zeros_half(zero), memory()
    step, other = size // groups // quads, at + tile_width(zero) * 2 * LANES
    begin(at, half, 2)
    for g in range(groups):
        xs, sums = x + g * quads * 4 * word, x + word * (K + g)
        first_half(codes, value, scale, rest, quads, w, g, step, xs, sums, half, at)
        second_half(codes, value, scale, rest, quads, w, g, step, xs, sums, half, other)
    return both_halves(at, half)
