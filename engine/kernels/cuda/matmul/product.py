"""Matrix products with float32 activations: kernels written once, made for each weight format.

A group is 32 values of a row, G of them in it; a lane takes a group at a time, so that the loads of half a warp are 256
bytes in a row. `lay_out` puts the activations so that its loads of them are too: tile by tile of 16 groups, float4 u of
each group side by side.

vector: half a warp has 4 rows, which share the loads of x (and so do the halves: 8 rows a warp); 2^shift of the block's
4 warps share a row's tiles. Partial sums meet in one fixed order: over a lane's groups, over lanes in a tree, over
slices. matrix: 128 rows by 64 tokens a block, a thread 8 by 8, a group at a time through shared memory, each weight
decoded once for the 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from numba import cuda, float32

from ..machine.ptx import ALIGNED, bounded, byte, device, half_sum, load, load4, mul_rn, shared4, store

GROUP, TILE = 32, 16  # values of a group, groups of a tile
VECTOR_ROWS, VECTOR_THREADS = 32, (32, 4)  # rows a block with shift 0
MATRIX_ROWS, MATRIX_TOKENS, MATRIX_THREADS = 128, 64, (16, 8)
LAY_OUT_THREADS, EMBED_THREADS = 128, 64


@cuda.jit
def lay_out(x, x_at, x_row, I, tiles, laid, sums):
    """Block (tile, t): 512 activations into lane order, zeros past the row's end, and the sum of each group.

    x: rows of I floats from x_at on, x_row apart. laid: [T, tiles, 8, 16, 4]. sums: [T, tiles, 16].
    """
    part = cuda.shared.array(128, float32)
    tile, t, me = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    lane, u = me >> 3, me & 7
    column = tile * 512 + 4 * me
    to = (((t * tiles + tile) * 8 + u) * 16 + lane) * 4
    total = float32(0)
    for c in range(4):
        v = float32(0)
        if column + c < I:
            v = load(x, x_at + t * x_row + column + c)
        store(laid, to + c, v)
        total += v
    part[me] = total
    cuda.syncthreads()
    if me < TILE:
        total = float32(0)
        for j in range(8):
            total += part[8 * me + j]
        store(sums, (t * tiles + tile) * TILE + me, total)


@device
def dot4(a, b, total):
    return total + a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]


@device
def axpy8(w, a, b, total):
    return (
        total[0] + w * a[0],
        total[1] + w * a[1],
        total[2] + w * a[2],
        total[3] + w * a[3],
        total[4] + w * b[0],
        total[5] + w * b[1],
        total[6] + w * b[2],
        total[7] + w * b[3],
    )


@device
def decoded4(four, scale, minimum):
    """Four weights from their codes; ggml rounds the product before it takes the minimum away."""
    return (
        mul_rn(scale, four[0]) - minimum,
        mul_rn(scale, four[1]) - minimum,
        mul_rn(scale, four[2]) - minimum,
        mul_rn(scale, four[3]) - minimum,
    )


@device
def put4(to, at, step, four):
    """Four values, `step` apart."""
    store(to, at, four[0])
    store(to, at + step, four[1])
    store(to, at + 2 * step, four[2])
    store(to, at + 3 * step, four[3])


def stored_at(places: Sequence[int]) -> Any:
    """The device function (y, at, step, left, values): values[n] goes places[n] steps beyond `at`, if places[n] < left.

    Each step calls the one before it: only a constant index leaves a tuple in registers.
    """

    @device
    def none(y, at, step, left, values):
        pass

    store_first = none
    for n, place in enumerate(places):
        store_first = _and_then(store_first, n, place)
    return store_first


def _and_then(store_first: Any, n: int, place: int) -> Any:
    @device
    def store_next(y, at, step, left, values):
        store_first(y, at, step, left, values)
        if left > place:
            store(y, at + place * step, values[n])

    return store_next


store4 = stored_at(range(4))
store8 = stored_at((0, 1, 2, 3, 32, 33, 34, 35))  # a thread's tokens


class Decoder(NamedTuple):
    """Device functions of a format."""

    values: Any  # (codes, extra, i) -> group i's codes less their offset, or its values: eight times four floats
    scales: Any  # (scales, halves, i) -> scale of the first 16, of the last 16, minimum
    dot: Any  # (codes, extra, scales, halves, i, (x, sum of x)) -> the group's part of a product


def decoder(form: ModuleType) -> Decoder:
    """The device functions of a format's module, whether it holds codes with scales or floats."""
    if form.FORMAT.block == 1:
        return _plain(form)
    bias, has_minimum = float32((1 << 23) + form.OFFSET), form.FORMAT.minimum is not None
    codes, scales_of = form.codes, form.scales

    @device
    def four(word):
        return byte(word, 0) - bias, byte(word, 1) - bias, byte(word, 2) - bias, byte(word, 3) - bias

    @device
    def values(words, extra, i):
        c = codes(words, extra, i)
        return four(c[0]), four(c[1]), four(c[2]), four(c[3]), four(c[4]), four(c[5]), four(c[6]), four(c[7])

    @device
    def scales(packed, halves, i):
        s = scales_of(packed, halves, i)
        return s if has_minimum else (s[0], s[1], float32(0))

    @device
    def dot(words, extra, packed, halves, i, activations):
        x, total = activations
        v, s = values(words, extra, i), scales_of(packed, halves, i)
        first = dot4(v[3], x[3], dot4(v[2], x[2], dot4(v[1], x[1], dot4(v[0], x[0], float32(0)))))
        last = dot4(v[7], x[7], dot4(v[6], x[6], dot4(v[5], x[5], dot4(v[4], x[4], float32(0)))))
        y = s[0] * first + s[1] * last
        if has_minimum:
            y -= s[2] * total
        return y

    return Decoder(values, scales, dot)


def _plain(form: ModuleType) -> Decoder:
    values_of = form.values

    @device
    def values(words, extra, i):
        return values_of(words, i)

    @device
    def scales(packed, halves, i):
        return float32(1), float32(1), float32(0)

    @device
    def dot(words, extra, packed, halves, i, activations):
        v, x = values_of(words, i), activations[0]
        first = dot4(v[3], x[3], dot4(v[2], x[2], dot4(v[1], x[1], dot4(v[0], x[0], float32(0)))))
        return dot4(v[7], x[7], dot4(v[6], x[6], dot4(v[5], x[5], dot4(v[4], x[4], first))))

    return Decoder(values, scales, dot)


@device
def floats(x, steps, sums, tile, lane):
    """A lane's group of activations, eight times four, and their sum."""
    at = tile * 128 + lane
    v = (
        load4(x, at),
        load4(x, at + 16),
        load4(x, at + 32),
        load4(x, at + 48),
        load4(x, at + 64),
        load4(x, at + 80),
        load4(x, at + 96),
        load4(x, at + 112),
    )
    return v, load(sums, tile * 16 + lane)


def vector_kernel(activations: Any, dot: Any, blocks: int = 4) -> Any:
    """The kernel of a product of one token, or a few; `dot` has a group's part of it from what `activations` loads.

    blocks: for how many a multiprocessor shall have registers.
    """

    @bounded(128, blocks)
    def vector(
        x, steps, sums, codes, extra, packed, halves, y, y_at, y_row,
        O, G, shift,
    ):  # fmt: skip
        """Rows of y from y_at on, y_row apart: y[t, o] = sum_i w[o, i] x[t, i]. Block (rows, t) of VECTOR_THREADS."""
        partial = cuda.shared.array(32, float32)
        me, warp, t = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.y
        lane, slices, tiles = me & 15, 1 << shift, (G + 15) >> 4
        first = (((cuda.blockIdx.x << 2) + warp) >> shift) * 8
        o = first + 4 * (me >> 4)
        i0, i1, i2, i3 = min(o, O - 1) * G, min(o + 1, O - 1) * G, min(o + 2, O - 1) * G, min(o + 3, O - 1) * G
        a = b = c = d = float32(0)
        tile = warp & (slices - 1)
        while tile < tiles:
            g = tile * 16 + lane
            if g < G:
                v = activations(x, steps, sums, t * tiles + tile, lane)
                a += dot(codes, extra, packed, halves, i0 + g, v)
                b += dot(codes, extra, packed, halves, i1 + g, v)
                c += dot(codes, extra, packed, halves, i2 + g, v)
                d += dot(codes, extra, packed, halves, i3 + g, v)
            tile += slices
        a, b, c, d = half_sum(a), half_sum(b), half_sum(c), half_sum(d)
        if lane == 0:
            at = 8 * warp + 4 * (me >> 4)
            partial[at], partial[at + 1], partial[at + 2], partial[at + 3] = a, b, c, d
        cuda.syncthreads()
        if warp & (slices - 1) == 0 and me < 8 and first + me < O:
            total = float32(0)
            j = 0
            while j < slices:
                total += partial[8 * (warp + j) + me]
                j += 1
            store(y, y_at + t * y_row + first + me, total)

    return vector


class Products(NamedTuple):
    vector: Any
    matrix: Any
    embed: Any


@cache
def products(form: ModuleType) -> Products:
    """The kernels of a format, compiled when first launched."""
    values, scales, dot = decoder(form)

    @bounded(128, 4)
    def matrix(
        x, x_at, x_row, I, codes, extra, packed, halves, y, y_at,
        y_row, O, G, T,
    ):  # fmt: skip
        """As `vector`, of x as it is, for many tokens. Block (rows, tokens) of MATRIX_THREADS."""
        w_tile = cuda.shared.array(32 * 128, float32, ALIGNED)
        x_tile = cuda.shared.array(32 * 68, float32, ALIGNED)  # 68: rows of 64 a little apart, to spread over the banks
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        me = tx + 16 * ty
        o, t = cuda.blockIdx.x * 128, cuda.blockIdx.y * 64
        row = min(o + me, O - 1) * G
        token, k, zero = me >> 3, 4 * (me & 7), float32(0)
        to = k * 68 + token
        x_at += k
        x0, x1 = x_at + min(t + token, T - 1) * x_row, x_at + min(t + token + 16, T - 1) * x_row
        x2, x3 = x_at + min(t + token + 32, T - 1) * x_row, x_at + min(t + token + 48, T - 1) * x_row
        a = b = c = d = e = f = g = h = (zero, zero, zero, zero, zero, zero, zero, zero)
        for group in range(G):
            i = row + group
            w, s = values(codes, extra, i), scales(packed, halves, i)
            put4(w_tile, me, 128, decoded4(w[0], s[0], s[2]))
            put4(w_tile, me + 512, 128, decoded4(w[1], s[0], s[2]))
            put4(w_tile, me + 1024, 128, decoded4(w[2], s[0], s[2]))
            put4(w_tile, me + 1536, 128, decoded4(w[3], s[0], s[2]))
            put4(w_tile, me + 2048, 128, decoded4(w[4], s[1], s[2]))
            put4(w_tile, me + 2560, 128, decoded4(w[5], s[1], s[2]))
            put4(w_tile, me + 3072, 128, decoded4(w[6], s[1], s[2]))
            put4(w_tile, me + 3584, 128, decoded4(w[7], s[1], s[2]))
            for n in range(4):
                column = group * 32 + n
                l = m = p = q = zero
                if column + k < I:
                    l, m, p, q = load(x, x0 + column), load(x, x1 + column), load(x, x2 + column), load(x, x3 + column)
                store(x_tile, to + n * 68, l)
                store(x_tile, to + n * 68 + 16, m)
                store(x_tile, to + n * 68 + 32, p)
                store(x_tile, to + n * 68 + 48, q)
            cuda.syncthreads()
            j = 0
            while j < 32:
                u, z = shared4(w_tile, j * 32 + tx), shared4(w_tile, j * 32 + 16 + tx)
                p, q = shared4(x_tile, j * 17 + ty), shared4(x_tile, j * 17 + 8 + ty)
                a, b, c, d = axpy8(u[0], p, q, a), axpy8(u[1], p, q, b), axpy8(u[2], p, q, c), axpy8(u[3], p, q, d)
                e, f, g, h = axpy8(z[0], p, q, e), axpy8(z[1], p, q, f), axpy8(z[2], p, q, g), axpy8(z[3], p, q, h)
                j += 1
            cuda.syncthreads()
        o += 4 * tx
        t += 4 * ty
        at, left = y_at + t * y_row + o, T - t
        if o < O:
            store8(y, at, y_row, left, a)
        if o + 1 < O:
            store8(y, at + 1, y_row, left, b)
        if o + 2 < O:
            store8(y, at + 2, y_row, left, c)
        if o + 3 < O:
            store8(y, at + 3, y_row, left, d)
        if o + 64 < O:
            store8(y, at + 64, y_row, left, e)
        if o + 65 < O:
            store8(y, at + 65, y_row, left, f)
        if o + 66 < O:
            store8(y, at + 66, y_row, left, g)
        if o + 67 < O:
            store8(y, at + 67, y_row, left, h)

    @cuda.jit
    def embed(tokens, codes, extra, packed, halves, y, D, G):
        """Row tokens[t], decoded bit for bit, to row t of y [T, D]. A thread a group; block (groups, t)."""
        group, t = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
        if group < G:
            i = load(tokens, t) * G + group
            v, s = values(codes, extra, i), scales(packed, halves, i)
            at, left = t * D + group * 32, D - group * 32
            store4(y, at, 1, left, decoded4(v[0], s[0], s[2]))
            store4(y, at + 4, 1, left - 4, decoded4(v[1], s[0], s[2]))
            store4(y, at + 8, 1, left - 8, decoded4(v[2], s[0], s[2]))
            store4(y, at + 12, 1, left - 12, decoded4(v[3], s[0], s[2]))
            store4(y, at + 16, 1, left - 16, decoded4(v[4], s[1], s[2]))
            store4(y, at + 20, 1, left - 20, decoded4(v[5], s[1], s[2]))
            store4(y, at + 24, 1, left - 24, decoded4(v[6], s[1], s[2]))
            store4(y, at + 28, 1, left - 28, decoded4(v[7], s[1], s[2]))

    blocks = 2 if form.FORMAT.name == "F32" else 4  # a group of weights takes 32 registers itself
    return Products(vector_kernel(floats, dot, blocks), matrix, embed)
