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

    def load4(array: Any, i: int) -> Any:
        """Elements 4 i to 4 i + 3 of a global array of 32-bit elements that this kernel does not write."""
        return tuple(array[4 * i + j] for j in range(4))

    shared4 = load4

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
        return float_of(TWO_TO_23 | ((int(word) >> (8 * at)) & 255))

    def dp4a(codes: Any, values: Any, total: Any) -> Any:
        """total + the sum of products of four unsigned bytes and four signed ones."""
        u, s = int(codes).to_bytes(4, "little"), int(values).to_bytes(4, "little")
        return np.int32(int(total) + sum(a * ((b ^ 128) - 128) for a, b in zip(u, s, strict=True)))

    def mul_rn(x: Any, y: Any) -> Any:
        """x y, rounded by itself."""
        return np.float32(x) * np.float32(y)

    def _butterfly(combine: Any) -> Any:
        @cuda.jit(device=True)
        def reduce(x):
            lanes = cuda.shared.array(1024, float32)
            me = cuda.threadIdx.x + cuda.blockDim.x * (cuda.threadIdx.y + cuda.blockDim.y * cuda.threadIdx.z)
            for step in (16, 8, 4, 2, 1):
                lanes[me] = x
                cuda.syncthreads()
                x = np.float32(combine(x, lanes[me ^ step]))
                cuda.syncthreads()
            return x

        return reduce

    # Over the warp's lanes, pairwise: l with l ^ 16, then 8, 4, 2, 1. Every thread of the block must come by.
    warp_sum, warp_max = _butterfly(lambda x, y: x + y), _butterfly(max)

else:
    require_package()

    from numba.cuda.extending import intrinsic

    device = cuda.jit(device=True, forceinline=True)  # type: ignore[call-arg]

    def bounded(threads: int, blocks: int) -> Any:
        return cuda.jit(launch_bounds=(threads, blocks))  # type: ignore[call-arg]

    GLOBAL, SHARED = 1, 3

    def _vector_load(space: int) -> Any:
        @intrinsic
        def load(typing: Any, array: Any, i: Any) -> Any:
            if not isinstance(array, types.Array) or array.dtype.bitwidth != 32 or not isinstance(i, types.Integer):
                return None

            def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                data = context.make_array(array)(context, builder, args[0]).data
                i64, element = ir.IntType(64), context.get_data_type(array.dtype)
                index = context.cast(builder, args[1], i, types.int64)
                first = builder.gep(data, [builder.mul(index, i64(4))])
                vector = ir.VectorType(element, 4)
                at = builder.addrspacecast(builder.bitcast(first, vector.as_pointer()), vector.as_pointer(space))
                loaded = builder.load(at, align=16)
                if space == GLOBAL:
                    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
                parts = [builder.extract_element(loaded, ir.IntType(32)(j)) for j in range(4)]
                return context.make_tuple(builder, signature.return_type, parts)

            return types.UniTuple(array.dtype, 4)(array, i), code

        return load

    load4, shared4 = _vector_load(GLOBAL), _vector_load(SHARED)

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
        x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 16)
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
