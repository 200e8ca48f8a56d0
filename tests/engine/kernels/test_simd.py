"""Every vector operation of the CPU backend against NumPy, on this process's path (test_cpu_paths.py runs all)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit

from qwenref.engine.kernels.cpu.machine import codegen, eights, simd, tiles
from qwenref.engine.kernels.cpu.machine.codegen import LANES
from qwenref.engine.kernels.cpu.machine.paths import NEON, PATH, SET, choose_path
from qwenref.errors import BadInput

N = 3
zero_f, zero_i = tiles.zero_tile(codegen.floats, N), tiles.zero_tile(codegen.ints, N)
RNG = np.random.default_rng(5)
A, B, C = (RNG.standard_normal(LANES).astype(np.float32) * 3 for _ in range(3))
I, J = (RNG.integers(-(2**31), 2**31, LANES, dtype=np.int64).astype(np.int32) for _ in range(2))
SPECIAL = np.resize(np.float32([0, -0.0, np.inf, -np.inf, 1e-45, -1e-40, 65504, 3e38]), LANES)


def address(x: np.ndarray) -> int:
    return x.ctypes.data


def floats_of(kernel: Callable[..., Any], *arrays: np.ndarray, rows: int = 1) -> np.ndarray:
    out = np.full((rows, LANES), np.nan, np.float32)
    kernel(address(out), *(address(a) for a in arrays))
    return out if rows > 1 else out[0]


def ints_of(kernel: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    return floats_of(kernel, *arrays).view(np.int32)


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == np.ascontiguousarray(b, a.dtype).tobytes()


def fused(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x y + z rounded once: exact in long double where that has 64 bits of significand, as the operands have 24."""
    return (x.astype(np.longdouble) * y + z).astype(np.float32)


def test_arithmetic() -> None:
    @njit
    def kernel(out, a, b, c):
        x, y, z = simd.load_f32(a), simd.load_f32(b), simd.load_f32(c)
        simd.store_f32(out, x + y)
        simd.store_f32(out + 128, x - y)
        simd.store_f32(out + 256, x * y)
        simd.store_f32(out + 384, x / y)
        simd.store_f32(out + 512, simd.fma(x, y, z))
        simd.store_f32(out + 640, simd.absolute(x))
        simd.store_f32(out + 768, simd.where_less(x, y, z, x))
        simd.store_f32(out + 896, simd.splat_f32(np.float32(1.5)))

    got = floats_of(kernel, A, B, C, rows=8)
    want = [A + B, A - B, A * B, A / B, fused(A, B, C), abs(A), np.where(A < B, C, A), np.full(LANES, 1.5)]
    assert all(equal(g, w) for g, w in zip(got, want, strict=True))


def test_multiply_add_is_rounded_once() -> None:
    @njit
    def kernel(out, a, b, c):
        simd.store_f32(out, simd.fma(simd.load_f32(a), simd.load_f32(b), simd.load_f32(c)))

    a = np.full(LANES, 1 + 2.0**-12, np.float32)
    assert (floats_of(kernel, a, a, -np.ones(LANES, np.float32)) == np.float32(2.0**-11 + 2.0**-24)).all()


def test_integers() -> None:
    @njit
    def kernel(out, a, b):
        x, y = simd.load_i32(a), simd.load_i32(b)
        simd.store_i32(out, x + y)
        simd.store_i32(out + 128, x - y)
        simd.store_i32(out + 256, x * y)
        simd.store_i32(out + 384, x | y)
        simd.store_i32(out + 512, x ^ y)
        simd.store_i32(out + 640, simd.shift_left(x, 5))
        simd.store_i32(out + 768, simd.shift_right(x, 5))
        simd.store_i32(out + 896, simd.halve(x))
        simd.store_i32(out + 1024, simd.mask(x, 0x0F0F0F0F))
        simd.store_i32(out + 1152, simd.signed_byte(x, 2))
        simd.store_i32(out + 1280, simd.add_pairs(x, y))
        simd.store_i32(out + 1408, simd.splat_i32(np.int32(-9)))
        simd.store_f32(out + 1536, simd.to_f32(x))

    got = floats_of(kernel, I, J, rows=13)
    with np.errstate(over="ignore"):
        want = [I + J, I - J, I * J, I | J, I ^ J, I << 5, (I.view(np.uint32) >> 5), I >> 1, I & 0x0F0F0F0F]
    want += [I.view(np.int8).reshape(-1, 4)[:, 2], np.r_[I, J].reshape(-1, 2).sum(1), np.full(LANES, -9)]
    assert all(equal(g.view(np.int32), w.astype(np.int64).astype(np.int32)) for g, w in zip(got, want, strict=False))
    assert equal(got[12], I.astype(np.float32))


@pytest.mark.parametrize("count", [0, 1, 31, 32, 40])
def test_first_lanes_touch_no_other_memory(count: int) -> None:
    @njit
    def kernel(out, a, n):
        v = simd.load_f32_first(a, n)
        simd.store_f32_first(out, v, n)
        simd.store_f32(out + 128, v)
        simd.store_f32(out + 256, simd.first(simd.load_f32(a), n, simd.splat_f32(np.float32(-1))))

    out = np.full((3, LANES), 7, np.float32)
    kernel(address(out), address(A), count)
    there = np.arange(LANES) < count
    assert equal(out[0], np.where(there, A, 7))
    assert equal(out[1], np.where(there, A, 0))
    assert equal(out[2], np.where(there, A, -1))


def test_reductions_have_one_tree() -> None:
    @njit
    def kernel(a, i):
        return simd.total(simd.load_f32(a)), simd.maximum(simd.load_f32(a)), simd.total_ints(simd.load_i32(i))

    v = A
    while len(v) > 1:
        v = v[: len(v) // 2] + v[len(v) // 2 :]
    small = I >> 8
    assert kernel(address(A), address(small)) == (v[0], A.max(), small.sum())


def test_narrow_loads() -> None:
    @njit
    def kernel(out, h, i):
        simd.store_f32(out, simd.load_f16(h))
        simd.store_f32(out + 128, simd.load_bf16(h))
        simd.store_f32(out + 256, simd.low_half(simd.load_i32(i)))
        simd.store_f32(out + 384, simd.high_half(simd.load_i32(i)))

    for start in range(0, 0x7C00, LANES * 8):  # finite halves of both signs, subnormals and infinity among them
        bits = np.arange(start, start + 8 * LANES, 8).astype(np.uint16)
        bits[1::2] |= 0x8000
        bits[-1] = 0x7C00
        pairs = np.stack([bits, bits[::-1]], axis=1).reshape(-1).view(np.int32)
        got = floats_of(kernel, bits, pairs, rows=4)
        half = bits.view(np.float16).astype(np.float32)
        assert equal(got[0], half)
        assert equal(got[1], (bits.astype(np.uint32) << 16).view(np.float32))
        assert equal(got[2], half)
        assert equal(got[3], half[::-1])


def test_rounding_to_half() -> None:
    @njit
    def rounded(x):
        return simd.half_rounded(x)

    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    between = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2, RNG.uniform(0, 7e-5, 500), [65519, 65520, 1e6]])
    x = between.astype(np.float32)[:: 3 if PATH == "plain" else 1]
    with np.errstate(over="ignore"):
        assert equal(np.array([rounded(v) for v in x], np.float32), x.astype(np.float16).astype(np.float32))


def test_float_of_bits_and_bytes_of_words() -> None:
    @njit
    def kernel(out, i):
        simd.store_words_of_bytes(out, 16, simd.load_i32(i))

    out = np.zeros(4 * LANES, np.int8)
    kernel(address(out), address(I))
    assert equal(out.reshape(-1, 16)[: LANES // 4, :4], I.astype(np.int8).reshape(-1, 4))

    @njit
    def number(bits):
        return simd.float_of_bits(bits)

    assert number(int(np.float32(-1e-6).view(np.int32))) == np.float32(-1e-6)


@pytest.mark.parametrize(
    ("code", "top", "offset"),
    [("code4_8", 15, 8), ("code5_16", 31, 16), ("code6_32", 63, 32), ("code8_128", 255, 128)],
)
def test_codes(code: str, top: int, offset: int) -> None:
    operation = getattr(tiles, code)

    @njit
    def kernel(out, c):
        for byte in range(4):
            simd.store_f32(out + 128 * byte, operation(simd.load_i32(c), byte))

    codes = RNG.integers(0, top + 1, (LANES, 4), dtype=np.uint8)
    got = floats_of(kernel, codes, rows=4)
    assert equal(got, (codes.T.astype(np.int64) - offset).astype(np.float32))


def test_nibbles_and_their_table() -> None:
    table = np.float32([0.5, -1, 3e38, 1e-39, *range(12)])
    look_up, code4 = tiles.table16_f32(table.tolist()), tiles.unsigned_code(4)

    @njit
    def kernel(out, c):
        for i in range(8):
            simd.store_f32(out + 128 * i, code4(simd.load_i32(c), i))
            simd.store_f32(out + 1024 + 128 * i, look_up(simd.load_i32(c), i))

    words = RNG.integers(0, 1 << 32, LANES, dtype=np.uint32)
    nibbles = np.stack([words >> np.uint32(4 * i) & np.uint32(15) for i in range(8)])
    got = floats_of(kernel, words, rows=16)
    assert equal(got[:8], nibbles.astype(np.float32)) and equal(got[8:], table[nibbles])


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 8])
def test_codes_abreast(bits: int) -> None:
    count, operation = 32 // bits, tiles.unsigned_code(bits)

    @njit
    def kernel(out, c):
        for i in range(count):
            simd.store_f32(out + 128 * i, operation(simd.load_i32(c), i))

    words = RNG.integers(0, 1 << 32, LANES, dtype=np.uint32)
    codes = np.stack([words >> np.uint32(bits * i) & np.uint32((1 << bits) - 1) for i in range(count)])
    assert equal(floats_of(kernel, words, rows=count), codes.astype(np.float32))


@pytest.mark.parametrize(("exponent", "mantissa", "finite"), [(4, 3, 127), (5, 2, 124)])
def test_floats_of_8_bits(exponent: int, mantissa: int, finite: int) -> None:
    """All finite ones; 0 has no sign."""
    operation = tiles.float8(mantissa)

    @njit
    def kernel(out, c):
        for block in range(2):
            for byte in range(4):
                simd.store_f32(out + 128 * (4 * block + byte), operation(simd.load_i32(c + 128 * block), byte))

    code = np.arange(256, dtype=np.uint8)
    e, m, bias = code >> mantissa & (1 << exponent) - 1, code & (1 << mantissa) - 1, (1 << exponent - 1) - 1
    size = np.ldexp(m / (1 << mantissa) + (e > 0), np.maximum(e, 1).astype(int) - bias)
    want = np.where(code & 127 < finite, np.copysign(size, 127.5 - code), 0)
    codes = np.where(code & 127 < finite, code, 0).astype(np.uint8)
    got = floats_of(kernel, codes, rows=8)
    np.testing.assert_array_equal(got, want.reshape(2, LANES, 4).transpose(0, 2, 1).reshape(8, LANES))


def test_words_of_a_table() -> None:
    words = RNG.integers(0, 2**31, 300)
    look_up = tiles.table32(words.tolist)

    @njit
    def kernel(out, numbers):
        simd.store_i32(out, look_up(simd.load_i32(numbers)))

    numbers = RNG.integers(0, 300, LANES, dtype=np.int32)
    numbers[:2] = 0, 299
    assert equal(ints_of(kernel, numbers), words[numbers].astype(np.int32))


@pytest.mark.parametrize(("operation", "top"), [(tiles.dot4_tile, 127), (tiles.dot4_wide_tile, 255)])
def test_integer_dots_are_exact(operation: Any, top: int) -> None:
    @njit
    def kernel(out, u, x, sums):
        p = operation(simd.load_i32(u), x, tiles.start_tile(sums, -top, zero_f()))
        tiles.store_tile(out, 128, tiles.scale_tile(p, simd.splat_f32(np.float32(1)), zero_f()), 32)

    u = RNG.integers(0, top + 1, (LANES, 4), dtype=np.uint8)
    x = RNG.integers(-127, 128, (N, 4), dtype=np.int8)
    u[:3], x[0] = top, -127  # where 16-bit sums would overflow
    u[3], x[1] = 0, 127
    sums = x.sum(axis=1, dtype=np.int32)
    got = floats_of(kernel, u, x, sums, rows=N)
    assert equal(got, (x.astype(np.int64) @ u.T.astype(np.int64) - top * sums[:, None]).astype(np.float32))


@pytest.mark.parametrize(("quads", "bits"), [(8, 4), (8, 5), (4, 6), (8, 8)])
def test_groups_are_exact(quads: int, bits: int) -> None:
    """Where as many products add up in 16 bits as a format's codes allow, also with the largest of both signs."""
    group, scaled = tiles.group_tile(quads, bits), tiles.group_scale(bits)
    top = (1 << min(bits, 7 if SET.signed else 8)) - 1

    @njit
    def kernel(out, u, x, scale):
        p = group(u, x, scaled(simd.load_i32(scale)), tiles.zeros_like(zero_f()))
        tiles.store_tile(out, 128, tiles.scale_tile(p, simd.splat_f32(np.float32(1)), zero_f()), 32)

    u = RNG.integers(0, top + 1, (quads, LANES, 4), dtype=np.uint8)
    x = RNG.integers(-128, 128, (quads, N, 4), dtype=np.int8)
    scale = RNG.integers(-128, 128, LANES, dtype=np.int32)
    u[:, :3], u[:, 3], scale[:2] = top, 0, (-128, 127)
    if bits == 8:  # whose products with -128 have a path of their own
        x = np.maximum(x, -127)
    x[:, 0], x[:, 1] = x.min(), 127
    want = np.einsum("qtb,qlb->tl", x.astype(np.int64), u.astype(np.int64)) * scale
    words = u.view("<u4")[..., 0]
    panel = np.stack((words & 0xFF00FF, words >> 8 & 0xFF00FF), axis=1) if tiles.vectors_of(bits) == 2 else u
    assert equal(floats_of(kernel, panel, x, scale, rows=N), want.astype(np.float32))


def test_sixteen_bit_dots_and_products_of_ints_are_exact() -> None:
    @njit
    def kernel(out, v, x):
        w = simd.load_i32(v)
        p = tiles.dot2_tile(w, x, tiles.zeros_like(zero_f()))
        q = tiles.multiply_tile(p, w, p)
        for i, tile in enumerate((p, q)):
            tiles.store_tile(
                out + i * N * 128, 128, tiles.scale_tile(tile, simd.splat_f32(np.float32(1)), zero_f()), 32
            )

    v = RNG.integers(-200, 200, (LANES, 2), dtype=np.int16)
    x = RNG.integers(-200, 200, (N, 2), dtype=np.int16)
    v[0], x[0] = -32 * 128, -4096  # the largest that the kernels have
    want = x.astype(np.int64) @ v.T.astype(np.int64)
    got = floats_of(kernel, v, x, rows=2 * N).reshape(2, N, LANES)
    assert equal(got[0], want.astype(np.float32))
    assert equal(got[1], (want + want * v.view(np.int32)[:, 0]).astype(np.int32).astype(np.float32))


def test_bytes_as_pairs() -> None:
    @njit
    def kernel(out, v):
        for n in range(8):
            simd.store_i32(out + 256 * n, simd.even_bytes(simd.load_i32(v), n))
            simd.store_i32(out + 256 * n + 128, simd.odd_bytes(simd.load_i32(v), n))

    v = RNG.integers(-128, 128, (LANES, 4), dtype=np.int8)
    got = floats_of(kernel, v, rows=16).view(np.int16).reshape(8, 2, LANES, 2)
    for n in range(8):
        assert (got[n, 0] == v[:, ::2].astype(np.int16) << n).all()
        assert (got[n, 1] == v[:, 1::2].astype(np.int16) << n).all()


def test_tiles() -> None:
    @njit
    def kernel(out, a, b, x):
        v, w = simd.load_f32(a), simd.load_f32(b)
        p = tiles.fma_tile(v, x, zero_f())
        tiles.store_tile(out, 128, p, 32)
        q = tiles.fma_rows_tile(w, x, 8, p)
        tiles.store_tile(out + N * 128, 128, q, 32)
        tiles.store_tile(out + 2 * N * 128, 128, tiles.add_tile(p, q), 32)
        tiles.store_tile(out + 3 * N * 128, 128, tiles.divide_tile(v, q), 32)
        tiles.store_tile(out + 4 * N * 128, 128, tiles.first_tile(5, q), 32)
        tiles.store_tile(out + 5 * N * 128, 128, tiles.scale_tile(p, w, q), 32)
        tiles.store_tile(out + 6 * N * 128, 128, tiles.scale2_tile(p, w, x, q), 32)
        tiles.store_tile(out + 7 * N * 128, 128, tiles.spread_tile(p, x, q), 32)
        tiles.store_tile(out + 8 * N * 128, 128, tiles.load_tile(out + N * 128, q), 9)

    x = RNG.standard_normal(2 * N).astype(np.float32)
    got = floats_of(kernel, A, B, x, rows=9 * N).reshape(9, N, LANES)
    each = x[:N, None]
    p = A * each
    q = fused(np.broadcast_to(B, p.shape), x[::2, None], p)
    want = [
        p,
        q,
        p + q,
        q / A,
        np.where(np.arange(LANES) < 5, q, 0),
        fused(p, B, q),
        fused(p, B * each, q),
        fused(p, each, q),
    ]
    assert all(equal(g, w) for g, w in zip(got, want, strict=False))
    assert equal(got[8][:, :9], q[:, :9])
    assert np.isnan(got[8][:, 9:]).all()


def test_choice_of_path() -> None:
    avx2, all_ = {"avx2", "fma", "f16c"}, {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}
    assert choose_path(None, set()) == "plain"
    assert choose_path(None, avx2) == "avx2"
    assert choose_path(None, avx2 | {"avxvnni"}) == "avxvnni"
    assert choose_path(None, avx2 | all_ | {"avxvnni"}) == "avx512"
    assert choose_path(None, set(NEON)) == "neon" and choose_path(None, {"neon"}) == "plain"
    assert choose_path("avx2", avx2 | all_) == "avx2"
    assert choose_path("plain", avx2 | all_) == "plain"
    for forced in ("avx512", "sse9"):
        with pytest.raises(BadInput, match=f"QWENREF_SIMD={forced}: this machine has avx2, plain"):
            choose_path(forced, avx2)


ON_AVX2 = pytest.mark.skipif(not SET.eights, reason="made of AVX2's registers")


@ON_AVX2
def test_products_of_eight_rows() -> None:
    zeros = tiles.zero_tile(eights.floats8, N)

    @njit
    def integers(out, codes, x, factors, start):
        p = eights.add_products(simd.load_i32(codes), x, eights.sums_like(zeros()))
        p = eights.add_products(simd.load_i32(codes + 128), x + 4 * N, p)
        total = eights.widen(p, factors, tiles.start_tile(start, -3, zeros()))
        total = eights.widen_high(p, factors, total)
        tiles.store_tile(out, 32, tiles.scale_tile(total, eights.load_f32_8(start + 4 * N), zeros()), 8)

    codes = RNG.integers(0, 16, (2, LANES, 4), dtype=np.uint8)
    x = RNG.integers(-128, 128, (2, N, 4), dtype=np.int8)
    pairs = RNG.integers(-500, 500, (8, 2), dtype=np.int16)
    start = RNG.integers(-99, 99, N, dtype=np.int32)
    pairs[:, 1] = pairs[:, 0]
    ones = np.concatenate([start, np.ones(8, np.float32).view(np.int32)])
    out = np.zeros((N, 8), np.float32)
    integers(*(address(a) for a in (out, codes, x, pairs, ones)))
    sums = np.einsum("qrc,qtc->tr", codes[:, :8].astype(np.int64), x.astype(np.int64))
    assert equal(out, (sums * pairs[:, 0] * 17 - 3 * start[:, None]).astype(np.float32))


@ON_AVX2
@pytest.mark.parametrize("half", [0, 1])
def test_values_of_half_a_row_block_meet_tokens(half: int) -> None:
    zeros, add = tiles.zero_tile(tiles.part_of(2), N), (eights.add_low_values, eights.add_high_values)[half]

    @njit
    def kernel(out, v, x):
        p = add(simd.load_f32(v), x, add(simd.load_f32(v), x, zeros()))
        tiles.store_tile(out, 64, p, 16)

    out = np.zeros((N, 16), np.float32)
    kernel(*(address(a) for a in (out, A, B)))
    own = np.tile(A[16 * half : 16 * half + 16], (N, 1))
    once = fused(own, B[:N, None], np.zeros_like(own))
    assert equal(out, fused(own, B[:N, None], once))


@ON_AVX2
@pytest.mark.parametrize("index", range(4))
def test_a_byte_as_both_numbers_of_16_bits(index: int) -> None:
    pair = (eights.pair_of_byte0, eights.pair_of_byte1, eights.pair_of_byte2, eights.pair_of_byte3)[index]

    @njit
    def kernel(out, v):
        simd.store_i32(out, pair(simd.load_i32(v)))

    want = np.repeat(I.view(np.int8).reshape(-1, 4)[:, index].astype(np.int16), 2)
    assert ints_of(kernel, I).tobytes() == want.tobytes()
