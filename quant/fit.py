"""What the encoders share: careful division and rounding, and the search for the scales of a K-quant's groups.

The search is the idea that ggml's K-quants made known: round with trial steps a little finer and coarser than the range
asks for, solve each trial for the scale (and offset) that suit the rounded values best in least squares, keep the best.
Here every value weighs the same, so it is the plain squared error that falls; and once the block's halves are known,
each group also tries the neighbours of its rounded scale and minimum, which is what makes up for their coarse grid.

Arrays of groups are [width, groups], a group down each column: its sums are then sums of long rows, fast in NumPy.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]

NEIGHBOURS = np.array([0, -1, 1], np.float32)


def ratio(a: float, b: Floats) -> Floats:
    """a / b, and 0 where b is 0 or so small that the quotient is infinite."""
    with np.errstate(divide="ignore", over="ignore"):
        quotient = np.float32(a) / b
    return np.where(np.isinf(quotient), np.float32(0), quotient)


def signed_extreme(values: Floats) -> Floats:
    """[n, width] -> [n]: the first value of the largest size in each row, with its sign."""
    first = np.abs(values).argmax(axis=1)
    return np.take_along_axis(values, first[:, None], axis=1)[:, 0]


def round_half_away(y: Floats) -> Floats:
    """C's roundf. Exact, where trunc(y + 0.5) would take 0.49999997 to 1."""
    whole = np.trunc(y)
    return whole + np.trunc(2 * (y - whole))


def affine_groups(
    values: Floats, top: int
) -> tuple[Halves, Halves, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Blocks of 8 groups of 32 as x ~ (d * scale) * q - dmin * minimum, scale and minimum 0 to 63, q 0 to top.

    values [n, 256] -> d, dmin: half [n]; scale, minimum: uint8 [n, 8]; q: uint8 [n, 8, 32].
    """
    n = len(values)
    x = np.ascontiguousarray(values.reshape(n * 8, 32).T)
    scale, minimum = _fit_affine(x, top)
    d, dmin = (_half(v.reshape(n, 8).max(axis=1) / 63) for v in (scale, minimum))
    step, step_min = (np.repeat(v.astype(np.float32), 8) for v in (d, dmin))
    near, near_min = np.rint(scale * ratio(1, step)), np.rint(minimum * ratio(1, step_min))

    least = np.full_like(scale, np.inf)
    for i, j in product(NEIGHBOURS, NEIGHBOURS):
        trial, trial_min = np.clip(near + i, 0, 63), np.clip(near_min + j, 0, 63)
        q = _round_affine(x, step * trial, step_min * trial_min, top)
        error = np.square(q * (step * trial) - step_min * trial_min - x).sum(axis=0)
        better = error < least
        least, scale, minimum = (
            np.where(better, *pair) for pair in ((error, least), (trial, scale), (trial_min, minimum))
        )
    q = _round_affine(x, step * scale, step_min * minimum, top)
    scale_n8, min_n8 = (v.reshape(n, 8).astype(np.uint8) for v in (scale, minimum))
    return d, dmin, scale_n8, min_n8, q.T.reshape(n, 8, 32).astype(np.uint8)


def _half(v: Floats) -> Halves:
    """To half precision, to nearest; among the subnormal halves away from 0, or scales would not reach the values."""
    half = v.astype(np.float16)
    short = (np.abs(half) < np.abs(v)) & (np.abs(v) < 2**-14)
    return np.where(short, np.nextafter(half, np.copysign(np.float16(np.inf), half)), half)


def _round_affine(x: Floats, scale: Floats, minimum: Floats, top: int) -> Floats:
    return np.clip(np.rint((x + minimum) * ratio(1, scale)), 0, top)


def _fit_affine(x: Floats, top: int) -> tuple[Floats, Floats]:
    """[32, g] -> scale >= 0 and minimum >= 0 of each group, x ~ scale * q - minimum."""
    low = np.minimum(x.min(axis=0), 0)
    span = x.max(axis=0) - low
    shifted, per_span = x - low, ratio(1, span)
    count, sum_x = len(x), x.sum(axis=0)
    scale, minimum, least = span / top, -low, np.full_like(low, np.inf)  # kept where no trial is any good
    for trial in np.linspace(top - 1, top + 1, 21, dtype=np.float32):
        q = np.clip(np.rint(shifted * (per_span * trial)), 0, top)
        sum_q, sum_qq, sum_xq = q.sum(axis=0), np.square(q).sum(axis=0), (x * q).sum(axis=0)
        det = count * sum_qq - sum_q * sum_q
        free = (det > 0) & (sum_q * sum_xq >= sum_qq * sum_x)  # the best minimum is not below 0; else 0 is the best
        s = np.where(free, (count * sum_xq - sum_x * sum_q) * ratio(1, det), sum_xq * ratio(1, sum_qq))
        m = np.where(free, (sum_q * sum_xq - sum_qq * sum_x) * ratio(1, det), np.float32(0))
        error = np.square(q * s - m - x).sum(axis=0)
        better = (error < least) & (sum_qq > 0)
        least, scale, minimum = (np.where(better, *pair) for pair in ((error, least), (s, scale), (m, minimum)))
    return scale, minimum


def linear_groups(values: Floats) -> tuple[Halves, NDArray[np.int8], NDArray[np.int8]]:
    """Blocks of 16 groups of 16 as x ~ (d * scale) * q, scale -128 to 127, q -32 to 31.

    values [n, 256] -> d: half [n]; scale: int8 [n, 16]; q: int8 [n, 16, 16].
    """
    n = len(values)
    x = np.ascontiguousarray(values.reshape(n * 16, 16).T)
    scale = _fit_linear(x)
    d = _half(signed_extreme(scale.reshape(n, 16)) / np.float32(-128))
    step = np.repeat(d.astype(np.float32), 16)
    near = np.rint(scale * ratio(1, step))

    least = np.full_like(scale, np.inf)
    for i in NEIGHBOURS:
        trial = np.clip(near + i, -128, 127)
        error = np.square(_round_linear(x, step * trial) * (step * trial) - x).sum(axis=0)
        better = error < least
        least, scale = np.where(better, error, least), np.where(better, trial, scale)
    q = _round_linear(x, step * scale)
    return d, scale.reshape(n, 16).astype(np.int8), q.T.reshape(n, 16, 16).astype(np.int8)


def _round_linear(x: Floats, scale: Floats) -> Floats:
    return np.clip(np.rint(x * ratio(1, scale)), -32, 31)


def _fit_linear(x: Floats) -> Floats:
    """[16, g] -> the signed scale of each group, x ~ scale * q; the extreme falls on the side of -32."""
    extreme = signed_extreme(x.T)
    per_extreme = ratio(1, extreme)
    scale, most = extreme / np.float32(-32), np.zeros_like(extreme)
    for trial in np.linspace(-31, -33, 21, dtype=np.float32):
        q = np.clip(np.rint(x * (per_extreme * trial)), -32, 31)
        sum_xq = (x * q).sum(axis=0)
        s = sum_xq * ratio(1, np.square(q).sum(axis=0))
        better = s * sum_xq > most  # the squared error is sum x^2 - s * sum xq
        scale, most = np.where(better, s, scale), np.where(better, s * sum_xq, most)
    return scale
