"""What the encoders share: careful division and rounding, and the search for a K-quant's scales.

The search is the idea ggml's K-quants made known: round with several trial steps a little finer or coarser than the range
asks for, solve for the scale (and minimum) that suit the rounded values best in least squares, and keep the best trial. Here
every value weighs the same, so it is the plain squared error that falls, and a second pass settles the groups' small
scales on the grid of their block's half-precision factors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


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
    """C's roundf. Exact: trunc(y + 0.5) would take 0.49999997 to 1."""
    whole = np.trunc(y)
    return whole + np.trunc(2 * (y - whole))


def affine_groups(values: Floats, top: int) -> tuple[Any, ...]:
    """Blocks of 8 groups of 32, as x ~ (d * scale) * q - dmin * minimum with q of 0 to top, scale and minimum of 0 to 63.

    values [n, 256] -> d, dmin: half [n]; scale, minimum: uint8 [n, 8]; q: uint8 [n, 8, 32].
    Inside, values of a group run down an array's first axis: sums over a group are then sums of long rows.
    """
    n = len(values)
    x = np.ascontiguousarray(values.reshape(n * 8, 32).T)
    scale, offset = _fit_affine(x, top)
    d, dmin = (np.float16(v.reshape(n, 8).max(axis=1) / 63) for v in (scale, -offset))
    fine, fine_min = (np.repeat(v.astype(np.float32), 8) for v in (d, dmin))
    scale_6 = np.clip(np.rint(scale * ratio(1, fine)), 0, 63)
    min_6 = np.clip(np.rint(-offset * ratio(1, fine_min)), 0, 63)
    q = _round_to(x, fine * scale_6, fine_min * min_6, top)
    return (
        d,
        dmin,
        scale_6.reshape(n, 8).astype(np.uint8),
        min_6.reshape(n, 8).astype(np.uint8),
        q.T.reshape(n, 8, 32).astype(np.uint8),
    )


def _round_to(x: Floats, scale: Floats, minimum: Floats, top: int) -> Floats:
    q = (x + minimum) * ratio(1, scale)
    return np.clip(np.rint(q, out=q), 0, top, out=q)


def _fit_affine(x: Floats, top: int, trials=None) -> tuple[Floats, Floats]:
    """Scale >= 0 and offset <= 0 of each column of x [32, g] that leave the least squared error."""
    low = np.minimum(x.min(axis=0), 0)
    span = x.max(axis=0) - low
    count, sum_x = len(x), x.sum(axis=0)
    shifted = x - low
    scale, offset = span / top, low
    best = np.full_like(low, np.inf)
    trials = np.linspace(-1, 1, 21) if trials is None else trials
    for trial in trials:
        q = shifted * ratio(1, span) * np.float32(top + trial)
        np.clip(np.rint(q, out=q), 0, top, out=q)
        sum_q, sum_qq, sum_xq = q.sum(axis=0), np.square(q).sum(axis=0), (x * q).sum(axis=0)
        det = count * sum_qq - sum_q * sum_q
        s = (count * sum_xq - sum_x * sum_q) * ratio(1, det)
        o = (sum_qq * sum_x - sum_q * sum_xq) * ratio(1, det)
        s = np.where(o > 0, sum_xq * ratio(1, sum_qq), s)
        o = np.minimum(o, 0)
        error = np.square(q * s + o - x).sum(axis=0)
        better = (error < best) & (det > 0)
        best, scale, offset = (np.where(better, a, b) for a, b in ((error, best), (s, scale), (o, offset)))
    return scale, offset


def linear_groups(values: Floats) -> tuple[Any, ...]:
    """Blocks of 16 groups of 16, as x ~ (d * scale) * q with q of -32 to 31 and scale of -128 to 127.

    values [n, 256] -> d: half [n]; scale: int8 [n, 16]; q: int8 [n, 16, 16].
    """
    n = len(values)
    x = np.ascontiguousarray(values.reshape(n * 16, 16).T)
    scale = _fit_linear(x)
    d = np.float16(signed_extreme(scale.reshape(n, 16)) / -128)
    fine = np.repeat(d.astype(np.float32), 16)
    scale_8 = np.clip(np.rint(scale * ratio(1, fine)), -128, 127)
    q = np.clip(np.rint(x * ratio(1, fine * scale_8)), -32, 31)
    return d, scale_8.reshape(n, 16).astype(np.int8), q.T.reshape(n, 16, 16).astype(np.int8)


def _fit_linear(x: Floats) -> Floats:
    extreme = signed_extreme(x.T)
    scale, best = extreme / -32, np.full(x.shape[1], -np.inf, np.float32)
    for trial in np.linspace(-0.9, 0.9, 19):
        q = x * ratio(1, extreme) * np.float32(-32 - trial)
        np.clip(np.rint(q, out=q), -32, 31, out=q)
        sum_qq, sum_xq = np.square(q).sum(axis=0), (x * q).sum(axis=0)
        s = sum_xq * ratio(1, sum_qq)
        gain = s * sum_xq  # the squared error is sum x^2 - gain
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, s, scale)
    return scale
