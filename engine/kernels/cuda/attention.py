"""Kernels of attention, for a prompt as for one token. Keys and values of a layer are [capacity, K, H].

The query heads of a kv head are taken together: row r of them is token r // (N / K), head r % (N / K). start[0] is the
position of the first token; what stands past the last, start[0] + T - 1, is neither read nor written, so that a
recorded step may be given room for more. Every sum's order depends on absolute positions alone.
"""

from __future__ import annotations

from math import exp

from numba import cuda, float32

from .machine.ptx import ALIGNED, bounded, device, load, quotient, shared4, store, warp_max, warp_sum
from .matmul.product import dot4

KEYS, QUERIES = 32, 8  # of `scores`: a block's tile
SOFTMAX_THREADS = 256
SPAN = 256  # positions of one block of `mix`
MIX_ROWS, MIX_COLUMNS, SLICES = 4, 32, 16  # of `mix`: a block's tile at most, threads that share an element's positions


@cuda.jit
def append(
    k, k_at, k_row, v, v_at, v_row, start, width, keys, values,
    layer_at,
):  # fmt: skip
    """Block t: one position's keys and values, `width` each, into a layer's part of the cache."""
    t = cuda.blockIdx.x
    to = layer_at + (load(start, 0) + t) * width
    i = cuda.threadIdx.x
    while i < width:
        store(keys, to + i, load(k, k_at + t * k_row + i))
        store(values, to + i, load(v, v_at + t * v_row + i))
        i += cuda.blockDim.x


@cuda.jit
def advance(start, count):
    start[0] += count


@bounded(256, 3)
def scores(
    q, q_at, q_row, keys, keys_at, start, T, group, H, root, out,
    pitch,
):  # fmt: skip
    """q.k / root to out [N, T, pitch], 0 after the query. Block (keys, rows, kv head) of KEYS x QUERIES threads."""
    k_tile = cuda.shared.array(32 * 36, float32, ALIGNED)  # 36: keys of 32 a little apart, to spread over the banks
    q_tile = cuda.shared.array(8 * 32, float32, ALIGNED)
    tx, ty, kv = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.z
    first, r, last = cuda.blockIdx.x * 32, cuda.blockIdx.y * 8 + ty, load(start, 0) + T - 1
    if first > last:
        return
    width = cuda.gridDim.z * H
    t = quotient(min(r, T * group - 1), group)
    n = kv * group + min(r, T * group - 1) - t * group
    q_at += t * q_row + n * H
    total = float32(0)
    for h in range(0, H, 32):
        for j in range(0, 32, 8):
            s = first + j + ty
            value = float32(0)
            if s <= last and h + tx < H:
                value = load(keys, keys_at + s * width + kv * H + h + tx)
            store(k_tile, (j + ty) * 36 + tx, value)
        value = float32(0)
        if h + tx < H:
            value = load(q, q_at + h + tx)
        store(q_tile, ty * 32 + tx, value)
        cuda.syncthreads()
        for j in range(8):
            total = dot4(shared4(q_tile, ty * 8 + j), shared4(k_tile, tx * 9 + j), total)
        cuda.syncthreads()
    s = first + tx
    if r < T * group and s <= last:
        value = float32(0)
        if s <= load(start, 0) + t:
            value = total / root
        store(out, (n * T + t) * pitch + s, value)


@cuda.jit
def softmax(x, pitch, start, T, window, y):
    """Over the last `window` keys up to the query. Block (t, n): the largest, the sum of exponentials (over a thread's
    keys, over lanes, over warps), the ratio."""
    partial = cuda.shared.array(32, float32)
    t, me, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    first, query = (cuda.blockIdx.y * T + t) * pitch, load(start, 0) + t
    oldest = max(query + 1 - window, 0)
    top = load(x, first + query)
    s = me
    while s <= query:
        if s >= oldest:
            top = max(top, load(x, first + s))
        s += threads
    top = warp_max(top)
    if me & 31 == 0:
        partial[me >> 5] = top
    cuda.syncthreads()
    for j in range(SOFTMAX_THREADS >> 5):
        top = max(top, partial[j])
    cuda.syncthreads()
    total = float32(0)
    s = me
    while s <= query:
        if s >= oldest:
            e = exp(load(x, first + s) - top)
            store(y, first + s, e)
            total += e
        s += threads
    total = warp_sum(total)
    if me & 31 == 0:
        partial[me >> 5] = total
    cuda.syncthreads()
    total = float32(0)
    for j in range(SOFTMAX_THREADS >> 5):
        total += partial[j]
    s = me
    while s < load(start, 0) + T:
        share = float32(0)
        if oldest <= s <= query:
            share = y[first + s] / total
        store(y, first + s, share)
        s += threads


@bounded(512, 1)
def mix(probs, pitch, values, values_at, start, T, group, H, span, out):
    """Sums over `span` positions of probability times value, to out [spans, T, N, H].

    Block (span and columns, rows, kv head) of a divisor of H, up to MIX_COLUMNS, by SLICES threads; slice i takes
    positions i, i + SLICES, ...
    """
    partial = cuda.shared.array(4 * 16 * 32, float32)
    tx, ty, kv, columns = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.z, cuda.blockDim.x
    tiles = quotient(H, columns)
    part = quotient(cuda.blockIdx.x, tiles)
    h = (cuda.blockIdx.x - part * tiles) * columns + tx
    first, r, last = part * span, cuda.blockIdx.y * 4, load(start, 0) + T - 1
    if first > last:
        return
    N = cuda.gridDim.z * group
    width, rows = cuda.gridDim.z * H, T * group
    p0 = row_of(r, rows, group, kv, T) * pitch
    p1 = row_of(r + 1, rows, group, kv, T) * pitch
    p2 = row_of(r + 2, rows, group, kv, T) * pitch
    p3 = row_of(r + 3, rows, group, kv, T) * pitch
    a = b = c = d = float32(0)
    end = min(first + span, last + 1)
    s = first + ty
    values_at += kv * H + h
    while s < end:
        v = load(values, values_at + s * width)
        a += load(probs, p0 + s) * v
        b += load(probs, p1 + s) * v
        c += load(probs, p2 + s) * v
        d += load(probs, p3 + s) * v
        s += 16
    at = ty * 32 + tx
    partial[at], partial[at + 512], partial[at + 1024], partial[at + 1536] = a, b, c, d
    cuda.syncthreads()
    if ty < 4 and r + ty < rows:
        total = float32(0)
        for j in range(16):
            total += partial[ty * 512 + j * 32 + tx]
        t = quotient(r + ty, group)
        n = kv * group + r + ty - t * group
        store(out, ((part * T + t) * N + n) * H + h, total)


@device
def row_of(r, rows, group, kv, T):
    """Row r's index in [N, T]; past the last row, the last's."""
    r = min(r, rows - 1)
    t = quotient(r, group)
    return (kv * group + r - t * group) * T + t


@cuda.jit
def gather(parts, start, T, span, size, out):
    """The sum of each element's spans, in order; there are as many as the last position needs."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < size:
        total = float32(0)
        spans = quotient(load(start, 0) + T - 1, span) + 1
        j = 0
        while j < spans:
            total += load(parts, j * size + i)
            j += 1
        store(out, i, total)
