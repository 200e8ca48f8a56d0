"""How an operation on vectors becomes LLVM's code: types, and what the writers of operations share.

A vector is an LLVM <32 x i32> or <32 x float>; LLVM splits it into the machine's registers (two of 512 bits, four of
256). A tile is n vectors side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 32

i1, i8, i16, i32, i64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
f16, f32 = ir.HalfType(), ir.FloatType()
intp = types.intp


def vector_type(element: ir.Type, lanes: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, lanes)


def constant(element: ir.Type, values: Any, lanes: int = LANES) -> ir.Constant:
    values = values if isinstance(values, list) else [values] * lanes
    return ir.Constant(vector_type(element, len(values)), values)


class Vector(types.Type):
    def __init__(self, name: str, element: ir.Type, lanes: int = LANES) -> None:
        self.llvm = vector_type(element, lanes)
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
ZERO = {ints: constant(i32, 0), floats: constant(f32, 0.0)}


def part_of(parts: int) -> Vector:
    """The kind of vector that is one of so many parts of 32 lanes of floats."""
    return floats if parts == 1 else Vector(f"floats{LANES // parts}", f32, LANES // parts)


def ints_of(vector: Vector) -> Vector:
    """The kind of vector of ints that has as many lanes."""
    lanes = vector.llvm.count
    return ints if lanes == LANES else Vector(f"ints{lanes}", i32, lanes)


# ---- helpers of the code generators


def pointer(b: ir.IRBuilder, address: Any, element: ir.Type) -> Any:
    return b.inttoptr(address, element.as_pointer())


def read_from(b: ir.IRBuilder, address: Any, element: ir.Type) -> Any:
    value = b.load(pointer(b, address, element))
    value.align = 1
    return value


def write_to(b: ir.IRBuilder, address: Any, value: Any) -> None:
    b.store(value, pointer(b, address, value.type)).align = 1


def splat_of(b: ir.IRBuilder, scalar: Any, lanes: int = LANES) -> Any:
    u = ir.Constant(vector_type(scalar.type, lanes), ir.Undefined)
    return b.shuffle_vector(b.insert_element(u, scalar, ir.Constant(i32, 0)), u, constant(i32, 0, lanes))


def call(b: ir.IRBuilder, name: str, result: ir.Type, args: list[Any]) -> Any:
    return b.call(b.module.declare_intrinsic(name, (), ir.FunctionType(result, [a.type for a in args])), args)


def fused(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    return call(b, f"llvm.fma.v{x.type.count}f32", x.type, [x, y, z])


def pieces_of(b: ir.IRBuilder, v: Any, lanes: int) -> list[Any]:
    u = ir.Constant(v.type, ir.Undefined)
    return [b.shuffle_vector(v, u, constant(i32, list(range(i, i + lanes)))) for i in range(0, v.type.count, lanes)]


def joined(b: ir.IRBuilder, parts: list[Any]) -> Any:
    while len(parts) > 1:
        n = parts[0].type.count
        order = constant(i32, list(range(2 * n)))
        parts = [b.shuffle_vector(x, y, order) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def in_pieces(b: ir.IRBuilder, lanes: int, f: Callable[..., Any], *vectors: Any) -> Any:
    return joined(b, [f(*p) for p in zip(*(pieces_of(b, v, lanes) for v in vectors), strict=True)])


def in_place(b: ir.IRBuilder, v: Any, constraint: str) -> Any:
    """v, computed at this place of the program, and nothing else that LLVM knows of: it would load all codes first, and
    spill most of them.

    constraint: of an empty piece of assembly, whose result is v in a register of that kind.
    """
    return b.asm(ir.FunctionType(v.type, [v.type]), "", constraint, [v], True)


def quads_at(b: ir.IRBuilder, quads: int, n: int, panel: Any, x: Any, vectors: int = 1) -> tuple[list[Any], list[Any]]:
    """The addresses of each quad's codes, so many vectors, and of its n tokens, four bytes each."""
    sizes = (panel, 4 * LANES * vectors), (x, 4 * n)
    codes, tokens = ([b.add(at, ir.Constant(i64, size * q)) for q in range(quads)] for at, size in sizes)
    return codes, tokens


def make_intrinsic(write: Callable[..., Any], count: int, typing: Callable[..., Any]) -> Any:
    """An @intrinsic of `count` arguments, under the name and docstring of `write`, typed by `typing`."""

    def typed(typingctx: Any, *args: Any) -> Any:
        return typing(*args)

    names = ["typingctx", *(f"a{i}" for i in range(count))]
    typed.__signature__ = Signature([Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in names])  # type: ignore[attr-defined]
    typed.__name__, typed.__doc__ = write.__name__, write.__doc__
    return intrinsic(typed)


def operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic from a function (builder, *values) -> value that writes its IR."""

    def make(write: Callable[..., Any]) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            value = write(b, *args)
            return context.get_dummy_value() if result is types.void else value

        return make_intrinsic(write, len(arguments), lambda *_: (result(*arguments), codegen))

    return make
