"""Matrix products with activations in 8 bits, as ggml has them: Q8_0 (32 a step) or Q8_K (256), by the weight's format.

The integer sums are exact, so only the scaling rounds. Shapes of blocks and order of sums as in product.py.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from numba import cuda, float32, int32, uint32

from ..machine.ptx import ALIGNED, bits_of, bounded, device, dp4a, load, load2, load4, mul_rn, shared4, store, to_half
from .product import put4, stored_at, vector_kernel

WHOLE = float32(12582912.0)  # 1.5 x 2^23: a float of this size has no room for a fraction, so adding it rounds to even
BYTE, B8, B16, B24 = uint32(255), uint32(8), uint32(16), uint32(24)
BLOCK = 256
MATRIX_THREADS = (32, 8)
store8 = stored_at(range(8))


@cuda.jit
def quantise(
    x, x_at, x_row, I, tiles, width, words, steps, sums
):  # fmt: skip
    """Block (256 values, t): the bytes in lane order, each group's step, and the sums of its two 16s.

    width 32: Q8_0 by ggml's rule for activations (quant/q8_0.py), width 256: Q8_K (quant/q8_k.py). words: uint32
    [T, tiles, 2, 16 lanes, 4]; steps: [T, tiles, 16]; sums: int32 [T, tiles, 16, 2].
    """
    values = cuda.shared.array(256, float32)
    size = cuda.shared.array(256, float32)
    where = cuda.shared.array(256, int32)
    codes = cuda.shared.array(256, int32)
    block, t, me = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    column = block * 256 + me
    v = float32(0)
    if column < I:
        v = load(x, x_at + t * x_row + column)
    values[me], size[me], where[me] = v, abs(v), me
    cuda.syncthreads()
    reach = 128
    while reach > 0:  # the first value of the largest size, at the head of each width
        if reach < width and me & (width - 1) < reach:
            other = me + reach
            if size[other] > size[me] or (size[other] == size[me] and where[other] < where[me]):
                size[me], where[me] = size[other], where[other]
        cuda.syncthreads()
        reach >>= 1
    extreme = values[where[me - (me & (width - 1))]]
    if width == 32:
        extreme = abs(extreme)
        factor, step = finite(float32(127) / extreme), to_half(extreme / float32(127))
        whole = mul_rn(v, factor) + WHOLE
    else:
        factor = finite(float32(-127) / extreme)
        step = finite(float32(1) / factor)
        whole = min(mul_rn(v, factor) + WHOLE, WHOLE + float32(127))
    code = int32(bits_of(whole) & BYTE)
    codes[me] = code
    cuda.syncthreads()
    group = block * 8 + (me >> 5)
    if group < tiles * 16:
        if me & 31 == 0:
            store(steps, t * tiles * 16 + group, step)
        if me & 15 == 0:
            total = int32(0)
            for j in range(16):
                total += (codes[me + j] ^ 128) - 128
            store(sums, 2 * (t * tiles * 16 + group) + ((me >> 4) & 1), total)
        if me & 3 == 0:
            u = (me & 31) >> 2
            at = (((t * tiles + (group >> 4)) * 2 + (u >> 2)) * 16 + (group & 15)) * 4 + (u & 3)
            first, second = uint32(codes[me]), uint32(codes[me + 1]) << B8
            store(words, at, first | second | (uint32(codes[me + 2]) << B16) | (uint32(codes[me + 3]) << B24))


@device
def finite(x):
    """x, or 0 for an infinity."""
    return float32(0) if abs(x) > float32(3.4028235e38) else x


@device
def dots8(w, a, b, total):
    return (
        dp4a(w, a[0], total[0]),
        dp4a(w, a[1], total[1]),
        dp4a(w, a[2], total[2]),
        dp4a(w, a[3], total[3]),
        dp4a(w, b[0], total[4]),
        dp4a(w, b[1], total[5]),
        dp4a(w, b[2], total[6]),
        dp4a(w, b[3], total[7]),
    )


@device
def scaled8(s, step, dots, total):
    """A row's eight sums so far plus those of a group's half, scaled."""
    return (
        total[0] + s * step[0] * float32(dots[0]),
        total[1] + s * step[1] * float32(dots[1]),
        total[2] + s * step[2] * float32(dots[2]),
        total[3] + s * step[3] * float32(dots[3]),
        total[4] + s * step[4] * float32(dots[4]),
        total[5] + s * step[5] * float32(dots[5]),
        total[6] + s * step[6] * float32(dots[6]),
        total[7] + s * step[7] * float32(dots[7]),
    )


@device
def bytes8(x, steps, sums, tile, lane):
    """A lane's group of activations, twice four words, its step, and the sums of its halves."""
    at, n = tile * 32 + lane, tile * 16 + lane
    both = load2(sums, n)
    return load4(x, at), load4(x, at + 16), load(steps, n), both[0], both[1]


class Products8(NamedTuple):
    vector: Any
    matrix: Any


@cache
def products8(form: ModuleType) -> Products8:
    """The kernels of a format of codes, compiled when first launched."""
    codes_of, scales_of, offset = form.codes, form.scales, int32(form.OFFSET)
    has_minimum = form.FORMAT.minimum is not None

    @device
    def dot(words, extra, packed, halves, i, activations):
        a, b, step, low, high = activations
        c, s = codes_of(words, extra, i), scales_of(packed, halves, i)
        first = dp4a(c[3], a[3], dp4a(c[2], a[2], dp4a(c[1], a[1], dp4a(c[0], a[0], -offset * low))))
        last = dp4a(c[7], b[3], dp4a(c[6], b[2], dp4a(c[5], b[1], dp4a(c[4], b[0], -offset * high))))
        y = s[0] * float32(first) + s[1] * float32(last)
        if has_minimum:
            y -= s[2] * float32(low + high)
        return step * y

    @device
    def half_group(w_tile, x_tile, k, tx, ty, sums):
        """Sums over 16 values for 4 rows by 8 tokens, from minus the offset times the tokens' sums on."""
        p, q = shared4(sums, 2 * ty), shared4(sums, 2 * ty + 1)
        a = (
            -offset * p[0],
            -offset * p[1],
            -offset * p[2],
            -offset * p[3],
            -offset * q[0],
            -offset * q[1],
            -offset * q[2],
            -offset * q[3],
        )
        b = c = d = a
        end = k + 4
        while k < end:
            w, at = shared4(w_tile, k * 32 + tx), k * 16 + 2 * ty
            u, v = shared4(x_tile, at), shared4(x_tile, at + 1)
            a, b, c, d = dots8(w[0], u, v, a), dots8(w[1], u, v, b), dots8(w[2], u, v, c), dots8(w[3], u, v, d)
            k += 1
        return a, b, c, d

    @bounded(256, 1 if form.OFFSET else 2)  # two blocks at a time if the registers suffice, which an offset's do not
    def matrix(
        x, steps, sums, codes, extra, packed, halves, y, y_at, y_row,
        O, G, T,
    ):  # fmt: skip
        """As `vector`, for many tokens: a thread 4 rows by 8 tokens. Block (rows, tokens) of MATRIX_THREADS."""
        w_tile = cuda.shared.array(8 * 128, uint32, ALIGNED)
        w_first = cuda.shared.array(128, float32, ALIGNED)
        w_last = cuda.shared.array(128, float32, ALIGNED)
        w_least = cuda.shared.array(128, float32, ALIGNED)
        x_tile = cuda.shared.array(8 * 64, uint32, ALIGNED)
        x_step = cuda.shared.array(64, float32, ALIGNED)
        x_low = cuda.shared.array(64, int32, ALIGNED)
        x_high = cuda.shared.array(64, int32, ALIGNED)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        me = tx + 32 * ty
        o, t, tiles = cuda.blockIdx.x * 128, cuda.blockIdx.y * 64, (G + 15) >> 4
        row = min(o + (me & 127), O - 1) * G
        zero = float32(0)
        a = b = c = d = (zero, zero, zero, zero, zero, zero, zero, zero)
        for group in range(G):
            if me < 128:
                i = row + group
                w, s = codes_of(codes, extra, i), scales_of(packed, halves, i)
                put4(w_tile, me, 128, (w[0], w[1], w[2], w[3]))
                put4(w_tile, me + 512, 128, (w[4], w[5], w[6], w[7]))
                store(w_first, me, s[0])
                store(w_last, me, s[1])
                store(w_least, me, s[2])
            else:
                token, h = (me - 128) & 63, (me - 128) >> 6
                n = min(t + token, T - 1) * tiles + (group >> 4)
                w = load4(x, (n * 2 + h) * 16 + (group & 15))
                put4(x_tile, h * 256 + token, 64, (w[0], w[1], w[2], w[3]))
                n = n * 16 + (group & 15)
                if h == 0:
                    store(x_step, token, load(steps, n))
                    store(x_low, token, load(sums, 2 * n))
                else:
                    store(x_high, token, load(sums, 2 * n + 1))
            cuda.syncthreads()
            f, l = shared4(x_step, 2 * ty), shared4(x_step, 2 * ty + 1)
            step = (f[0], f[1], f[2], f[3], l[0], l[1], l[2], l[3])
            z, first = half_group(w_tile, x_tile, 0, tx, ty, x_low), shared4(w_first, tx)
            a, b = scaled8(first[0], step, z[0], a), scaled8(first[1], step, z[1], b)
            c, d = scaled8(first[2], step, z[2], c), scaled8(first[3], step, z[3], d)
            z, last = half_group(w_tile, x_tile, 4, tx, ty, x_high), shared4(w_last, tx)
            a, b = scaled8(last[0], step, z[0], a), scaled8(last[1], step, z[1], b)
            c, d = scaled8(last[2], step, z[2], c), scaled8(last[3], step, z[3], d)
            if has_minimum:
                least = shared4(w_least, tx)
                p, q = shared4(x_low, 2 * ty), shared4(x_low, 2 * ty + 1)
                u, v = shared4(x_high, 2 * ty), shared4(x_high, 2 * ty + 1)
                n8 = (
                    p[0] + u[0],
                    p[1] + u[1],
                    p[2] + u[2],
                    p[3] + u[3],
                    q[0] + v[0],
                    q[1] + v[1],
                    q[2] + v[2],
                    q[3] + v[3],
                )
                a, b = scaled8(-least[0], step, n8, a), scaled8(-least[1], step, n8, b)
                c, d = scaled8(-least[2], step, n8, c), scaled8(-least[3], step, n8, d)
            cuda.syncthreads()
        o += 4 * tx
        t += 8 * ty
        at, left = y_at + t * y_row + o, T - t
        if o < O:
            store8(y, at, y_row, left, a)
        if o + 1 < O:
            store8(y, at + 1, y_row, left, b)
        if o + 2 < O:
            store8(y, at + 2, y_row, left, c)
        if o + 3 < O:
            store8(y, at + 3, y_row, left, d)

    return Products8(vector_kernel(bytes8, dot), matrix)
