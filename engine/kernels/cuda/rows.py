"""Kernels of what runs along rows or over elements: RMS norm, sums, products, SiLU, rotary embedding, narrowing.

A row array is (data, at, row): elements of row t from at + t row on. Results are contiguous.
"""

from __future__ import annotations

from math import exp, sqrt

from numba import cuda, float32, float64, uint32

from .machine.ptx import bits_of, bounded, device, float_of, load, mul_rn, store, to_half, warp_sum

NORM_THREADS, THREADS = 1024, 256


@bounded(1024, 1)
def rms_norm(x, x_at, x_row, gain, eps, heads, D, y):
    """Block (t, head): sums of squares down each thread's columns, then over lanes in a tree, then over the warps'."""
    partial = cuda.shared.array(32, float32)
    t, head, me = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    x_at += t * x_row + head * D
    total = float32(0)
    i = me
    while i < D:
        v = load(x, x_at + i)
        total += v * v
        i += cuda.blockDim.x
    total = warp_sum(total)
    if me & 31 == 0:
        partial[me >> 5] = total
    cuda.syncthreads()
    total = float32(0)
    j = 0
    while j < cuda.blockDim.x >> 5:
        total += partial[j]
        j += 1
    root = sqrt(total / float32(D) + eps)
    i = me
    while i < D:
        store(y, (t * heads + head) * D + i, load(x, x_at + i) / root * load(gain, i))
        i += cuda.blockDim.x


@cuda.jit
def add(x, x_at, x_row, y, y_at, y_row, D, z):
    """x + y, block (columns, t); y_row 0 gives every row the same y."""
    i, t = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if i < D:
        store(z, t * D + i, load(x, x_at + t * x_row + i) + load(y, y_at + t * y_row + i))


@cuda.jit
def mul(x, x_at, x_row, y, y_at, y_row, D, z):
    i, t = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if i < D:
        store(z, t * D + i, load(x, x_at + t * x_row + i) * load(y, y_at + t * y_row + i))


@cuda.jit
def silu(x, x_at, x_row, D, y):
    i, t = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if i < D:
        v = load(x, x_at + t * x_row + i)
        store(y, t * D + i, v / (float32(1) + exp(-v)))


@cuda.jit
def relu(x, x_at, x_row, D, y):
    i, t = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if i < D:
        v = load(x, x_at + t * x_row + i)
        store(y, t * D + i, float32(0) if v < float32(0) else v)


@cuda.jit
def narrow(x, x_at, x_row, D, brain, y):
    """x rounded to half precision, or to bfloat16 if `brain`, ties to even: ggml's activations for such weights."""
    i, t = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if i < D:
        v = load(x, x_at + t * x_row + i)
        if brain:
            bits = bits_of(v)
            bits = (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) & uint32(0xFFFF0000)
            v = float_of(bits) if v == v else v  # noqa: PLR0124 (a NaN stays what it is)
        else:
            v = to_half(v)
        store(y, t * D + i, v)


# pi / 2 in two doubles, and the Taylor coefficients of cosine and sine, which suffice up to pi / 4.
HALF_PI, HALF_PI_REST, PER_HALF_PI = 1.5707963267948966, 6.123233995736766e-17, 0.6366197723675814
WHOLE = 6755399441055744.0  # 1.5 x 2^52: adding it and taking it away rounds to a whole number


@device
def cos_sin(angle):
    """Cosine and sine of a double up to 2^20 or so, well under a float32's rounding off.

    Whole quarter turns are taken off in two fused steps (Cody and Waite 1980), then Taylor. libdevice's own functions
    keep a table for huge angles in local memory.
    """
    turns = (angle * PER_HALF_PI + WHOLE) - WHOLE
    r = cuda.fma(-turns, HALF_PI_REST, cuda.fma(-turns, HALF_PI, angle))
    z = r * r
    c = 1 / 40320 + z * (-1 / 3628800 + z * (1 / 479001600))
    c = 1 + z * (-1 / 2 + z * (1 / 24 + z * (-1 / 720 + z * c)))
    s = 1 / 362880 + z * (-1 / 39916800 + z * (1 / 6227020800))
    s = r + r * z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * s)))
    quarter = int(turns) & 3
    if quarter == 0:
        return c, s
    if quarter == 1:
        return -s, c
    if quarter == 2:
        return -c, -s
    return s, -c


@cuda.jit
def rope(x, x_at, x_row, start, inv_freq, magnitude, N, h, y):
    """Block t: a thread turns pair j of every head by the float32 angle of position start[0] + t, and stretches
    it by the magnitude."""
    t = cuda.blockIdx.x
    x_at += t * x_row
    y_at = t * N * 2 * h
    j = cuda.threadIdx.x
    while j < h:
        cosine, sine = cos_sin(float64(mul_rn(float32(load(start, 0) + t), load(inv_freq, j))))
        c, s = mul_rn(float32(cosine), magnitude), mul_rn(float32(sine), magnitude)
        n = cuda.threadIdx.y
        while n < N:
            i = 2 * h * n + j
            a, b = load(x, x_at + i), load(x, x_at + i + h)
            store(y, y_at + i, a * c - b * s)
            store(y, y_at + i + h, b * c + a * s)
            n += cuda.blockDim.y
        j += cuda.blockDim.x
