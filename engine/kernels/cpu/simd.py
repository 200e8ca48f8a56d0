"""Vectors of 32 lanes inside @njit code: one Numba type per vector, one intrinsic per operation, nothing but
llvmlite's IR.

A vector is an LLVM <32 x i32> or <32 x float>; LLVM splits it into the machine's registers (two of 512 bits, four of
256). Addresses are plain intp: kernels work on memory as C does, without bounds checks. Only three operations know
the machine: `dot4`, `code4`/`code5` and `load_f16`. PATH says which instructions they use ("avx512": AVX-512 with
VNNI, "avxvnni": AVX2 with VNNI, "avx2", "plain"); it follows the host, or the variable QWENREF_SIMD. Each gives equal
bits on every path: integer ones are exact, floating-point ones are the same IEEE operations in the same order, and a
multiply-add is fused on all of them.

A tile is n vectors side by side (one per token); `*_tile` operations act on all n, so one kernel text serves any n.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from ....errors import BadInput

config: Any = numba_config

LANES = 32


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """needs: features of the machine, by LLVM's names. tile: tokens of a tile, which is even, for halves of a token lie
    side by side. heads: that attention takes together. planes: in how many parts 8-bit codes are multiplied: of two
    products with bytes the sum takes 17 bits, of nibbles 13. lacks: how features begin that such a machine has not, and
    that machine code does without where the path is asked for on a better one. dots: LLVM's names of the dot products
    of bytes and of 16-bit numbers, and the lanes that they take, where the machine has them.
    """

    needs: frozenset[str]
    tile: int = 2
    heads: int = 2
    planes: int = 1
    dots: tuple[str, str, int] | None = None
    lacks: tuple[str, ...] = ()


AVX2 = frozenset({"avx2", "fma", "f16c"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}
VPDP = "llvm.x86.avx512.vpdpbusd", "llvm.x86.avx512.vpdpwssd"
SETS = {  # the best first
    "avx512": InstructionSet(AVX512, tile=6, heads=4, dots=(f"{VPDP[0]}.512", f"{VPDP[1]}.512", 16)),
    "avxvnni": InstructionSet(AVX2 | {"avxvnni"}, dots=(f"{VPDP[0]}.256", f"{VPDP[1]}.256", 8), lacks=("avx512",)),
    "avx2": InstructionSet(AVX2, planes=2, lacks=("avx512", "avxvnni")),
    "plain": InstructionSet(frozenset(), heads=1),
}
PATHS = tuple(SETS)


def features() -> set[str]:
    """What the machine that Numba compiles for can do: the host, unless NUMBA_CPU_FEATURES says otherwise."""
    if config.CPU_FEATURES is not None:
        return {f[1:] for f in config.CPU_FEATURES.split(",") if f.startswith("+")}
    return {name for name, there in llvm.get_host_cpu_features().items() if there}


def choose_path(forced: str | None, have: set[str]) -> str:
    """The best path for these features, or the forced one. Raises BadInput if that is unknown or the machine lacks
    it.
    """
    possible = [path for path, s in SETS.items() if s.needs <= have]
    if not forced:
        return possible[0]
    if forced not in possible:
        raise BadInput(f"QWENREF_SIMD={forced}: this machine has {', '.join(possible)}")
    return forced


def why() -> str:
    """Why PATH is the path, in words."""
    if os.environ.get("QWENREF_SIMD"):
        return "QWENREF_SIMD says so"
    missing = [f"{p} needs {', '.join(sorted(SETS[p].needs - features()))}" for p in PATHS[: PATHS.index(PATH)]]
    which = "NUMBA_CPU_FEATURES" if config.CPU_FEATURES is not None else "this processor"
    return f"{'; '.join(missing)}, which {which} does not name" if missing else "the best there is"


PATH = choose_path(os.environ.get("QWENREF_SIMD"), features())
SET = SETS[PATH]
if os.environ.get("QWENREF_SIMD") and SET.lacks and config.CPU_FEATURES is None:
    config.CPU_FEATURES = ",".join(
        f"{'+' if there and not name.startswith(SET.lacks) else '-'}{name}"
        for name, there in llvm.get_host_cpu_features().items()
    )

i8, i16, i32, i64 = (ir.IntType(n) for n in (8, 16, 32, 64))
f16, f32 = ir.HalfType(), ir.FloatType()
intp = types.intp


def _wide(element: ir.Type, lanes: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, lanes)


def _const(element: ir.Type, values: Any, lanes: int = LANES) -> ir.Constant:
    values = values if isinstance(values, list) else [values] * lanes
    return ir.Constant(_wide(element, len(values)), values)


class Vector(types.Type):
    def __init__(self, name: str, element: ir.Type) -> None:
        self.llvm = _wide(element)
        super().__init__(name=name)


class Tile(types.Type):
    """n vectors of one kind."""

    def __init__(self, vector: Vector, n: int) -> None:
        self.vector, self.n, self.llvm = vector, n, ir.ArrayType(vector.llvm, n)
        super().__init__(name=f"{vector.name}_tile{n}")


@register_model(Vector)
@register_model(Tile)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


ints, floats = Vector("ints", i32), Vector("floats", f32)
VI, VF = ints.llvm, floats.llvm
ZERO = {ints: _const(i32, 0), floats: _const(f32, 0.0)}


# ---- helpers of the code generators


def _at(b: ir.IRBuilder, address: Any, element: ir.Type) -> Any:
    return b.inttoptr(address, element.as_pointer())


def _read(b: ir.IRBuilder, address: Any, element: ir.Type) -> Any:
    value = b.load(_at(b, address, element))
    value.align = 1
    return value


def _write(b: ir.IRBuilder, address: Any, value: Any) -> None:
    b.store(value, _at(b, address, value.type)).align = 1


def _splat(b: ir.IRBuilder, scalar: Any, lanes: int = LANES) -> Any:
    u = ir.Constant(_wide(scalar.type, lanes), ir.Undefined)
    return b.shuffle_vector(b.insert_element(u, scalar, ir.Constant(i32, 0)), u, _const(i32, 0, lanes))


def _call(b: ir.IRBuilder, name: str, result: ir.Type, args: list[Any]) -> Any:
    return b.call(b.module.declare_intrinsic(name, (), ir.FunctionType(result, [a.type for a in args])), args)


def _fma(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    return _call(b, f"llvm.fma.v{LANES}f32", VF, [x, y, z])


def _pieces(b: ir.IRBuilder, v: Any, lanes: int) -> list[Any]:
    u = ir.Constant(v.type, ir.Undefined)
    return [b.shuffle_vector(v, u, _const(i32, list(range(i, i + lanes)))) for i in range(0, v.type.count, lanes)]


def _join(b: ir.IRBuilder, parts: list[Any]) -> Any:
    while len(parts) > 1:
        n = parts[0].type.count
        order = _const(i32, list(range(2 * n)))
        parts = [b.shuffle_vector(x, y, order) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _in_pieces(b: ir.IRBuilder, lanes: int, f: Callable[..., Any], *vectors: Any) -> Any:
    return _join(b, [f(*p) for p in zip(*(_pieces(b, v, lanes) for v in vectors), strict=True)])


def _intrinsic(write: Callable[..., Any], count: int, typing: Callable[..., Any]) -> Any:
    """An @intrinsic of `count` arguments, under the name and docstring of `write`, typed by `typing`."""

    def typed(typingctx: Any, *args: Any) -> Any:
        return typing(*args)

    names = ["typingctx", *(f"a{i}" for i in range(count))]
    typed.__signature__ = Signature([Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in names])  # type: ignore[attr-defined]
    typed.__name__, typed.__doc__ = write.__name__, write.__doc__
    return intrinsic(typed)


def _operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic from a function (builder, *values) -> value that writes its IR."""

    def make(write: Callable[..., Any]) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            value = write(b, *args)
            return context.get_dummy_value() if result is types.void else value

        return _intrinsic(write, len(arguments), lambda *_: (result(*arguments), codegen))

    return make


# ---- memory


@_operation(floats, intp)
def load_f32(b: Any, address: Any) -> Any:
    return _read(b, address, VF)


@_operation(ints, intp)
def load_i32(b: Any, address: Any) -> Any:
    return _read(b, address, VI)


@_operation(floats, intp)
def load_bf16(b: Any, address: Any) -> Any:
    wide = b.zext(_read(b, address, _wide(i16)), VI)
    return b.bitcast(b.shl(wide, _const(i32, 16)), VF)


def _half(b: Any, h: Any) -> Any:
    """<n x i16> holding IEEE halves -> <n x float>; without F16C by arithmetic: 2^112 times the bits moved into
    place.
    """
    n = h.type.count
    if PATH != "plain":
        return b.fpext(b.bitcast(h, _wide(f16, n)), _wide(f32, n))
    wide = b.zext(h, _wide(i32, n))
    magnitude = b.shl(b.and_(wide, _const(i32, 0x7FFF, n)), _const(i32, 13, n))
    scaled = b.fmul(b.bitcast(magnitude, _wide(f32, n)), _const(f32, 2.0**112, n))
    special = b.icmp_unsigned(">=", magnitude, _const(i32, 0x7C00 << 13, n))
    bits = b.select(special, b.or_(magnitude, _const(i32, 0x7F800000, n)), b.bitcast(scaled, _wide(i32, n)))
    sign = b.shl(b.and_(wide, _const(i32, 0x8000, n)), _const(i32, 16, n))
    return b.bitcast(b.or_(bits, sign), _wide(f32, n))


@_operation(floats, intp)
def load_f16(b: Any, address: Any) -> Any:
    return _half(b, _read(b, address, _wide(i16)))


@_operation(floats, ints)
def low_half(b: Any, v: Any) -> Any:
    """The IEEE half in the low 16 bits of each lane."""
    return _half(b, b.trunc(v, _wide(i16)))


@_operation(floats, ints)
def high_half(b: Any, v: Any) -> Any:
    return _half(b, b.trunc(b.lshr(v, _const(i32, 16)), _wide(i16)))


def _first(b: Any, count: Any) -> Any:
    """Mask of the lanes before `count`."""
    n = b.trunc(count, i32)
    return b.icmp_signed("<", _const(i32, list(range(LANES))), _splat(b, n))


@_operation(floats, floats, intp, floats)
def first(b: Any, v: Any, count: Any, otherwise: Any) -> Any:
    """The first `count` lanes of v, and the others of `otherwise`."""
    return b.select(_first(b, count), v, otherwise)


def _all(b: Any, count: Any) -> Any:
    return b.icmp_signed(">=", count, ir.Constant(i64, LANES))


def _write_first(b: Any, address: Any, v: Any, count: Any) -> None:
    """A masked store of all lanes takes twice the time of a plain one, hence the branch."""
    name = f"llvm.masked.store.v{LANES}f32.p0"
    with b.if_else(_all(b, count)) as (all_, some):
        with all_:
            _write(b, address, v)
        with some:
            _call(b, name, ir.VoidType(), [v, _at(b, address, VF), ir.Constant(i32, 1), _first(b, count)])


@_operation(floats, intp, intp)
def load_f32_first(b: Any, address: Any, count: Any) -> Any:
    """The first `count` lanes; 0 in the others, whose memory is not touched."""
    name = f"llvm.masked.load.v{LANES}f32.p0"
    with b.if_else(_all(b, count)) as (all_, some):
        with all_:
            whole, from_all = _read(b, address, VF), b.block
        with some:
            part = _call(b, name, VF, [_at(b, address, VF), ir.Constant(i32, 1), _first(b, count), ZERO[floats]])
            from_some = b.block
    v = b.phi(VF)
    v.add_incoming(whole, from_all)
    v.add_incoming(part, from_some)
    return v


@_operation(types.void, intp, floats)
def store_f32(b: Any, address: Any, v: Any) -> None:
    _write(b, address, v)


@_operation(types.void, intp, ints)
def store_i32(b: Any, address: Any, v: Any) -> None:
    _write(b, address, v)


@_operation(types.void, intp, intp, ints)
def store_words_of_bytes(b: Any, address: Any, stride: Any, v: Any) -> None:
    """The lanes' low bytes, four to a word, words `stride` bytes apart."""
    words = b.bitcast(b.trunc(v, _wide(i8)), _wide(i32, LANES // 4))
    for i in range(LANES // 4):
        word = b.extract_element(words, ir.Constant(i32, i))
        _write(b, b.add(address, b.mul(stride, ir.Constant(i64, i))), word)


@_operation(types.void, intp, floats, intp)
def store_f32_first(b: Any, address: Any, v: Any, count: Any) -> None:
    _write_first(b, address, v, count)


@_operation(types.void, intp)
def prefetch(b: Any, address: Any) -> None:
    """Asks for the cache line of an address, which need not be one."""
    hints = [ir.Constant(i32, n) for n in (0, 3, 1)]  # to read, into every level, data
    _call(b, "llvm.prefetch.p0", ir.VoidType(), [_at(b, address, i8), *hints])


@_operation(types.float32, intp)
def get_f32(b: Any, address: Any) -> Any:
    return _read(b, address, f32)


@_operation(types.int32, intp)
def get_i32(b: Any, address: Any) -> Any:
    return _read(b, address, i32)


@_operation(types.uint16, intp)
def get_u16(b: Any, address: Any) -> Any:
    return _read(b, address, i16)


@_operation(types.void, intp, types.float32)
def set_f32(b: Any, address: Any, x: Any) -> None:
    _write(b, address, x)


@_operation(types.void, intp, types.int32)
def set_i32(b: Any, address: Any, x: Any) -> None:
    _write(b, address, x)


@_operation(types.void, intp, types.uint16)
def set_u16(b: Any, address: Any, x: Any) -> None:
    _write(b, address, x)


@_operation(types.float32, types.int64)
def float_of_bits(b: Any, bits: Any) -> Any:
    """The float32 whose bits are the low 32 of an integer: how a float travels among a kernel's integer arguments."""
    return b.bitcast(b.trunc(bits, i32), f32)


@_operation(types.float32, types.float32)
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


@_operation(floats, types.float32)
def splat_f32(b: Any, x: Any) -> Any:
    return _splat(b, x)


@_operation(ints, types.int32)
def splat_i32(b: Any, x: Any) -> Any:
    return _splat(b, x)


@_operation(floats, floats, floats, floats)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return _fma(b, x, y, z)


@_operation(floats, ints)
def to_f32(b: Any, v: Any) -> Any:
    return b.sitofp(v, VF)


@_operation(floats, ints)
def as_f32(b: Any, v: Any) -> Any:
    """The same bits as float32."""
    return b.bitcast(v, VF)


@_operation(ints, floats)
def as_i32(b: Any, v: Any) -> Any:
    return b.bitcast(v, VI)


@_operation(ints, ints, intp)
def shift_left(b: Any, v: Any, n: Any) -> Any:
    return b.shl(v, _splat(b, b.trunc(n, i32)))


@_operation(ints, ints, intp)
def shift_right(b: Any, v: Any, n: Any) -> Any:
    """Zeros come in from the left."""
    return b.lshr(v, _splat(b, b.trunc(n, i32)))


@_operation(ints, ints)
def halve(b: Any, v: Any) -> Any:
    """v / 2, rounded down."""
    return b.ashr(v, _const(i32, 1))


@_operation(ints, ints, intp)
def mask(b: Any, v: Any, bits: Any) -> Any:
    return b.and_(v, _splat(b, b.trunc(bits, i32)))


@_operation(floats, floats, floats, floats, floats)
def where_less(b: Any, x: Any, y: Any, then: Any, otherwise: Any) -> Any:
    """then where x < y, else otherwise; a NaN in x or y is not less."""
    return b.select(b.fcmp_ordered("<", x, y), then, otherwise)


@_operation(floats, floats)
def absolute(b: Any, x: Any) -> Any:
    return _call(b, f"llvm.fabs.v{LANES}f32", VF, [x])


def _halve(b: Any, v: Any, combine: Callable[[Any, Any], Any]) -> Any:
    while v.type.count > 1:
        x, y = _pieces(b, v, v.type.count // 2)
        v = combine(x, y)
    return b.extract_element(v, ir.Constant(i32, 0))


@_operation(ints, ints, ints)
def add_pairs(b: Any, x: Any, y: Any) -> Any:
    """x0 + x1, x2 + x3, to the end of x, then the same of y."""
    even, odd = (_const(i32, list(range(i, 2 * LANES, 2))) for i in (0, 1))
    return b.add(b.shuffle_vector(x, y, even), b.shuffle_vector(x, y, odd))


@_operation(types.int32, ints)
def total_ints(b: Any, v: Any) -> Any:
    return _halve(b, v, b.add)


@_operation(types.float32, floats)
def total(b: Any, v: Any) -> Any:
    """The sum of the lanes by one fixed tree: lane i + lane i + 16, then + 8, 4, 2, 1."""
    return _halve(b, v, b.fadd)


@_operation(types.float32, floats)
def maximum(b: Any, v: Any) -> Any:
    return _halve(b, v, lambda x, y: b.select(b.fcmp_unordered(">", x, y), x, y))


@_operation(ints, ints, intp)
def signed_byte(b: Any, v: Any, index: Any) -> Any:
    """Byte 0..3 of each lane, as a signed number."""
    left = b.sub(ir.Constant(i32, 24), b.shl(b.trunc(index, i32), ir.Constant(i32, 3)))
    return b.ashr(b.shl(v, _splat(b, left)), _const(i32, 24))


def _bytes(b: Any, v: Any, left: int, n: Any) -> Any:
    """Signed bytes at the top of 16-bit numbers, once these were shifted left; times 2^n."""
    words = 2 * LANES
    v = b.bitcast(v, _wide(i16, words))
    kept = b.and_(b.shl(v, _const(i16, left, words)), _const(i16, -0x100, words))
    right = _splat(b, b.sub(ir.Constant(i16, 8), b.trunc(n, i16)), words)
    return b.bitcast(b.ashr(kept, right), VI)


@_operation(ints, ints, intp)
def even_bytes(b: Any, v: Any, n: Any) -> Any:
    """Bytes 0 and 2 of each lane, signed, times 2^n, as the lane's two 16-bit numbers."""
    return _bytes(b, v, 8, n)


@_operation(ints, ints, intp)
def odd_bytes(b: Any, v: Any, n: Any) -> Any:
    """Bytes 1 and 3."""
    return _bytes(b, v, 0, n)


# ---- codes: four unsigned bytes a lane


def _byte(b: Any, c: Any, index: Any) -> Any:
    return b.and_(b.lshr(c, _splat(b, b.shl(b.trunc(index, i32), ir.Constant(i32, 3)))), _const(i32, 0xFF))


def _code_value(b: Any, c: Any, index: Any, offset: int) -> Any:
    return b.fsub(b.sitofp(_byte(b, c, index), VF), _const(f32, float(offset)))


def _code(bits: int, offset: int) -> Callable[..., Any]:
    """(codes, byte index) -> value of that byte less the offset; a table look-up where the machine has one that
    large.
    """

    def write(b: Any, c: Any, index: Any) -> Any:
        if PATH != "avx512" or bits > 5:
            return _code_value(b, c, index, offset)
        at = b.lshr(c, _splat(b, b.shl(b.trunc(index, i32), ir.Constant(i32, 3))))
        book = [_const(f32, [float(i - offset) for i in range(s, s + 16)]) for s in range(0, 1 << bits, 16)]
        if bits == 4:
            name = "llvm.x86.avx512.permvar.sf.512"
            return _in_pieces(b, 16, lambda i: _call(b, name, _wide(f32, 16), [book[0], i]), at)
        name = "llvm.x86.avx512.vpermi2var.ps.512"
        return _in_pieces(b, 16, lambda i: _call(b, name, _wide(f32, 16), [book[0], i, book[1]]), at)

    write.__name__ = f"code{bits}_{offset}"
    return write


code4_8, code5_16 = (_operation(floats, ints, intp)(_code(*k)) for k in ((4, 8), (5, 16)))
code6_32, code8_128 = (_operation(floats, ints, intp)(_code(*k)) for k in ((6, 32), (8, 128)))


BYTES, WORDS = _wide(i8, 32), _wide(i16, 16)  # of a register of 256 bits


def _maddubs(b: Any, u: Any, s: Any) -> Any:
    """Sums of 2 products of unsigned and signed bytes, 16 bits each, of 8 lanes. They must not overflow."""
    return _call(b, "llvm.x86.avx2.pmadd.ub.sw", WORDS, [b.bitcast(u, BYTES), b.bitcast(s, BYTES)])


def _madd(b: Any, x: Any, y: Any) -> Any:
    """Sums of 2 products of signed 16-bit numbers, 32 bits each, of 8 lanes."""
    return _call(b, "llvm.x86.avx2.pmadd.wd", _wide(i32, 8), [b.bitcast(x, WORDS), b.bitcast(y, WORDS)])


def _halves(b: Any, u: Any) -> tuple[Any, Any]:
    """Bytes as sums of two, neither over 128: products of 2 of them and bytes from -127 fit 16 bits, 255's do not."""
    half = b.and_(b.lshr(u, _const(i32, 1, 8)), _const(i32, 0x7F7F7F7F, 8))
    return half, b.sub(u, half)


def _dot4(b: Any, acc: Any, u: Any, s: Any, wide: bool) -> Any:
    """acc + the sum of 4 products of unsigned and signed bytes, exactly, in each lane."""
    if SET.dots:
        name, _, lanes = SET.dots
        return _in_pieces(b, lanes, lambda *a: _call(b, name, _wide(i32, lanes), list(a)), acc, u, s)
    if PATH == "avx2":
        ones = ir.Constant(WORDS, [1] * 16)

        def add(a: Any, x: Any, y: Any) -> Any:
            for part in _halves(b, x) if wide else (x,):
                a = b.add(a, _madd(b, _maddubs(b, part, y), ones))
            return a

        return _in_pieces(b, 8, add, acc, u, s)
    for i in range(4):
        byte = b.ashr(b.shl(s, _const(i32, 24 - 8 * i)), _const(i32, 24))
        acc = b.add(acc, b.mul(_byte(b, u, ir.Constant(i64, i)), byte))
    return acc


def _dot2(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc + the sum of 2 products of signed 16-bit numbers in each lane, modulo 2^32."""
    if SET.dots:
        _, name, lanes = SET.dots
        return _in_pieces(b, lanes, lambda *a: _call(b, name, _wide(i32, lanes), list(a)), acc, u, s)
    if PATH == "avx2":
        return _in_pieces(b, 8, lambda a, x, y: b.add(a, _madd(b, x, y)), acc, u, s)
    sixteen = _const(i32, 16)
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

    return _intrinsic(write, count + 1, lambda *types_: (types_[-1](*types_), codegen))


def _element(b: Any, a: Any, t: int) -> Any:
    return b.extract_value(a, t) if isinstance(a.type, ir.ArrayType) else a


def _token(b: Any, address: Any, t: int, element: ir.Type, stride: Any = None) -> Any:
    ahead = ir.Constant(i64, 4 * t) if stride is None else b.mul(stride, ir.Constant(i64, t))
    return _splat(b, _read(b, b.add(address, ahead), element))


@_tile_operation
def fma_tile(b: Any, t: int, v: Any, x: Any, acc: Any) -> Any:
    """acc[t] + v * x[t], x the address of one float32 per token."""
    return _fma(b, v, _token(b, x, t, f32), acc)


@_tile_operation
def fma_rows_tile(b: Any, t: int, v: Any, x: Any, stride: Any, acc: Any) -> Any:
    """The same with the tokens' numbers `stride` bytes apart."""
    return _fma(b, v, _token(b, x, t, f32, stride), acc)


@_tile_operation
def divide_tile(b: Any, t: int, divisor: Any, acc: Any) -> Any:
    return b.fdiv(acc, divisor)


@_tile_operation
def first_tile(b: Any, t: int, count: Any, acc: Any) -> Any:
    """The first `count` lanes of each vector, 0 in the others."""
    return b.select(_first(b, count), acc, ZERO[floats])


@_tile_operation
def scale_tile(b: Any, t: int, p: Any, s: Any, acc: Any) -> Any:
    """acc[t] + p[t] * s for a tile p of floats or ints."""
    return _fma(b, p if p.type == VF else b.sitofp(p, VF), s, acc)


@_tile_operation
def scale2_tile(b: Any, t: int, p: Any, s: Any, x: Any, acc: Any) -> Any:
    """acc[t] + p[t] * (s * x[t]), x the address of one float32 per token."""
    return _fma(b, p if p.type == VF else b.sitofp(p, VF), b.fmul(s, _token(b, x, t, f32)), acc)


@_tile_operation
def spread_tile(b: Any, t: int, p: Any, x: Any, acc: Any) -> Any:
    """acc[t] + p[t] * x[t], x the address of one float32 per token."""
    return _fma(b, p, _token(b, x, t, f32), acc)


@_tile_operation
def add_tile(b: Any, t: int, p: Any, acc: Any) -> Any:
    return b.fadd(acc, p)


@_tile_operation
def dot4_tile(b: Any, t: int, u: Any, x: Any, acc: Any) -> Any:
    """acc[t] + the sum of 4 products of u with the bytes at x[t], for u up to 128 and x from -127 (where 16-bit sums
    cannot overflow).
    """
    return _dot4(b, acc, u, _token(b, x, t, i32), wide=False)


@_tile_operation
def dot4_wide_tile(b: Any, t: int, u: Any, x: Any, acc: Any) -> Any:
    """The same for all u."""
    return _dot4(b, acc, u, _token(b, x, t, i32), wide=True)


@_tile_operation
def dot2_tile(b: Any, t: int, u: Any, x: Any, acc: Any) -> Any:
    """acc[t] + the sum of 2 products of the 16-bit numbers of u and at x[t], signed."""
    return _dot2(b, acc, u, _token(b, x, t, i32))


@_tile_operation
def multiply_tile(b: Any, t: int, p: Any, v: Any, acc: Any) -> Any:
    """acc[t] + p[t] * v, ints."""
    return b.add(acc, b.mul(p, v))


# How many sums of 2 products of codes and bytes add up in 16 bits: 2 x (2^bits - 1) x 128 each, together below 2^15.
TOGETHER = {4: 8, 5: 4, 6: 2}


def group_tile(quads: int, bits: int) -> Any:
    """An intrinsic (panel, x, step, scale, acc) -> acc[t] + scale * the sum of a group's products, ints.

    panel: the address of `quads` vectors of codes, four of `bits` bits to a lane; x: of their bytes, four to a token,
    each quad's `step` behind the one before; scale: 16 bits a lane, signed. All exact, so in any order.
    """

    in_order = PATH == "avxvnni" or (PATH == "avx2" and bits in TOGETHER)
    write = _register_by_register if in_order else _group32

    def typed(typingctx: Any, panel: Any, x: Any, step: Any, scale: Any, acc: Any) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            panel, x, step, scale, acc = args
            n = sig.args[4].n
            codes = [b.add(panel, ir.Constant(i64, 4 * LANES * q)) for q in range(quads)]
            tokens = [b.add(x, b.mul(step, ir.Constant(i64, q))) for q in range(quads)]
            totals = write(b, codes, tokens, scale, [b.extract_value(acc, t) for t in range(n)], bits)
            for t, total in enumerate(totals):
                acc = b.insert_value(acc, total, t)
            return acc

        return acc(panel, x, step, scale, acc), codegen

    return intrinsic(typed)


def _group32(b: Any, codes: list[Any], tokens: list[Any], scale: Any, totals: list[Any], bits: int) -> list[Any]:
    """32-bit sums, times the scale."""
    vectors = [_read(b, at, VI) for at in codes]
    found = []
    for t, total in enumerate(totals):
        p = ZERO[ints]
        for code, x in zip(vectors, tokens, strict=True):
            p = _dot4(b, p, code, _token(b, x, t, i32), wide=bits > 7)
        found.append(b.add(total, b.mul(p, scale)))
    return found


def _register_by_register(
    b: Any, codes: list[Any], tokens: list[Any], scale: Any, totals: list[Any], bits: int
) -> list[Any]:
    """The same in registers of 8 lanes, of which there are 16.

    They are enough where a quad's products are all added before the next one's: sums of two tokens take 8. Of four
    quads the codes of 8 lanes and the tokens' bytes fit, and 8 lanes are done before the next.
    """
    factors = _pieces(b, _factors(b, scale), 8)
    split = [_pieces(b, total, 8) for total in totals]
    pieces = range(len(factors))
    together = len(codes) if SET.dots else TOGETHER[bits]
    for at_once in [pieces] if len(codes) > 4 else [[i] for i in pieces]:
        for first in range(0, len(codes), together):
            sums: dict[tuple[int, int], Any] = {}
            for q in range(first, min(first + together, len(codes))):
                own = {i: _read(b, b.add(codes[q], ir.Constant(i64, 32 * i)), _wide(i32, 8)) for i in at_once}
                for t in range(len(totals)):
                    x = _splat(b, _read(b, b.add(tokens[q], ir.Constant(i64, 4 * t)), i32), 8)
                    for i in at_once:
                        sums[t, i] = _here(b, _add_products(b, sums.get((t, i)), own[i], x))
            for (t, i), products in sums.items():
                split[t][i] = _add_scaled(b, split[t][i], products, factors[i])
    return [_join(b, total) for total in split]


def _add_products(b: Any, sums: Any, u: Any, s: Any) -> Any:
    """sums, None for 0, and 4 products in each of 8 lanes: 32 bits with VNNI, else two sums of 16 bits."""
    if SET.dots:
        zero = _const(i32, 0, 8)
        return _call(b, SET.dots[0], _wide(i32, 8), [zero if sums is None else sums, u, s])
    more = _maddubs(b, u, s)
    return more if sums is None else b.add(sums, more)


def _factors(b: Any, scale: Any) -> Any:
    """What sums are multiplied by: of two sums of 16 bits the scale twice."""
    return scale if SET.dots else b.or_(b.and_(scale, _const(i32, 0xFFFF)), b.shl(scale, _const(i32, 16)))


def _add_scaled(b: Any, total: Any, sums: Any, factor: Any) -> Any:
    return b.add(total, b.mul(sums, factor) if SET.dots else _madd(b, sums, factor))


def _here(b: Any, v: Any) -> Any:
    """v, computed at this place of the program: LLVM would load all codes first, and spill most of them."""
    return b.asm(ir.FunctionType(v.type, [v.type]), "", "=x,0", [v], True)


def _zeros_like(like: Any) -> Any:
    """A tile of ints, 0, as many as `like` has vectors."""
    made = Tile(ints, like.n)
    return made(like), lambda context, b, sig, args: ir.Constant(made.llvm, [ZERO[ints]] * like.n)


zeros_like = _intrinsic(_zeros_like, 1, _zeros_like)


def _tile_width(tile: Any) -> Any:
    """How many vectors a tile has, known when the kernel is compiled."""
    return intp(tile), lambda context, b, sig, args: ir.Constant(i64, tile.n)


tile_width = _intrinsic(_tile_width, 1, _tile_width)


def _add_neighbours(acc: Any) -> Any:
    """A tile of half as many vectors of floats: 0 + 1, 2 + 3, to the end."""
    made = Tile(floats, acc.n // 2)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        sums = ir.Constant(made.llvm, ir.Undefined)
        for t in range(made.n):
            pair = (b.extract_value(args[0], 2 * t + i) for i in (0, 1))
            sums = b.insert_value(sums, b.fadd(*pair), t)
        return sums

    return made(acc), codegen


add_neighbours = _intrinsic(_add_neighbours, 1, _add_neighbours)


def _start_tile(x: Any, factor: Any, like: Any) -> Any:
    """A tile of ints, as many as `like` has vectors: factor * x[t], x the address of one int32 per token."""
    made = Tile(ints, like.n)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        acc = ir.Constant(made.llvm, ir.Undefined)
        for t in range(like.n):
            token = b.mul(_token(b, args[0], t, i32), _splat(b, b.trunc(args[1], i32)))
            acc = b.insert_value(acc, token, t)
        return acc

    return made(x, factor, like), codegen


start_tile = _intrinsic(_start_tile, 3, _start_tile)


def _store_tile(address: Any, stride: Any, acc: Any, count: Any) -> Any:
    """Vector t to address + t * stride, all lanes or the first `count`."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        address, stride, acc, count = args
        for t in range(sig.args[2].n):
            _write_first(b, b.add(address, b.mul(stride, ir.Constant(i64, t))), b.extract_value(acc, t), count)
        return context.get_dummy_value()

    return types.void(intp, intp, acc, intp), codegen


store_tile = _intrinsic(_store_tile, 4, _store_tile)


def _load_tile(address: Any, like: Any) -> Any:
    """A tile of floats whose vectors follow one another in memory, as many as `like` has."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        acc = ir.Constant(like.llvm, ir.Undefined)
        for t in range(like.n):
            at = b.add(args[0], ir.Constant(i64, 4 * LANES * t))
            acc = b.insert_value(acc, _read(b, at, VF), t)
        return acc

    return like(address, like), codegen


load_tile = _intrinsic(_load_tile, 2, _load_tile)


def scratch(size: int) -> Any:
    """An intrinsic without arguments: the address of `size` bytes on the stack, aligned to 64, the same at every
    call.
    """

    def stack_memory(b: Any) -> Any:
        with b.goto_entry_block():
            memory = b.alloca(i8, ir.Constant(i32, size))
            memory.align = 64
        return b.ptrtoint(memory, i64)

    return _operation(intp)(stack_memory)


def zero_tile(vector: Vector, n: int) -> Any:
    """An intrinsic without arguments that gives a tile of n zero vectors."""
    tile = Tile(vector, n)

    def zeros(b: Any) -> Any:
        return ir.Constant(tile.llvm, [ZERO[vector]] * n)

    return _operation(tile)(zeros)


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
