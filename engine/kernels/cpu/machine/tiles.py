"""Tiles: n vectors side by side, one per token. A `*_tile` operation acts on all n, so one kernel text serves any n.

Codes of weights are four unsigned bytes a lane. Their values and dot products take the instructions of the path
(paths.py), with equal bits on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import neon
from .codegen import (
    LANES,
    VF,
    VI,
    ZERO,
    Tile,
    Vector,
    call,
    constant,
    f32,
    floats,
    fused,
    i1,
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
from .paths import PATH, SET
from .simd import lanes_before, write_first

# ---- codes: four unsigned bytes a lane


def _byte(b: Any, c: Any, index: Any) -> Any:
    return b.and_(b.lshr(c, splat_of(b, b.shl(b.trunc(index, i32), ir.Constant(i32, 3)))), constant(i32, 0xFF))


def _code_value(b: Any, c: Any, index: Any, bits: int, offset: int) -> Any:
    """Nothing to convert, and few shifts: or-ed into the float 2^(23 - k), of whose digits the one k bits up is worth
    1, a code that lies there makes it 2^(23 - k) + code, exactly.
    """
    if PATH == "neon":
        return neon.code_value(b, c, index, offset)
    i = b.trunc(index, i32)
    far = b.icmp_unsigned(">=", i, ir.Constant(i32, 3 if bits < 8 else 2))  # above the digits
    brought = b.select(far, b.lshr(c, constant(i32, 24 if bits < 8 else 16)), c)
    byte = b.select(far, ir.Constant(i32, 0), i) if bits < 8 else b.and_(i, ir.Constant(i32, 1))
    at = b.shl(byte, ir.Constant(i32, 3))
    code = b.and_(brought, splat_of(b, b.shl(ir.Constant(i32, 0xFF), at)))
    power = b.shl(b.sub(ir.Constant(i32, 127 + 23), at), ir.Constant(i32, 23))
    number = b.bitcast(b.or_(code, splat_of(b, power)), VF)
    return b.fsub(number, splat_of(b, b.fadd(b.bitcast(power, f32), ir.Constant(f32, float(offset)))))


def _looked_up(b: Any, at: Any, book: Sequence[float]) -> Any:
    """What stands in a book of 16 or 32 at each lane's lowest 4 or 5 bits, whatever bits lie above them."""
    low, *high = (constant(f32, list(book[s : s + 16])) for s in range(0, len(book), 16))
    name = "llvm.x86.avx512.vpermi2var.ps.512" if high else "llvm.x86.avx512.permvar.sf.512"
    return in_pieces(b, 16, lambda i: call(b, name, vector_type(f32, 16), [low, i, *high]), at)


def _values(bits: int, offset: int) -> list[float]:
    """Of codes of so many bits, at most 5, less the offset: a book for _looked_up."""
    return [float(i % (1 << bits) - offset) for i in range(max(16, 1 << bits))]


def _code(bits: int, offset: int) -> Callable[..., Any]:
    """(codes, byte index) -> value of that byte less the offset; a table look-up where the machine has one that
    large.
    """

    def write(b: Any, c: Any, index: Any) -> Any:
        if PATH != "avx512" or bits > 5:
            return _code_value(b, c, index, bits, offset)
        at = b.lshr(c, splat_of(b, b.shl(b.trunc(index, i32), ir.Constant(i32, 3))))
        return _looked_up(b, at, _values(bits, offset))

    write.__name__ = f"code{bits}_{offset}"
    return write


code2_1, code2_2, code3_4 = (operation(floats, ints, intp)(_code(*k)) for k in ((2, 1), (2, 2), (3, 4)))
code4_8, code5_16 = (operation(floats, ints, intp)(_code(*k)) for k in ((4, 8), (5, 16)))
code6_32, code8_128 = (operation(floats, ints, intp)(_code(*k)) for k in ((6, 32), (8, 128)))


def _nibble(b: Any, c: Any, index: Any) -> Any:
    """Nibble `index` of each lane, the lowest first, under others."""
    return b.lshr(c, splat_of(b, b.shl(b.trunc(index, i32), ir.Constant(i32, 2))))


def table16_f32(values: Sequence[float]) -> Any:
    """An operation (codes, index): nibble `index` of each lane, the lowest first, becomes the value it stands for."""

    def write(b: Any, c: Any, index: Any) -> Any:
        if PATH == "neon":
            return neon.table16_f32(b, c, index, values)
        at = _nibble(b, c, index)
        if PATH == "avx512":
            return _looked_up(b, at, values)
        left: list[Any] = [constant(f32, v) for v in values]
        first = 0
        if PATH in ("avx2", "avxvnni"):  # three of the four bits choose within a register
            books = [constant(f32, list(values[i : i + 8])) for i in (0, 8)]
            kind, name = vector_type(f32, 8), "llvm.x86.avx2.permps"
            left = [in_pieces(b, 8, lambda i, of=of: call(b, name, kind, [of, i]), at) for of in books]
            first = 3
        for bit in range(first, 4):
            unset = b.icmp_unsigned("==", b.and_(at, constant(i32, 1 << bit)), constant(i32, 0))
            left = [b.select(unset, low, high) for low, high in zip(left[::2], left[1::2], strict=True)]
        return left[0]

    write.__name__ = "table16_f32"
    return operation(floats, ints, intp)(write)


def float8(mantissa: int) -> Any:
    """An operation (codes, index): byte `index` of each lane, a finite 8-bit float of so many bits of mantissa;
    of 0 the sign is lost.
    """
    exponent = 7 - mantissa

    def write(b: Any, c: Any, index: Any) -> Any:
        left = b.sub(ir.Constant(i32, 24), b.shl(b.trunc(index, i32), ir.Constant(i32, 3)))
        placed = b.ashr(b.shl(c, splat_of(b, left)), constant(i32, mantissa + 1))
        code = b.and_(placed, constant(i32, -0x80000000 | 0x7F << 23 - mantissa))
        raised = b.add(code, constant(i32, 127 - ((1 << exponent - 1) - 1) << 23))
        number = b.bitcast(raised, VF)
        # Of exponent 0 that has a 1 before the point too much, and half of the size.
        over = b.fsub(number, b.bitcast(b.and_(raised, constant(i32, -0x800000)), VF))
        normal = b.icmp_unsigned("!=", b.and_(code, constant(i32, (1 << exponent) - 1 << 23)), constant(i32, 0))
        return b.select(normal, number, b.fadd(over, over))

    write.__name__ = f"float8_{mantissa}"
    return operation(floats, ints, intp)(write)


def unsigned_code(bits: int) -> Any:
    """An operation (words, index): the code of so many bits that is number `index` of each lane, the lowest first."""

    def write(b: Any, words: Any, index: Any) -> Any:
        at = b.lshr(words, splat_of(b, b.mul(b.trunc(index, i32), ir.Constant(i32, bits))))
        return _looked_up(b, at, _values(bits, 0)) if PATH == "avx512" and bits <= 5 else _low_bits(b, at, bits)

    write.__name__ = f"unsigned_code{bits}"
    return operation(floats, ints, intp)(write)


def _low_bits(b: Any, at: Any, bits: int) -> Any:
    return b.sitofp(b.and_(at, constant(i32, (1 << bits) - 1)), VF)


def table16(values: Sequence[int]) -> Any:
    """An operation: each byte of a vector of codes, 0 to 15, becomes the value that it stands for, 0 to 255."""
    bits = [v - 256 if v > 127 else v for v in values]  # as LLVM spells a byte

    def write(b: Any, codes: Any) -> Any:
        if PATH == "plain":  # four levels of choices, for LLVM to make what it can of them
            every = b.bitcast(codes, vector_type(i8, 4 * LANES))
            left = [ir.Constant(every.type, [v] * 4 * LANES) for v in bits]
            for bit in range(4):
                of = b.and_(every, ir.Constant(every.type, [1 << bit] * 4 * LANES))
                unset = b.icmp_unsigned("==", of, ir.Constant(every.type, [0] * 4 * LANES))
                left = [b.select(unset, low, high) for low, high in zip(left[::2], left[1::2], strict=True)]
            return b.bitcast(left[0], VI)
        lanes, name = (16, "llvm.x86.avx512.pshuf.b.512") if PATH == "avx512" else (8, "llvm.x86.avx2.pshuf.b")
        lanes = 4 if PATH == "neon" else lanes
        kind = vector_type(i8, 4 * lanes)

        def shuffle(piece: Any) -> Any:
            book, indices = ir.Constant(kind, bits * (lanes // 4)), b.bitcast(piece, kind)
            found = neon.look_up(b, book, indices) if PATH == "neon" else call(b, name, kind, [book, indices])
            return b.bitcast(found, vector_type(i32, lanes))

        return in_pieces(b, lanes, shuffle, codes)

    write.__name__ = "table16"
    return operation(ints, ints)(write)


def table32(words: Callable[[], Sequence[int]]) -> Any:
    """An operation: each lane, the number of a word of 32 bits, becomes that word. words: what makes them, asked when
    a kernel is compiled.
    """

    def write(b: Any, numbers: Any) -> Any:
        every = ir.Constant.literal_array([ir.Constant(i32, w) for w in words()])
        table = cgutils.global_constant(b, "table32", every)
        if PATH == "avx512":
            name, kind, base = (
                "llvm.x86.avx512.mask.gather.dpi.512",
                vector_type(i32, 16),
                b.bitcast(table, i8.as_pointer()),
            )
            rest = [constant(i1, 1, 16), ir.Constant(i32, 4)]
            return in_pieces(b, 16, lambda i: call(b, name, kind, [constant(i32, 0, 16), base, i, *rest]), numbers)
        first = splat_of(b, b.ptrtoint(table, i64))
        places = b.add(first, b.shl(b.zext(numbers, vector_type(i64)), constant(i64, 2)))
        pointers = b.inttoptr(places, ir.VectorType(i32.as_pointer(), LANES))
        rest = [ir.Constant(i32, 4), constant(i1, 1), ZERO[ints]]
        return call(b, f"llvm.masked.gather.v{LANES}i32.v{LANES}p0", VI, [pointers, *rest])

    write.__name__ = "table32"
    return operation(ints, ints)(write)


BYTES, WORDS = vector_type(i8, 32), vector_type(i16, 16)  # of a register of 256 bits


def maddubs(b: Any, u: Any, s: Any) -> Any:
    """Sums of 2 products of unsigned and signed bytes, 16 bits each, of 8 lanes. They must not overflow."""
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", WORDS, [b.bitcast(u, BYTES), b.bitcast(s, BYTES)])


def madd(b: Any, x: Any, y: Any) -> Any:
    """Sums of 2 products of signed 16-bit numbers, 32 bits each, of 8 lanes."""
    return call(b, "llvm.x86.avx2.pmadd.wd", vector_type(i32, 8), [b.bitcast(x, WORDS), b.bitcast(y, WORDS)])


def _halves(b: Any, u: Any) -> tuple[Any, Any]:
    """Bytes as sums of two, neither over 128: products of 2 of them and bytes from -127 fit 16 bits, 255's do not."""
    half = b.and_(b.lshr(u, constant(i32, 1, 8)), constant(i32, 0x7F7F7F7F, 8))
    return half, b.sub(u, half)


def _dot4(b: Any, acc: Any, u: Any, s: Any, wide: bool) -> Any:
    """acc + the sum of 4 products of unsigned and signed bytes, exactly, in each lane."""
    if SET.dots:
        name, _, lanes = SET.dots
        return in_pieces(b, lanes, lambda *a: call(b, name, vector_type(i32, lanes), list(a)), acc, u, s)
    if PATH == "avx2":
        ones = ir.Constant(WORDS, [1] * 16)

        def add(a: Any, x: Any, y: Any) -> Any:
            for part in _halves(b, x) if wide else (x,):
                a = b.add(a, madd(b, maddubs(b, part, y), ones))
            return a

        return in_pieces(b, 8, add, acc, u, s)
    if PATH == "neon":
        return in_pieces(b, 4, lambda *a: (neon.unsigned_sdot if wide else neon.sdot)(b, *a), acc, u, s)
    for i in range(4):
        byte = b.ashr(b.shl(s, constant(i32, 24 - 8 * i)), constant(i32, 24))
        acc = b.add(acc, b.mul(_byte(b, u, ir.Constant(i64, i)), byte))
    return acc


def _dot2(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc + the sum of 2 products of signed 16-bit numbers in each lane, modulo 2^32."""
    if SET.dots:
        _, name, lanes = SET.dots
        return in_pieces(b, lanes, lambda *a: call(b, name, vector_type(i32, lanes), list(a)), acc, u, s)
    if PATH == "avx2":
        return in_pieces(b, 8, lambda a, x, y: b.add(a, madd(b, x, y)), acc, u, s)
    if PATH == "neon":
        return in_pieces(b, 4, lambda *a: neon.dot2(b, *a), acc, u, s)
    sixteen = constant(i32, 16)
    high = b.mul(b.ashr(u, sixteen), b.ashr(s, sixteen))
    low = b.mul(b.ashr(b.shl(u, sixteen), sixteen), b.ashr(b.shl(s, sixteen), sixteen))
    return b.add(acc, b.add(low, high))


# ---- tiles


def _tile_operation(write: Callable[..., Any]) -> Any:
    """An intrinsic whose last argument is the tile `acc`; its IR is written once per token and gives acc's new
    vector.
    """
    count = write.__code__.co_argcount - 3

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        *rest, acc = args
        for t in range(sig.args[-1].n):
            acc = b.insert_value(acc, write(b, t, *(_element(b, a, t) for a in rest), b.extract_value(acc, t)), t)
        return acc

    return make_intrinsic(write, count + 1, lambda *types_: (types_[-1](*types_), codegen))


def _element(b: Any, a: Any, t: int) -> Any:
    return b.extract_value(a, t) if isinstance(a.type, ir.ArrayType) else a


def _token(b: Any, address: Any, t: int, element: ir.Type, stride: Any = None, lanes: int = LANES) -> Any:
    ahead = ir.Constant(i64, 4 * t) if stride is None else b.mul(stride, ir.Constant(i64, t))
    return splat_of(b, read_from(b, b.add(address, ahead), element), lanes)


def _product_tile(element: ir.Type) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic (v, x, acc) -> acc[t] + products of v with the element at x[t], from a function that writes one."""

    def make(write: Callable[..., Any]) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            v, x, acc = args
            if PATH == "neon":
                return neon.products(b, write, v, x, acc, sig.args[2].n, element)
            for t in range(sig.args[2].n):
                token = _token(b, x, t, element, lanes=v.type.count)
                acc = b.insert_value(acc, write(b, v, token, b.extract_value(acc, t)), t)
            return acc

        return make_intrinsic(write, 3, lambda *types_: (types_[-1](*types_), codegen))

    return make


@_product_tile(f32)
def fma_tile(b: Any, v: Any, x: Any, acc: Any) -> Any:
    """acc[t] + v * x[t], x the address of one float32 per token."""
    return call(b, f"llvm.fma.v{v.type.count}f32", v.type, [v, x, acc])


@_tile_operation
def fma_rows_tile(b: Any, t: int, v: Any, x: Any, stride: Any, acc: Any) -> Any:
    """The same with the tokens' numbers `stride` bytes apart."""
    return fused(b, v, _token(b, x, t, f32, stride), acc)


@_tile_operation
def divide_tile(b: Any, t: int, divisor: Any, acc: Any) -> Any:
    return b.fdiv(acc, divisor)


@_tile_operation
def first_tile(b: Any, t: int, count: Any, acc: Any) -> Any:
    """The first `count` lanes of each vector, 0 in the others."""
    return b.select(lanes_before(b, count), acc, ZERO[floats])


@_tile_operation
def scale_tile(b: Any, t: int, p: Any, s: Any, acc: Any) -> Any:
    """acc[t] + p[t] * s for a tile p of floats or ints."""
    return fused(b, p if p.type == acc.type else b.sitofp(p, acc.type), s, acc)


@_tile_operation
def scale2_tile(b: Any, t: int, p: Any, s: Any, x: Any, acc: Any) -> Any:
    """acc[t] + p[t] * (s * x[t]), x the address of one float32 per token."""
    token = _token(b, x, t, f32, lanes=acc.type.count)
    return fused(b, p if p.type == acc.type else b.sitofp(p, acc.type), b.fmul(s, token), acc)


@_tile_operation
def spread_tile(b: Any, t: int, p: Any, x: Any, acc: Any) -> Any:
    """acc[t] + p[t] * x[t], x the address of one float32 per token."""
    return fused(b, p, _token(b, x, t, f32, lanes=acc.type.count), acc)


@_tile_operation
def add_tile(b: Any, t: int, p: Any, acc: Any) -> Any:
    return b.fadd(acc, p)


@_product_tile(i32)
def dot4_tile(b: Any, u: Any, x: Any, acc: Any) -> Any:
    """acc[t] + the sum of 4 products of u with the bytes at x[t], for u up to 127, a signed byte, and x from -127
    (where 16-bit sums cannot overflow).
    """
    return _dot4(b, acc, u, x, wide=False)


@_product_tile(i32)
def dot4_wide_tile(b: Any, u: Any, x: Any, acc: Any) -> Any:
    """The same for all u."""
    return _dot4(b, acc, u, x, wide=True)


@_product_tile(i32)
def dot2_tile(b: Any, u: Any, x: Any, acc: Any) -> Any:
    """acc[t] + the sum of 2 products of the 16-bit numbers of u and at x[t], signed."""
    return _dot2(b, acc, u, x)


@_tile_operation
def multiply_tile(b: Any, t: int, p: Any, v: Any, acc: Any) -> Any:
    """acc[t] + p[t] * v, ints."""
    return b.add(acc, b.mul(p, v))


# How many sums of 2 products of codes and bytes add up in 16 bits: 2 x (2^bits - 1) x 128 each, together below 2^15.
TOGETHER = {2: 42, 3: 18, 4: 8, 5: 4, 6: 2, 7: 1}


def _in_words(bits: int) -> bool:
    """Whether sums of 16 bits are multiplied, two to a lane."""
    return PATH == "avx2" and bits in TOGETHER


def vectors_of(bits: int) -> int:
    """How many a quad's codes take in a panel: one of bytes, or where products are of 16 bits one of the even bytes as
    words, and one of the odd ones.
    """
    return 2 if PATH == "plain" and bits in TOGETHER else 1


def planes_of(bits: int) -> int:
    """In how many parts codes with a scale of integers are multiplied: nibbles' sums fit 16 bits where 8 bits' do not.
    Where LLVM multiplies 32 bits for want of better, parts take longer.
    """
    return SET.planes if bits > 7 and PATH == "avx2" else 1


def group_scale(bits: int) -> Any:
    """An operation: a group's scales as group_tile wants them. Decoded once, they meet many tokens."""

    def factors(b: Any, scale: Any) -> Any:
        if not _in_words(bits):
            return scale
        return b.or_(b.and_(scale, constant(i32, 0xFFFF)), b.shl(scale, constant(i32, 16)))

    return operation(ints, ints)(factors)


def group_tile(quads: int, bits: int) -> Any:
    """An intrinsic (panel, x, scale, acc) -> acc[t] + scale * the sum of a group's products, ints.

    panel: the address of `quads` vectors of codes (or twice as many, vectors_of), four of `bits` bits to a lane; x: of
    their bytes, four to a token, a quad's tokens behind those of the one before; scale: what group_scale makes of 16
    bits a lane, signed. All exact, so in any order.
    """

    in_order = PATH == "avxvnni" or _in_words(bits)
    write = neon.group if PATH == "neon" else _register_by_register if in_order else _group32
    if vectors_of(bits) == 2:
        write = _by_words

    def typed(typingctx: Any, panel: Any, x: Any, scale: Any, acc: Any) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            panel, x, scale, acc = args
            n = sig.args[3].n
            codes, tokens = quads_at(b, quads, n, panel, x, vectors_of(bits))
            totals = write(b, codes, tokens, scale, [b.extract_value(acc, t) for t in range(n)], bits)
            for t, total in enumerate(totals):
                acc = b.insert_value(acc, total, t)
            return acc

        return acc(panel, x, scale, acc), codegen

    return intrinsic(typed)


def _group32(b: Any, codes: list[Any], tokens: list[Any], scale: Any, totals: list[Any], bits: int) -> list[Any]:
    """32-bit sums, times the scale."""
    vectors = [read_from(b, at, VI) for at in codes]
    found = []
    for t, total in enumerate(totals):
        p = ZERO[ints]
        for code, x in zip(vectors, tokens, strict=True):
            p = _dot4(b, p, code, _token(b, x, t, i32), wide=bits > 7)
        found.append(b.add(total, b.mul(p, scale)))
    return found


def _by_words(b: Any, codes: list[Any], tokens: list[Any], scale: Any, totals: list[Any], bits: int) -> list[Any]:
    """The same without a machine's dot product: products and sums of 16 bits, which every machine's vectors have twice
    as many of as of 32. In a loop over the quads, for LLVM would put what many of them need on the stack.
    """
    count, n = 2 * LANES, len(totals)
    words, eight, sixteen = vector_type(i16, count), constant(i16, 8, count), constant(i32, 16)
    apart = [b.sub(at[1], at[0]) for at in (codes, tokens)]
    wide: list[Any] = [None] * n
    for first in range(0, len(codes), TOGETHER[bits]):
        last = min(first + TOGETHER[bits], len(codes))
        before, loop, after = b.block, b.append_basic_block("quads"), b.append_basic_block("summed")
        end = in_place(b, b.add(tokens[last - 1], apart[1]), "=r,0")  # unknown: the loop is to stay one
        b.branch(loop)
        b.position_at_end(loop)
        at, x, *sums = (b.phi(kind) for kind in (i64, i64, *[words] * n))
        starts = codes[first], tokens[first], *[constant(i16, 0, count)] * n
        for phi, start in zip((at, x, *sums), starts, strict=True):
            phi.add_incoming(start, before)
        found = list(sums)
        halves = [read_from(b, b.add(at, ir.Constant(i64, 4 * LANES * odd)), words) for odd in (0, 1)]
        for t in range(n):
            own = b.bitcast(splat_of(b, read_from(b, b.add(x, ir.Constant(i64, 4 * t)), i32)), words)
            for half, byte in zip(halves, (b.ashr(b.shl(own, eight), eight), b.ashr(own, eight)), strict=True):
                found[t] = b.add(found[t], b.mul(half, byte))
        for phi, more in zip((at, x), apart, strict=True):
            phi.add_incoming(b.add(phi, more), loop)
        for phi, more in zip(sums, found, strict=True):
            phi.add_incoming(more, loop)
        b.cbranch(b.icmp_signed("<", x.incomings[1][0], end), loop, after)
        b.position_at_end(after)
        for t, both in enumerate(b.bitcast(v, VI) for v in found):
            own = b.add(b.ashr(b.shl(both, sixteen), sixteen), b.ashr(both, sixteen))
            wide[t] = own if first == 0 else b.add(wide[t], own)
    return [b.add(total, b.mul(own, scale)) for total, own in zip(totals, wide, strict=True)]


def _register_by_register(
    b: Any, codes: list[Any], tokens: list[Any], scale: Any, totals: list[Any], bits: int
) -> list[Any]:
    """The same in registers of 8 lanes, of which there are 16.

    They are enough where a quad's products are all added before the next one's: sums of two tokens take 8. Of four
    quads the codes of 8 lanes and the tokens' bytes fit, and 8 lanes are done before the next.
    """
    factors = pieces_of(b, scale, 8)
    split = [pieces_of(b, total, 8) for total in totals]
    pieces = range(len(factors))
    together = len(codes) if SET.dots else TOGETHER[bits]
    for at_once in [pieces] if len(codes) > 4 else [[i] for i in pieces]:
        for first in range(0, len(codes), together):
            sums: dict[tuple[int, int], Any] = {}
            for q in range(first, min(first + together, len(codes))):
                own = {i: read_from(b, b.add(codes[q], ir.Constant(i64, 32 * i)), vector_type(i32, 8)) for i in at_once}
                for t in range(len(totals)):
                    x = splat_of(b, read_from(b, b.add(tokens[q], ir.Constant(i64, 4 * t)), i32), 8)
                    for i in at_once:
                        sums[t, i] = in_place(b, _add_products(b, sums.get((t, i)), own[i], x), "=x,0")
            for (t, i), products in sums.items():
                split[t][i] = _add_scaled(b, split[t][i], products, factors[i])
    return [joined(b, total) for total in split]


def _add_products(b: Any, sums: Any, u: Any, s: Any) -> Any:
    """sums, None for 0, and 4 products in each of 8 lanes: 32 bits with VNNI, else two sums of 16 bits."""
    if SET.dots:
        zero = constant(i32, 0, 8)
        return call(b, SET.dots[0], vector_type(i32, 8), [zero if sums is None else sums, u, s])
    more = maddubs(b, u, s)
    return more if sums is None else b.add(sums, more)


def _add_scaled(b: Any, total: Any, sums: Any, factor: Any) -> Any:
    return b.add(total, b.mul(sums, factor) if SET.dots else madd(b, sums, factor))


def _zeros_like(like: Any) -> Any:
    """A tile of ints, 0, as many as `like` has vectors, of as many lanes."""
    made = Tile(ints_of(like.vector), like.n)
    zero = constant(i32, 0, made.vector.llvm.count)
    return made(like), lambda context, b, sig, args: ir.Constant(made.llvm, [zero] * like.n)


zeros_like = make_intrinsic(_zeros_like, 1, _zeros_like)


def _tile_width(tile: Any) -> Any:
    """How many vectors a tile has, known when the kernel is compiled."""
    return intp(tile), lambda context, b, sig, args: ir.Constant(i64, tile.n)


tile_width = make_intrinsic(_tile_width, 1, _tile_width)


def _add_neighbours(acc: Any) -> Any:
    """A tile of half as many vectors of floats: 0 + 1, 2 + 3, to the end."""
    made = Tile(acc.vector, acc.n // 2)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        sums = ir.Constant(made.llvm, ir.Undefined)
        for t in range(made.n):
            pair = (b.extract_value(args[0], 2 * t + i) for i in (0, 1))
            sums = b.insert_value(sums, b.fadd(*pair), t)
        return sums

    return made(acc), codegen


add_neighbours = make_intrinsic(_add_neighbours, 1, _add_neighbours)


def _start_tile(x: Any, factor: Any, like: Any) -> Any:
    """A tile of ints, as many as `like` has vectors, of as many lanes: factor * x[t], x the address of one int32 per
    token.
    """
    made = Tile(ints_of(like.vector), like.n)
    lanes = made.vector.llvm.count

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        acc = ir.Constant(made.llvm, ir.Undefined)
        for t in range(like.n):
            token = b.mul(_token(b, args[0], t, i32, lanes=lanes), splat_of(b, b.trunc(args[1], i32), lanes))
            acc = b.insert_value(acc, token, t)
        return acc

    return made(x, factor, like), codegen


start_tile = make_intrinsic(_start_tile, 3, _start_tile)


def _store_tile(address: Any, stride: Any, acc: Any, count: Any) -> Any:
    """Vector t to address + t * stride, all lanes or the first `count`."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        address, stride, acc, count = args
        for t in range(sig.args[2].n):
            write_first(b, b.add(address, b.mul(stride, ir.Constant(i64, t))), b.extract_value(acc, t), count)
        return context.get_dummy_value()

    return types.void(intp, intp, acc, intp), codegen


store_tile = make_intrinsic(_store_tile, 4, _store_tile)


def _put_tile(address: Any, acc: Any) -> Any:
    """Vectors one behind the other to an address."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        for t in range(sig.args[1].n):
            v = b.extract_value(args[1], t)
            write_to(b, b.add(args[0], ir.Constant(i64, 4 * v.type.count * t)), v)
        return context.get_dummy_value()

    return types.void(address, acc), codegen


put_tile = make_intrinsic(_put_tile, 2, _put_tile)


def store_columns(n: int) -> Any:
    """An intrinsic (x, stride, to): 8 numbers of each of n rows, `stride` bytes apart, n is even; to `to` the columns,
    each one's n numbers side by side. Four rows are turned at a time, or the two that are left.
    """
    ones = [constant(i32, [8 * (i % 2) + i // 4 * 4 + i % 4 // 2 + second for i in range(8)]) for second in (0, 2)]
    twos = [constant(i32, [8 * (i % 4 // 2) + i // 4 * 4 + i % 2 + second for i in range(8)]) for second in (0, 2)]

    def turn(b: Any, x: Any, stride: Any, to: Any) -> None:
        row = [read_from(b, b.add(x, b.mul(stride, ir.Constant(i64, t))), vector_type(f32, 8)) for t in range(n)]
        two = [[b.shuffle_vector(row[t], row[t + 1], order) for order in ones] for t in range(0, n, 2)]
        for t in range(0, n, 4):
            for half in (0, 1):  # columns 0, 1, 4 and 5, then 2, 3, 6 and 7
                turned, size = [two[t // 2][half]], 2
                if t + 4 <= n:
                    turned, size = [b.shuffle_vector(turned[0], two[t // 2 + 1][half], order) for order in twos], 4
                found = [piece for v in turned for piece in pieces_of(b, v, size)]
                for c, piece in zip((0, 1, 4, 5) if size == 2 else (0, 4, 1, 5), found, strict=True):
                    write_to(b, b.add(to, ir.Constant(i64, 4 * (n * (c + 2 * half) + t))), piece)

    return operation(types.void, intp, intp, intp)(turn)


def _load_tile(address: Any, like: Any) -> Any:
    """A tile of floats whose vectors follow one another in memory, as many as `like` has."""
    vector = like.vector.llvm

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        acc = ir.Constant(like.llvm, ir.Undefined)
        for t in range(like.n):
            at = b.add(args[0], ir.Constant(i64, 4 * vector.count * t))
            acc = b.insert_value(acc, read_from(b, at, vector), t)
        return acc

    return like(address, like), codegen


load_tile = make_intrinsic(_load_tile, 2, _load_tile)


def store_parts(parts: int, size: int) -> Any:
    """An intrinsic (address, v): the parts of v to addresses `size` bytes apart."""

    def in_parts(b: Any, address: Any, v: Any) -> Any:
        for i, piece in enumerate(pieces_of(b, v, LANES // parts) if parts > 1 else [v]):
            write_to(b, b.add(address, ir.Constant(i64, size * i)), piece)

    return operation(types.void, intp, floats)(in_parts)


def load_part(parts: int) -> Any:
    """An intrinsic (address): one part's vector."""
    part = part_of(parts)
    return operation(part, intp)(lambda b, address: read_from(b, address, part.llvm))


def zero_tile(vector: Vector, n: int) -> Any:
    """An intrinsic without arguments that gives a tile of n zero vectors."""
    tile = Tile(vector, n)

    def zeros(b: Any) -> Any:
        return ir.Constant(tile.llvm, [ir.Constant(vector.llvm, [0] * vector.llvm.count)] * n)

    return operation(tile)(zeros)
