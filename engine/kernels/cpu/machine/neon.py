"""NEON: dot products of bytes (ARMv8.2 DotProd), and tiles in its 32 registers of 4 lanes.

A vector of 32 lanes is eight of these registers, and a tile of two tokens sixteen. So 4 lanes of the weights meet all
tokens before the next 4: left alone, LLVM loads all of a group's codes first, and spills most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from .codegen import (
    LANES,
    call,
    constant,
    f32,
    i8,
    i16,
    i32,
    i64,
    in_place,
    joined,
    make_intrinsic,
    pieces_of,
    quads_at,
    read_from,
    splat_of,
    vector_type,
)

FOUR = vector_type(i32, 4)


def sdot(b: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc + the sum of 4 products of signed bytes, in each of 4 lanes (ARMv8.2 DotProd)."""
    kind = vector_type(i8, 16)
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", FOUR, [acc, b.bitcast(x, kind), b.bitcast(y, kind)])


def unsigned_sdot(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """The same for unsigned u: as (u - 128) s + 64 s + 64 s, modulo 2^32 in any order."""
    acc = sdot(b, acc, b.xor(u, constant(i32, 0x80808080 - (1 << 32), 4)), s)
    for _ in range(2):
        acc = sdot(b, acc, constant(i32, 0x40404040, 4), s)
    return acc


def _smull(b: Any, x: Any, y: Any) -> Any:
    """4 products of signed 16-bit numbers."""
    return b.mul(b.sext(x, FOUR), b.sext(y, FOUR))


def dot2(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc + products of 8 pairs of 16-bit numbers, of which neighbours are added up."""
    words = vector_type(i16, 8)
    left, right = (_smull(b, *p) for p in zip(*(pieces_of(b, b.bitcast(v, words), 4) for v in (u, s)), strict=True))
    return b.add(acc, call(b, "llvm.aarch64.neon.addp.v4i32", FOUR, [left, right]))


def look_up(b: Any, book: Any, indices: Any) -> Any:
    """The byte of `book`, which has 16, at each of 16 indices."""
    return call(b, "llvm.aarch64.neon.tbl1.v16i8", vector_type(i8, 16), [book, indices])


def _here(b: Any, v: Any) -> Any:
    return in_place(b, v, "=w,0,~{memory}")


def _elements(b: Any, address: Any, element: ir.Type, count: int) -> list[Any]:
    """Each of `count` elements in 4 lanes: one register, for NEON's products take a lane as it lies there."""
    v = read_from(b, address, vector_type(element, count))
    u = ir.Constant(v.type, ir.Undefined)
    return [b.shuffle_vector(v, u, constant(i32, t, 4)) for t in range(count)]


def products(
    b: Any, write: Callable[..., Any], v: Any, x: Any, acc: Any, n: int, element: ir.Type, part: slice = slice(None)
) -> Any:
    """acc[t] + what `write` makes of v and the element of each of n tokens at x: 4 lanes of v meet all tokens before
    the next 4.

    part: which of acc's eighths meet v's first.
    """
    elements = _elements(b, x, element, n)
    parts = [pieces_of(b, b.extract_value(acc, t), 4) for t in range(n)]
    for i, piece in zip(range(LANES // 4)[part], pieces_of(b, v, 4), strict=False):
        for t in range(n):
            parts[t][i] = _here(b, write(b, piece, elements[t], parts[t][i]))
    for t in range(n):
        acc = b.insert_value(acc, joined(b, parts[t]), t)
    return acc


def _dot4(b: Any, piece: Any, x: Any, acc: Any) -> Any:
    return sdot(b, acc, piece, x)


def _half(part: slice) -> Any:
    """An intrinsic (u, x, acc) -> dot4_tile's sums, of the first 16 lanes of u with the first or the last of acc."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        v, x, acc = args
        return products(b, _dot4, v, x, acc, sig.args[2].n, i32, part)

    return make_intrinsic(_half, 3, lambda *types_: (types_[-1](*types_), codegen))


dot4_low_tile, dot4_high_tile = _half(slice(4)), _half(slice(4, 8))


def _group_sums(b: Any, codes: list[Any], tokens: list[Any], starts: list[Any]) -> Iterator[list[Any]]:
    """A group's products in registers of 4 lanes, from `starts`, a token each: all quads of 4 lanes at a time.

    Half of the registers hold what becomes of two tokens' sums. Their bytes of two quads are one register, whose lanes
    the dot product takes as they lie there. There are a multiple of four quads.
    """
    n = len(starts)
    bytes_at = (b.add(tokens[0], ir.Constant(i64, 16 * i)) for i in range(len(tokens) * n // 4))
    spread = [x for at in bytes_at for x in _elements(b, at, i32, 4)]
    for i in range(LANES // 4):
        sums = starts
        for q, at in enumerate(codes):
            own = read_from(b, b.add(at, ir.Constant(i64, 16 * i)), FOUR)
            sums = [sdot(b, sums[t], own, spread[q * n + t]) for t in range(n)]
        yield sums


def group(b: Any, codes: list[Any], tokens: list[Any], scale: Any, totals: list[Any], bits: int) -> list[Any]:
    """What tiles.py's group_tile writes: 4 lanes' sums times their scale before the next 4 lanes."""
    split = [pieces_of(b, total, 4) for total in totals]
    scales = pieces_of(b, scale, 4)
    for i, sums in enumerate(_group_sums(b, codes, tokens, [constant(i32, 0, 4)] * len(totals))):
        for t, own in enumerate(sums):
            split[t][i] = _here(b, b.add(split[t][i], b.mul(own, scales[i])))
    return [joined(b, total) for total in split]


def _scaled_group(quads: int) -> Any:
    """An intrinsic (panel, x, sums, factor, scales, steps, acc) -> acc[t] + (factor * sums[t] + a group's products) *
    (scales * steps[t]), scales the address of a vector: start_tile, group_tile and scale2_tile in one, for a tile of
    sums between them would take the registers of acc.
    """

    def typed(typingctx: Any, panel: Any, x: Any, sums: Any, factor: Any, scales: Any, steps: Any, acc: Any) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            panel, x, sums, factor, scales, steps, acc = args
            n, kind = sig.args[6].n, vector_type(f32, 4)
            times = splat_of(b, b.trunc(factor, i32), 4)
            starts = [b.mul(v, times) for v in _elements(b, sums, i32, n)]
            step = _elements(b, steps, f32, n)
            split = [pieces_of(b, b.extract_value(acc, t), 4) for t in range(n)]
            for i, found in enumerate(_group_sums(b, *quads_at(b, quads, n, panel, x), starts)):
                scale = read_from(b, b.add(scales, ir.Constant(i64, 16 * i)), kind)
                for t, own in enumerate(found):
                    added = [b.sitofp(own, kind), b.fmul(scale, step[t]), split[t][i]]
                    split[t][i] = _here(b, call(b, "llvm.fma.v4f32", kind, added))
            for t in range(n):
                acc = b.insert_value(acc, joined(b, split[t]), t)
            return acc

        return acc(panel, x, sums, factor, scales, steps, acc), codegen

    return intrinsic(typed)


scaled_group_tile = _scaled_group(8)
