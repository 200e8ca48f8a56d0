"""Products in AVX2's 16 registers of 8 lanes, of one token and of few: integer ones are of 8 rows at a time.

Codes come as vectors of 32 lanes, of which the first 8 are used: LLVM drops the others and what they would be made of.
Their products with bytes add up in 16 bits (tiles.py, TOGETHER, says how many are exact).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .codegen import (
    LANES,
    VI,
    Tile,
    Vector,
    constant,
    f32,
    fused,
    i8,
    i16,
    i32,
    i64,
    in_place,
    intp,
    ints,
    joined,
    make_intrinsic,
    operation,
    pieces_of,
    read_from,
    splat_of,
    vector_type,
)
from .tiles import WORDS, madd, maddubs, part_of

ROWS = 8
PARTS = LANES // ROWS
ints8, floats8 = Vector("ints8", i32, ROWS), part_of(PARTS)


def _sums_like(like: Any) -> Any:
    """A tile of sums, 0: 8 rows' of as many tokens as `like` has vectors."""
    made = Tile(ints8, like.n)
    return made(like), lambda context, b, sig, args: ir.Constant(made.llvm, [constant(i32, 0, ROWS)] * like.n)


sums_like = make_intrinsic(_sums_like, 1, _sums_like)


def _first8(b: Any, u: Any) -> Any:
    return pieces_of(b, u, ROWS)[0]


def _add_products(u: Any, x: Any, sums: Any) -> Any:
    """sums[t], two of 16 bits a lane, + products of u's first 8 lanes with the four bytes at x[t]."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        u, x, sums = args
        own = _first8(b, u)
        for t in range(sig.args[2].n):
            token = splat_of(b, read_from(b, b.add(x, ir.Constant(i64, 4 * t)), i32), ROWS)
            both = [b.bitcast(b.extract_value(sums, t), WORDS), maddubs(b, own, token)]
            added = in_place(b, b.bitcast(b.add(*both), ints8.llvm), "=x,0")
            sums = b.insert_value(sums, added, t)
        return sums

    return sums(u, x, sums), codegen


add_products = make_intrinsic(_add_products, 3, _add_products)


def _adding_values(name: str, part: int) -> Any:
    """An intrinsic (v, x, acc) -> acc[t] + x[t] times that part of the lanes of v, floats; register by register, in
    this order.
    """

    def write(v: Any, x: Any, acc: Any) -> Any:
        registers = acc.vector.llvm.count // ROWS

        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            v, x, acc = args
            own, n = pieces_of(b, v, ROWS)[part * registers :], sig.args[2].n
            tokens = [splat_of(b, read_from(b, b.add(x, ir.Constant(i64, 4 * t)), f32), ROWS) for t in range(n)]
            for t, token in enumerate(tokens):
                pieces = zip(own, pieces_of(b, b.extract_value(acc, t), ROWS), strict=False)
                added = [in_place(b, fused(b, piece, token, a), "=x,0") for piece, a in pieces]
                acc = b.insert_value(acc, joined(b, added), t)
            return acc

        return acc(v, x, acc), codegen

    write.__name__ = name
    return make_intrinsic(write, 3, write)


add_low_values, add_high_values = _adding_values("add_low_values", 0), _adding_values("add_high_values", 1)


def _widening(name: str, up: int) -> Any:
    """An intrinsic (sums, factors, totals) -> totals[t], of 32 bits, + 2^up times both sums[t] times the pair of 16-bit
    numbers in each of 8 lanes at `factors`.
    """

    def write(sums: Any, factors: Any, totals: Any) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            sums, factors, totals = args
            pairs = read_from(b, factors, ints8.llvm)
            for t in range(sig.args[2].n):
                both = b.shl(madd(b, b.extract_value(sums, t), pairs), constant(i32, up, ROWS))
                totals = b.insert_value(totals, b.add(b.extract_value(totals, t), both), t)
            return totals

        return totals(sums, factors, totals), codegen

    write.__name__ = name
    return make_intrinsic(write, 3, write)


widen, widen_high = _widening("widen", 0), _widening("widen_high", 4)


@operation(ints8, intp)
def load_i32_8(b: Any, address: Any) -> Any:
    return read_from(b, address, ints8.llvm)


@operation(floats8, intp)
def load_f32_8(b: Any, address: Any) -> Any:
    return read_from(b, address, floats8.llvm)


def _pair_of_byte(index: int) -> Any:
    def write(b: Any, v: Any) -> Any:
        zero = 4 * LANES  # the first byte of what follows v's
        order = [i for lane in range(LANES) for i in 2 * [zero, 4 * lane + index]]
        every = b.bitcast(v, vector_type(i8, 4 * LANES))
        above = b.shuffle_vector(every, ir.Constant(every.type, [0] * 4 * LANES), constant(i32, order))
        return b.bitcast(b.ashr(b.bitcast(above, vector_type(i16, 2 * LANES)), constant(i16, 8, 2 * LANES)), VI)

    write.__name__ = f"pair_of_byte{index}"
    return operation(ints, ints)(write)


# Operations: byte 0, 1, 2 or 3 of each lane, signed, as both of the lane's 16-bit numbers.
pair_of_byte0, pair_of_byte1, pair_of_byte2, pair_of_byte3 = (_pair_of_byte(i) for i in range(4))
