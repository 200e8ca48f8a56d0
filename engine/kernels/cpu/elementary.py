"""exp in float32 lanes, cosine and sine in float64: own code, since the C library's differ between machines in the
last bit.
"""

from __future__ import annotations

from math import factorial

import numpy as np
from numba import njit

from .machine.kernel import helper
from .machine.simd import as_f32, as_i32, fma, halve, shift_left, splat_f32, splat_i32, where_less

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = (
    np.float32(0.693145751953125),
    np.float32(1.4286068203094173e-06),
)  # the first has 16 significant bits
ROUND = np.float32(1.5 * 2**23)  # added, it leaves a number rounded to an integer in the low bits
# (e^r - 1 - r) / r^2 interpolated at the Chebyshev points of |r| <= ln 2 / 2
E2, E3, E4, E5, E6, E7 = (
    np.float32(c) for c in (0.5, 0.16666667, 0.041666463, 0.0083333105, 0.0013933686, 0.0001989103)
)


@helper
def exp(x):
    """e^x within 1 ulp, 0 below -104, infinite above 89: Cody and Waite's reduction by ln 2 in two parts, a
    polynomial, a power of two.

    The power goes on in two factors, so that results below 2^-126 are rounded once, into a subnormal.
    """
    r = where_less(x, splat_f32(np.float32(-104.0)), splat_f32(np.float32(-104.0)), x)
    r = where_less(splat_f32(np.float32(89.0)), r, splat_f32(np.float32(89.0)), r)
    shifted = fma(r, splat_f32(LOG2_E), splat_f32(ROUND))
    n = shifted - splat_f32(ROUND)
    power = as_i32(shifted) - splat_i32(0x4B400000)
    r = fma(n, splat_f32(-LN2_HIGH), r)
    r = fma(n, splat_f32(-LN2_LOW), r)
    p = fma(splat_f32(E7), r, splat_f32(E6))
    p = fma(p, r, splat_f32(E5))
    p = fma(p, r, splat_f32(E4))
    p = fma(p, r, splat_f32(E3))
    p = fma(p, r, splat_f32(E2))
    p = fma(r * r, p, r) + splat_f32(np.float32(1.0))
    half = halve(power)
    return p * power_of_two(half) * power_of_two(power - half)


@helper
def power_of_two(n):
    return as_f32(shift_left(n + splat_i32(127), 23))


PI_2 = (
    1.5707963267341256,
    6.077100506303966e-11,
    2.0222662487959506e-21,
)  # pi / 2 in three parts, 33 bits in the first two
SIN = tuple((-1) ** k / factorial(2 * k + 1) for k in range(9))
COS = tuple((-1) ** k / factorial(2 * k) for k in range(10))


@njit(error_model="numpy")
def cos_sin(angle):
    """Cosine and sine of a float64 with |angle| < 2^20 to about 1e-16: reduction by pi / 2 in three parts, then
    Taylor's series.
    """
    n = np.floor(angle * 0.6366197723675814 + 0.5)
    r = ((angle - n * PI_2[0]) - n * PI_2[1]) - n * PI_2[2]
    z = r * r
    s, c = 0.0, 0.0
    for k in range(8, -1, -1):
        s = s * z + SIN[k]
    for k in range(9, -1, -1):
        c = c * z + COS[k]
    s *= r
    quarter = int(n) & 3
    if quarter == 0:
        return c, s
    if quarter == 1:
        return -s, c
    if quarter == 2:
        return -c, -s
    return s, -c
