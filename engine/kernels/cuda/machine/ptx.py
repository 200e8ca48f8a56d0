"""The few machine operations that the kernels need beyond Python's, and their plain twins for the simulator.

Loads of 16 bytes, bytes and halves as float32, a dot product of four bytes (dp4a), a product that is never contracted
into a fused multiply-add, and sums over a warp in one fixed tree. PTX names are those of NVIDIA's PTX ISA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, cuda, float32, int32, types, uint16, uint32

from .card import require_package

SIMULATED = bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]
ALIGNED = None if SIMULATED else 16  # of shared arrays that shared4 reads; the simulator takes no alignment

# A byte b in the low end of these bits is the float 2^23 + b.
TWO_TO_23 = 0x4B000000

if SIMULATED:

    def device(function: Any) -> Any:
        return function

    def bounded(threads: int, blocks: int) -> Any:
        """A kernel launched with so many threads a block, and registers few enough for so many blocks at a time."""
        return cuda.jit

    def load(array: Any, i: int) -> Any:
        """Element i of an array on the card that this kernel does not write."""
        if i < 0:
            raise IndexError(f"element {i}")
        return array[i]

    def load2(array: Any, i: int) -> Any:
        """Elements 2 i and 2 i + 1 of such an array, in one load."""
        return load(array, 2 * i), array[2 * i + 1]

    def load4(array: Any, i: int) -> Any:
        """Elements 4 i to 4 i + 3 of such an array, in one load."""
        return load(array, 4 * i), array[4 * i + 1], array[4 * i + 2], array[4 * i + 3]

    shared4 = load4

    def store(array: Any, i: int, value: Any) -> None:
        """array[i] = value. Python's own index may be negative, and to see whether it is takes five instructions."""
        load(array, i)
        array[i] = value

    def quotient(x: Any, by: Any) -> Any:
        """x // by for 0 <= x < 2^32 and 0 < by < 2^32: a division of 64 bits takes some hundred instructions."""
        return x // by

    def float_of(bits: Any) -> Any:
        return np.uint32(bits).view(np.float32)

    def bits_of(x: Any) -> Any:
        return np.float32(x).view(np.uint32)

    def half(bits: Any) -> Any:
        """The float32 of a half's bits."""
        return np.float32(np.uint16(bits).view(np.float16))

    def to_half(x: Any) -> Any:
        """float32 rounded to a half, ties to even, as a float32."""
        with np.errstate(over="ignore"):
            return np.float32(np.float16(x))

    def byte(word: Any, at: int) -> Any:
        """2^23 + the byte `at` (0 to 3) of the word, as a float32."""
        return np.float32((1 << 23) + (int(word) >> 8 * at & 255))

    def dp4a(codes: Any, values: Any, total: Any) -> Any:
        """total + the sum of products of four unsigned bytes and four signed ones."""
        u, s, dot = int(codes), int(values), int(total)
        for shift in (0, 8, 16, 24):
            dot += (u >> shift & 255) * ((s >> shift & 255 ^ 128) - 128)
        return np.int32(dot)

    def mul_rn(x: Any, y: Any) -> Any:
        """x y, rounded by itself."""
        return np.float32(x) * np.float32(y)

    def _butterfly(combine: Any, steps: tuple[int, ...]) -> Any:
        @cuda.jit(device=True)
        def reduce(x):
            lanes = cuda.shared.array(1024, float32)
            me = cuda.threadIdx.x + cuda.blockDim.x * (cuda.threadIdx.y + cuda.blockDim.y * cuda.threadIdx.z)
            lanes[me] = x
            cuda.syncthreads()
            if me & 31 == 0:
                warp = np.array([lanes[me + i] for i in range(32)], np.float32)
                for step in steps:
                    warp = combine(warp, warp[LANES ^ step])
                for i in range(32):
                    lanes[me + i] = warp[i]
            cuda.syncthreads()
            return np.float32(lanes[me])

        return reduce

    # Over the warp's lanes, pairwise: l with l ^ 16, then 8, 4, 2, 1; half_sum over 16 lanes. In the simulator every
    # thread of the block must come by.
    LANES = np.arange(32)
    warp_sum, warp_max = (_butterfly(f, (16, 8, 4, 2, 1)) for f in (np.add, np.maximum))
    half_sum = _butterfly(np.add, (8, 4, 2, 1))

else:
    require_package()

    from numba.cuda.extending import intrinsic

    device = cuda.jit(device=True, forceinline=True)  # type: ignore[call-arg]

    def bounded(threads: int, blocks: int) -> Any:
        return cuda.jit(launch_bounds=(threads, blocks))  # type: ignore[call-arg]

    GLOBAL, SHARED = 1, 3

    def _element(context: Any, builder: Any, array: Any, value: Any, i: Any, index: Any, per: int) -> Any:
        """Pointer to element `per` i."""
        data = context.make_array(array)(context, builder, value).data
        return builder.gep(data, [builder.mul(context.cast(builder, index, i, types.int64), ir.IntType(64)(per))])

    def _load(count: int, space: int) -> Any:
        """`count` elements in one load: what lies on the card is read as unchanging."""

        @intrinsic
        def load(typing: Any, array: Any, i: Any) -> Any:
            if not isinstance(array, types.Array) or not isinstance(i, types.Integer):
                return None

            def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                element = context.get_data_type(array.dtype)
                kind = element if count == 1 else ir.VectorType(element, count)
                first = _element(context, builder, array, args[0], i, args[1], count)
                at = builder.addrspacecast(builder.bitcast(first, kind.as_pointer()), kind.as_pointer(space))
                loaded = builder.load(at, align=count * array.dtype.bitwidth // 8)
                if space == GLOBAL:
                    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
                if count == 1:
                    return loaded
                parts = [builder.extract_element(loaded, ir.IntType(32)(j)) for j in range(count)]
                return context.make_tuple(builder, signature.return_type, parts)

            return (array.dtype if count == 1 else types.UniTuple(array.dtype, count))(array, i), code

        return load

    load, load2, load4, shared4 = _load(1, GLOBAL), _load(2, GLOBAL), _load(4, GLOBAL), _load(4, SHARED)

    @intrinsic
    def store(typing: Any, array: Any, i: Any, value: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to = _element(context, builder, array, args[0], i, args[1], 1)
            builder.store(context.cast(builder, args[2], value, array.dtype), to)
            return context.get_dummy_value()

        return types.void(array, i, value), code

    @intrinsic
    def quotient(typing: Any, x: Any, by: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x32, by32 = (context.cast(builder, a, t, uint32) for a, t in zip(args, signature.args, strict=True))
            return builder.zext(builder.udiv(x32, by32), ir.IntType(64))

        return types.int64(x, by), code

    def _reinterpreted(source: Any, target: Any) -> Any:
        @intrinsic
        def cast(typing: Any, x: Any) -> Any:
            def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                value = context.cast(builder, args[0], x, source)
                return builder.bitcast(value, context.get_value_type(target))

            return target(x), code

        return cast

    float_of, bits_of = _reinterpreted(uint32, float32), _reinterpreted(float32, uint32)

    def _assembled(text: str, constraints: str, result: Any, *kinds: Any) -> Any:
        """A pure PTX instruction as a function of as many arguments as there are kinds (1 to 3)."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = [context.cast(builder, a, t, k) for a, t, k in zip(args, signature.args, kinds, strict=True)]
            kind = ir.FunctionType(context.get_value_type(result), [v.type for v in values])
            return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=False), values)

        if len(kinds) == 1:

            @intrinsic
            def one(typing: Any, x: Any) -> Any:
                return result(x), emit

            return one
        if len(kinds) == 2:

            @intrinsic
            def two(typing: Any, x: Any, y: Any) -> Any:
                return result(x, y), emit

            return two

        @intrinsic
        def three(typing: Any, x: Any, y: Any, z: Any) -> Any:
            return result(x, y, z), emit

        return three

    half = _assembled("cvt.f32.f16 $0, $1;", "=f,h", float32, uint16)
    dp4a = _assembled("dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", int32, uint32, uint32, int32)
    mul_rn = _assembled("mul.rn.f32 $0, $1, $2;", "=f,f,f", float32, float32, float32)
    to_half = _assembled("{ .reg .b16 t; cvt.rn.f16.f32 t, $1; cvt.f32.f16 $0, t; }", "=f,f", float32, float32)
    _permute = _assembled("prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", uint32, uint32, uint32, uint32)

    @device
    def byte(word, at):
        return float_of(_permute(word, uint32(TWO_TO_23), uint32(0x7650 + at)))

    @device
    def warp_sum(x):
        return half_sum(x + cuda.shfl_xor_sync(0xFFFFFFFF, x, 16))

    @device
    def half_sum(x):
        x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 8)
        x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 4)
        x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 2)
        x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 1)
        return x

    @device
    def warp_max(x):
        x = max(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 16))
        x = max(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 8))
        x = max(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 4))
        x = max(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 2))
        x = max(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 1))
        return x
