"""NEON: dot products of bytes (ARMv8.2 DotProd), and tiles in its 32 registers of 4 lanes.

A vector of 32 lanes is eight of these registers, and a tile of two tokens sixteen. So 4 lanes of the weights meet all
tokens before the next 4: left alone, LLVM loads all of a group's codes first, and spills most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .codegen import (
    LANES,
    Tile,
    call,
    constant,
    f32,
    floats,
    i8,
    i16,
    i32,
    i64,
    in_pieces,
    in_place,
    intp,
    ints,
    ints_of,
    joined,
    make_intrinsic,
    operation,
    part_of,
    pieces_of,
    quads_at,
    read_from,
    splat_of,
    vector_type,
    write_to,
)

FOUR, BYTES = vector_type(i32, 4), vector_type(i8, 16)


def sdot(b: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc + the sum of 4 products of signed bytes, in each of 4 lanes (ARMv8.2 DotProd)."""
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", FOUR, [acc, b.bitcast(x, BYTES), b.bitcast(y, BYTES)])


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
    """The byte of `book`, which has 16, at each of 16 indices; 0 at others."""
    return call(b, "llvm.aarch64.neon.tbl1.v16i8", BYTES, [book, indices])


def signed_value(b: Any, bytes_: Any, index: Any) -> Any:
    """Byte `index` of each lane, signed, as float32: at the top of the lane it is a number with 24 bits behind the
    point, which the conversion takes as such.
    """
    i, kind = b.trunc(index, i32), vector_type(f32, 4)
    from_lane = constant(i32, [(4 * lane << 24 | 0xFFFFFF) for lane in range(4)])
    places = b.bitcast(b.or_(from_lane, splat_of(b, b.shl(i, ir.Constant(i32, 24)), 4)), BYTES)
    first, last = (b.icmp_unsigned("==", i, ir.Constant(i32, n)) for n in (0, 3))

    def value(piece: Any) -> Any:
        found = b.bitcast(look_up(b, b.bitcast(piece, BYTES), places), FOUR)
        found = b.select(first, b.shl(piece, constant(i32, 24, 4)), found)
        found = b.select(last, b.and_(piece, constant(i32, -1 << 24, 4)), found)
        return call(b, "llvm.aarch64.neon.vcvtfxs2fp.v4f32.v4i32", kind, [found, ir.Constant(i32, 24)])

    return in_pieces(b, 4, value, bytes_)


def code_value(b: Any, codes: Any, index: Any, offset: int) -> Any:
    """Byte `index` of each lane, unsigned, less the offset, as float32: four columns' bytes become signed at once."""
    every = vector_type(i8, 4 * LANES)
    signed = b.sub(b.bitcast(codes, every), ir.Constant(every, [offset - 256 if offset > 127 else offset] * 4 * LANES))
    return signed_value(b, b.bitcast(signed, codes.type), index)


def table16_f32(b: Any, codes: Any, index: Any, values: Sequence[float]) -> Any:
    """What each lane's nibble `index` stands for: by a table of bytes, where values are such numbers; else by one of
    all 64 bytes of 16 floats, in four registers.
    """
    i = b.trunc(index, i32)
    if all(v == int(v) and -128 <= v <= 127 for v in values):
        book = ir.Constant(BYTES, [int(v) for v in values])
        up = splat_of(b, b.shl(b.and_(i, ir.Constant(i32, 1)), ir.Constant(i32, 2)))
        nibbles = b.and_(b.lshr(codes, up), constant(i32, 0x0F0F0F0F))
        found = in_pieces(b, 4, lambda p: b.bitcast(look_up(b, book, b.bitcast(p, BYTES)), FOUR), nibbles)
        return signed_value(b, found, b.lshr(index, ir.Constant(i64, 1)))
    words = np.array(values, np.float32).view(np.int8).reshape(4, 16)
    books = [ir.Constant(BYTES, w.tolist()) for w in words]
    nibble = b.and_(b.lshr(codes, splat_of(b, b.shl(i, ir.Constant(i32, 2)))), constant(i32, 15))
    places = b.add(b.mul(nibble, constant(i32, 0x04040404)), constant(i32, 0x03020100))

    def value(piece: Any) -> Any:
        found = call(b, "llvm.aarch64.neon.tbl4.v16i8", BYTES, [*books, b.bitcast(piece, BYTES)])
        return b.bitcast(found, vector_type(f32, 4))

    return in_pieces(b, 4, value, places)


def _here(b: Any, v: Any) -> Any:
    return in_place(b, v, "=w,0,~{memory}")


def _elements(b: Any, address: Any, element: ir.Type, count: int) -> list[Any]:
    """Each of `count` elements in 4 lanes: one register, for NEON's products take a lane as it lies there."""
    v = read_from(b, address, vector_type(element, count))
    u = ir.Constant(v.type, ir.Undefined)
    return [b.shuffle_vector(v, u, constant(i32, t, 4)) for t in range(count)]


def products(b: Any, write: Callable[..., Any], v: Any, x: Any, acc: Any, n: int, element: ir.Type) -> Any:
    """acc[t] + what `write` makes of v and the element of each of n tokens at x: 4 lanes of v meet all tokens before
    the next 4.
    """
    elements = _elements(b, x, element, n)
    parts = [pieces_of(b, b.extract_value(acc, t), 4) for t in range(n)]
    for i, piece in enumerate(pieces_of(b, v, 4)):
        for t in range(n):
            parts[t][i] = _here(b, write(b, piece, elements[t], parts[t][i]))
    for t in range(n):
        acc = b.insert_value(acc, joined(b, parts[t]), t)
    return acc


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


# ---- parts of 32 rows: of one a chain's sums, a word of codes and what a group shares fit the registers together


def take_part(part: int, parts: int) -> Any:
    """An intrinsic v -> that part of it. What only the others need is not computed."""
    lanes = LANES // parts

    def typed(v: Any) -> Any:
        made = part_of(parts) if v == floats else ints_of(part_of(parts))
        return made(v), lambda context, b, sig, args: pieces_of(b, args[0], lanes)[part]

    return make_intrinsic(typed, 1, typed)


def words_part(part: int, parts: int) -> tuple[Any, Any]:
    """Two intrinsics: a part of words and n -> the part shifted right by n bits, zeros coming in; the part -> words of
    which the others are anything. What a loop carries is the part, for LLVM carries all of a vector.
    """
    kind, lanes = ints_of(part_of(parts)), LANES // parts
    order = [lane - lanes * part if lane // lanes == part else lanes for lane in range(LANES)]

    def shift_part(b: Any, v: Any, n: Any) -> Any:
        return b.lshr(v, splat_of(b, b.trunc(n, i32), lanes))

    def words_of_part(b: Any, v: Any) -> Any:
        return b.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), constant(i32, order))

    return operation(kind, kind, intp)(shift_part), operation(ints, kind)(words_of_part)


def zeros_part(parts: int) -> Any:
    """An intrinsic (like) -> a tile of such parts, 0, as many as `like` has vectors."""

    def typed(like: Any) -> Any:
        made = Tile(part_of(parts), like.n)
        zero = constant(f32, 0.0, LANES // parts)
        return made(like), lambda context, b, sig, args: ir.Constant(made.llvm, [zero] * like.n)

    return make_intrinsic(typed, 1, typed)


def join(parts: int) -> Any:
    """An intrinsic (part, ...) -> the tile of 32 lanes whose parts these are."""

    def typed(*tiles: Any) -> Any:
        made = Tile(floats, tiles[0].n)

        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            whole = ir.Constant(made.llvm, ir.Undefined)
            for t in range(made.n):
                whole = b.insert_value(whole, joined(b, [b.extract_value(p, t) for p in args]), t)
            return whole

        return made(*tiles), codegen

    return make_intrinsic(typed, parts, typed)


def hidden_memory(size: int) -> Any:
    """An intrinsic without arguments: the address of so many bytes on the stack, of which LLVM does not know whose it
    is: what lies there stays in memory until it is loaded.
    """

    def memory(b: Any) -> Any:
        with b.goto_entry_block():
            at = b.alloca(i8, ir.Constant(i32, size))
            at.align = 64
        return b.asm(ir.FunctionType(i64, [i64]), "", "=r,0", [b.ptrtoint(at, i64)], True)

    return operation(intp)(memory)


def store_part(part: int, parts: int) -> Any:
    """An intrinsic (address, v): that part of v to its place in the vector at the address, 4 lanes after 4."""

    def write(b: Any, address: Any, v: Any) -> None:
        each = LANES // 4 // parts
        for i in range(part * each, (part + 1) * each):
            write_to(b, b.add(address, ir.Constant(i64, 16 * i)), _here(b, pieces_of(b, v, 4)[i]))

    return operation(types.void, intp, floats)(write)
