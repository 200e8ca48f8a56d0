"""Vectors of 32 lanes inside @njit code: one Numba type per vector, one intrinsic per operation, nothing but
llvmlite's IR.

Addresses are plain intp: kernels work on memory as C does, without bounds checks. Only `load_f16` here, and the codes'
values and dot products of tiles.py, know the machine's path (paths.py). Each gives equal bits on every path: integer
ones are exact, floating-point ones are the same IEEE operations in the same order, and a multiply-add is fused on all
of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin

from .codegen import (
    LANES,
    VF,
    VI,
    ZERO,
    Vector,
    call,
    constant,
    f16,
    f32,
    floats,
    fused,
    i8,
    i16,
    i32,
    i64,
    intp,
    ints,
    operation,
    pieces_of,
    pointer,
    read_from,
    splat_of,
    vector_type,
    write_to,
)
from .paths import PATH

# ---- memory


@operation(floats, intp)
def load_f32(b: Any, address: Any) -> Any:
    return read_from(b, address, VF)


@operation(ints, intp)
def load_i32(b: Any, address: Any) -> Any:
    return read_from(b, address, VI)


@operation(floats, intp)
def load_bf16(b: Any, address: Any) -> Any:
    wide = b.zext(read_from(b, address, vector_type(i16)), VI)
    return b.bitcast(b.shl(wide, constant(i32, 16)), VF)


def _half(b: Any, h: Any) -> Any:
    """<n x i16> holding IEEE halves -> <n x float>; without F16C by arithmetic: 2^112 times the bits moved into
    place.
    """
    n = h.type.count
    if PATH != "plain":
        return b.fpext(b.bitcast(h, vector_type(f16, n)), vector_type(f32, n))
    wide = b.zext(h, vector_type(i32, n))
    magnitude = b.shl(b.and_(wide, constant(i32, 0x7FFF, n)), constant(i32, 13, n))
    scaled = b.fmul(b.bitcast(magnitude, vector_type(f32, n)), constant(f32, 2.0**112, n))
    special = b.icmp_unsigned(">=", magnitude, constant(i32, 0x7C00 << 13, n))
    bits = b.select(special, b.or_(magnitude, constant(i32, 0x7F800000, n)), b.bitcast(scaled, vector_type(i32, n)))
    sign = b.shl(b.and_(wide, constant(i32, 0x8000, n)), constant(i32, 16, n))
    return b.bitcast(b.or_(bits, sign), vector_type(f32, n))


@operation(floats, intp)
def load_f16(b: Any, address: Any) -> Any:
    return _half(b, read_from(b, address, vector_type(i16)))


@operation(floats, ints)
def low_half(b: Any, v: Any) -> Any:
    """The IEEE half in the low 16 bits of each lane."""
    return _half(b, b.trunc(v, vector_type(i16)))


@operation(floats, ints)
def high_half(b: Any, v: Any) -> Any:
    return _half(b, b.trunc(b.lshr(v, constant(i32, 16)), vector_type(i16)))


@operation(floats, intp)
def load_i16(b: Any, address: Any) -> Any:
    """Signed 16-bit numbers."""
    return b.sitofp(read_from(b, address, vector_type(i16)), VF)


@operation(floats, ints)
def low_i16(b: Any, v: Any) -> Any:
    """The signed number in the low 16 bits of each lane."""
    return b.sitofp(b.trunc(v, vector_type(i16)), VF)


@operation(floats, ints)
def low_bf16(b: Any, v: Any) -> Any:
    return b.bitcast(b.shl(v, constant(i32, 16)), VF)


@operation(floats, ints)
def high_bf16(b: Any, v: Any) -> Any:
    return b.bitcast(b.and_(v, constant(i32, -0x10000)), VF)


def lanes_before(b: Any, count: Any, lanes: int = LANES) -> Any:
    """Mask of the lanes before `count`."""
    n = b.trunc(count, i32)
    return b.icmp_signed("<", constant(i32, list(range(lanes))), splat_of(b, n, lanes))


@operation(floats, floats, intp, floats)
def first(b: Any, v: Any, count: Any, otherwise: Any) -> Any:
    """The first `count` lanes of v, and the others of `otherwise`."""
    return b.select(lanes_before(b, count), v, otherwise)


def _all(b: Any, count: Any, lanes: int = LANES) -> Any:
    return b.icmp_signed(">=", count, ir.Constant(i64, lanes))


def write_first(b: Any, address: Any, v: Any, count: Any) -> None:
    """A masked store of all lanes takes twice the time of a plain one, hence the branch."""
    n = v.type.count
    with b.if_else(_all(b, count, n)) as (all_, some):
        with all_:
            write_to(b, address, v)
        with some:
            rest = [pointer(b, address, v.type), ir.Constant(i32, 1), lanes_before(b, count, n)]
            call(b, f"llvm.masked.store.v{n}f32.p0", ir.VoidType(), [v, *rest])


@operation(floats, intp, intp)
def load_f32_first(b: Any, address: Any, count: Any) -> Any:
    """The first `count` lanes; 0 in the others, whose memory is not touched."""
    name = f"llvm.masked.load.v{LANES}f32.p0"
    with b.if_else(_all(b, count)) as (all_, some):
        with all_:
            whole, from_all = read_from(b, address, VF), b.block
        with some:
            part = call(
                b, name, VF, [pointer(b, address, VF), ir.Constant(i32, 1), lanes_before(b, count), ZERO[floats]]
            )
            from_some = b.block
    v = b.phi(VF)
    v.add_incoming(whole, from_all)
    v.add_incoming(part, from_some)
    return v


@operation(types.void, intp, floats)
def store_f32(b: Any, address: Any, v: Any) -> None:
    write_to(b, address, v)


@operation(types.void, intp, ints)
def store_i32(b: Any, address: Any, v: Any) -> None:
    write_to(b, address, v)


@operation(types.void, intp, intp, ints)
def store_words_of_bytes(b: Any, address: Any, stride: Any, v: Any) -> None:
    """The lanes' low bytes, four to a word, words `stride` bytes apart."""
    words = b.bitcast(b.trunc(v, vector_type(i8)), vector_type(i32, LANES // 4))
    for i in range(LANES // 4):
        word = b.extract_element(words, ir.Constant(i32, i))
        write_to(b, b.add(address, b.mul(stride, ir.Constant(i64, i))), word)


@operation(types.void, intp, floats, intp)
def store_f32_first(b: Any, address: Any, v: Any, count: Any) -> None:
    write_first(b, address, v, count)


def _ask(b: Any, address: Any, level: int) -> None:
    """LLVM's hint: to read data, into the caches from this level on; 3 is the first, 2 the second."""
    hints = [ir.Constant(i32, n) for n in (0, level, 1)]
    call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer(b, address, i8), *hints])


@operation(types.void, intp)
def prefetch(b: Any, address: Any) -> None:
    """Asks for the cache line of an address, which need not be one."""
    _ask(b, address, 3)


@operation(types.void, intp)
def prefetch_second(b: Any, address: Any) -> None:
    """The same, into the second-level cache."""
    _ask(b, address, 2)


@operation(types.float32, intp)
def get_f32(b: Any, address: Any) -> Any:
    return read_from(b, address, f32)


@operation(types.int32, intp)
def get_i32(b: Any, address: Any) -> Any:
    return read_from(b, address, i32)


@operation(types.uint16, intp)
def get_u16(b: Any, address: Any) -> Any:
    return read_from(b, address, i16)


@operation(types.void, intp, types.float32)
def set_f32(b: Any, address: Any, x: Any) -> None:
    write_to(b, address, x)


@operation(types.void, intp, types.int32)
def set_i32(b: Any, address: Any, x: Any) -> None:
    write_to(b, address, x)


@operation(types.void, intp, types.uint16)
def set_u16(b: Any, address: Any, x: Any) -> None:
    write_to(b, address, x)


@operation(types.float32, types.int64)
def float_of_bits(b: Any, bits: Any) -> Any:
    """The float32 whose bits are the low 32 of an integer: how a float travels among a kernel's integer arguments."""
    return b.bitcast(b.trunc(bits, i32), f32)


@operation(types.float32, types.float32)
def half_rounded(b: Any, x: Any) -> Any:
    """The IEEE half nearest to x >= 0, ties to even, as float32: by arithmetic, so that no machine needs F16C."""
    bits = b.bitcast(x, i32)
    odd = b.and_(b.lshr(bits, ir.Constant(i32, 13)), ir.Constant(i32, 1))
    normal = b.and_(b.add(b.add(bits, ir.Constant(i32, 0xFFF)), odd), ir.Constant(i32, ~0x1FFF))
    shift = ir.Constant(f32, 0.75)  # its last bit is worth 2^-24, as a subnormal half's is
    small = b.fsub(b.fadd(x, shift), shift)
    rounded = b.select(b.fcmp_ordered("<", x, ir.Constant(f32, 2.0**-14)), small, b.bitcast(normal, f32))
    return b.select(
        b.fcmp_ordered("<", x, ir.Constant(f32, 65520.0)), rounded, b.fadd(x, ir.Constant(f32, float("inf")))
    )


# ---- lanes


@operation(floats, types.float32)
def splat_f32(b: Any, x: Any) -> Any:
    return splat_of(b, x)


@operation(ints, types.int32)
def splat_i32(b: Any, x: Any) -> Any:
    return splat_of(b, x)


@operation(floats, floats, floats, floats)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return fused(b, x, y, z)


@operation(floats, ints)
def to_f32(b: Any, v: Any) -> Any:
    return b.sitofp(v, VF)


@operation(floats, ints)
def as_f32(b: Any, v: Any) -> Any:
    """The same bits as float32."""
    return b.bitcast(v, VF)


@operation(ints, floats)
def as_i32(b: Any, v: Any) -> Any:
    return b.bitcast(v, VI)


@operation(ints, ints, intp)
def shift_left(b: Any, v: Any, n: Any) -> Any:
    return b.shl(v, splat_of(b, b.trunc(n, i32)))


@operation(ints, ints, intp)
def shift_right(b: Any, v: Any, n: Any) -> Any:
    """Zeros come in from the left."""
    return b.lshr(v, splat_of(b, b.trunc(n, i32)))


@operation(ints, ints)
def halve(b: Any, v: Any) -> Any:
    """v / 2, rounded down."""
    return b.ashr(v, constant(i32, 1))


@operation(ints, ints, intp)
def mask(b: Any, v: Any, bits: Any) -> Any:
    return b.and_(v, splat_of(b, b.trunc(bits, i32)))


@operation(floats, floats, floats, floats, floats)
def where_less(b: Any, x: Any, y: Any, then: Any, otherwise: Any) -> Any:
    """then where x < y, else otherwise; a NaN in x or y is not less."""
    return b.select(b.fcmp_ordered("<", x, y), then, otherwise)


@operation(floats, floats)
def absolute(b: Any, x: Any) -> Any:
    return call(b, f"llvm.fabs.v{LANES}f32", VF, [x])


def _halve(b: Any, v: Any, combine: Callable[[Any, Any], Any]) -> Any:
    while v.type.count > 1:
        x, y = pieces_of(b, v, v.type.count // 2)
        v = combine(x, y)
    return b.extract_element(v, ir.Constant(i32, 0))


@operation(ints, ints, ints)
def add_pairs(b: Any, x: Any, y: Any) -> Any:
    """x0 + x1, x2 + x3, to the end of x, then the same of y."""
    even, odd = (constant(i32, list(range(i, 2 * LANES, 2))) for i in (0, 1))
    return b.add(b.shuffle_vector(x, y, even), b.shuffle_vector(x, y, odd))


@operation(types.int32, ints)
def total_ints(b: Any, v: Any) -> Any:
    return _halve(b, v, b.add)


@operation(types.float32, floats)
def total(b: Any, v: Any) -> Any:
    """The sum of the lanes by one fixed tree: lane i + lane i + 16, then + 8, 4, 2, 1."""
    return _halve(b, v, b.fadd)


@operation(types.float32, floats)
def maximum(b: Any, v: Any) -> Any:
    return _halve(b, v, lambda x, y: b.select(b.fcmp_unordered(">", x, y), x, y))


@operation(ints, ints, intp)
def signed_byte(b: Any, v: Any, index: Any) -> Any:
    """Byte 0..3 of each lane, as a signed number."""
    left = b.sub(ir.Constant(i32, 24), b.shl(b.trunc(index, i32), ir.Constant(i32, 3)))
    return b.ashr(b.shl(v, splat_of(b, left)), constant(i32, 24))


def _bytes(b: Any, v: Any, left: int, n: Any) -> Any:
    """Signed bytes at the top of 16-bit numbers, once these were shifted left; times 2^n."""
    words = 2 * LANES
    v = b.bitcast(v, vector_type(i16, words))
    kept = b.and_(b.shl(v, constant(i16, left, words)), constant(i16, -0x100, words))
    right = splat_of(b, b.sub(ir.Constant(i16, 8), b.trunc(n, i16)), words)
    return b.bitcast(b.ashr(kept, right), VI)


@operation(ints, ints, intp)
def even_bytes(b: Any, v: Any, n: Any) -> Any:
    """Bytes 0 and 2 of each lane, signed, times 2^n, as the lane's two 16-bit numbers."""
    return _bytes(b, v, 8, n)


@operation(ints, ints, intp)
def odd_bytes(b: Any, v: Any, n: Any) -> Any:
    """Bytes 1 and 3."""
    return _bytes(b, v, 0, n)


def scratch(size: int) -> Any:
    """An intrinsic without arguments: the address of `size` bytes on the stack, aligned to 64, the same at every
    call.
    """

    def stack_memory(b: Any) -> Any:
        with b.goto_entry_block():
            memory = b.alloca(i8, ir.Constant(i32, size))
            memory.align = 64
        return b.ptrtoint(memory, i64)

    return operation(intp)(stack_memory)


# ---- operators, so that kernels read as arithmetic


@infer_global(operator.add)
@infer_global(operator.sub)
@infer_global(operator.mul)
@infer_global(operator.truediv)
@infer_global(operator.or_)
@infer_global(operator.xor)
class VectorOperator(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and args[0] == args[1] and isinstance(args[0], Vector):
            return signature(args[0], *args)
        return None


def _lower(op: Any, vector: Vector, name: str) -> None:
    lower_builtin(op, vector, vector)(lambda context, b, sig, args: getattr(b, name)(*args))


for _op, _float, _int in (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", "mul"),
    (operator.truediv, "fdiv", ""),
    (operator.or_, "", "or_"),
    (operator.xor, "", "xor"),
):
    if _float:
        _lower(_op, floats, _float)
    if _int:
        _lower(_op, ints, _int)
