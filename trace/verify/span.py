"""The floating-point formats that engines round to, and Span: what a stage must hold if rounding alone is at work.

u is the unit roundoff of Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.2: fl(x) = x (1 +
d), |d| <= u, rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .parallel import each

PIECE = 1 << 17  # elements at a time: what an operation makes on its way to a result is of this size
Array = NDArray[np.floating[Any]]  # float64 throughout; NumPy's stubs cannot follow it


def _float32(x: Array) -> Array:
    return x.astype(np.float32).astype(np.float64)


def _float16(x: Array) -> Array:
    """Through float32, in which engines compute what they then store in 16 bits."""
    return x.astype(np.float32, copy=False).astype(np.float16).astype(np.float64)


def _bfloat16(x: Array) -> Array:
    """The upper half of the float32, rounded to nearest even; NaN is kept a NaN."""
    narrow = np.array(x, np.float32)
    bits = narrow.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    nan = np.isnan(narrow)
    bits += odd
    bits &= np.uint32(0xFFFF0000)
    if nan.any():
        narrow[nan] = np.nan
    return narrow.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Float:
    """A format. u: unit roundoff. least: the smallest normal number, below which some engines flush to zero. most: the
    largest number.

    round: float64 values -> the nearest of the format, as float64.
    """

    name: str
    u: float
    least: float
    most: float
    round: Callable[[Array], Array]

    def holds(self, values: NDArray[np.float32]) -> bool:
        """Whether every value is one of the format's (NaN and infinities are)."""
        wide = np.asarray(values, np.float64)
        with np.errstate(over="ignore"):
            return bool(np.array_equal(self.round(wide), wide, equal_nan=True))


def _tf32(x: Array) -> Array:
    """10 bits of mantissa, ties away from 0 (PTX: cvt.rna.tf32)."""
    narrow = np.array(x, np.float32)
    bits = narrow.view(np.uint32)
    bits += np.uint32(0x1000)
    bits &= np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), narrow, x).astype(np.float64)


def _tf32_cut(x: Array) -> Array:
    """10 bits of mantissa, the rest dropped: what a tensor core makes of a float32 that nobody rounded."""
    narrow = np.array(x, np.float32)
    bits = narrow.view(np.uint32)
    bits &= np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), narrow, x).astype(np.float64)


def _eight(mantissa: int, least: int, most: float) -> Callable[[Array], Array]:
    """Floats of 8 bits, ties to even; what is beyond the largest becomes the largest, as inference engines convert."""

    def nearest(x: Array) -> Array:
        _, exponent = np.frexp(x)
        step = np.exp2(np.maximum(exponent - 1, least) - mantissa)
        return np.clip(np.rint(x / step) * step, -most, most)

    return nearest


FLOAT32 = Float("float32", 2.0**-24, 2.0**-126, (2 - 2.0**-23) * 2.0**127, _float32)
FLOAT16 = Float("float16", 2.0**-11, 2.0**-14, 65504.0, _float16)
BFLOAT16 = Float("bfloat16", 2.0**-8, 2.0**-126, (2 - 2.0**-7) * 2.0**127, _bfloat16)
TF32 = Float("TF32", 2.0**-11, 2.0**-126, FLOAT32.most, _tf32)
TF32_CUT = Float("TF32 by truncation", 2.0**-10, 2.0**-126, FLOAT32.most, _tf32_cut)
E4M3 = Float("e4m3", 2.0**-4, 2.0**-6, 448.0, _eight(3, -6, 448.0))
E5M2 = Float("e5m2", 2.0**-3, 2.0**-14, 57344.0, _eight(2, -14, 57344.0))


@dataclass(frozen=True, slots=True)
class Span:
    """mid: the stage as a recipe computes it. lo, hi: how far the roundings that the recipe leaves open can move it.

    A span read from a dump is a point: lo and hi are mid itself.
    """

    mid: Array
    lo: Array
    hi: Array

    @staticmethod
    def point(values: NDArray[np.floating[Any]]) -> Span:
        x = np.asarray(values, np.float64)
        return Span(x, x, x)

    @staticmethod
    def around(mid: Array, radius: Array) -> Span:
        return Span(mid, mid - radius, mid + radius)

    @property
    def exact(self) -> bool:
        return self.lo is self.mid

    @property
    def radius(self) -> Array:
        """How far an end is from mid; zeros for a point."""
        return np.maximum(self.hi - self.mid, self.mid - self.lo)

    def map(self, f: Callable[[Array], Array]) -> Span:
        """f applied to each element; f must be monotone in each (in either direction). It is given some rows of the
        first axis at a time."""
        return by_rows(lambda x: x._mapped(f), self)

    def _mapped(self, f: Callable[[Array], Array]) -> Span:
        mid = f(self.mid)
        if self.exact:
            return Span.point(mid)
        lo, hi = f(self.lo), f(self.hi)
        return Span(mid, np.minimum(lo, hi), np.maximum(lo, hi))

    def some(self, rows: slice) -> Span:
        """Some rows of the first axis, not copied."""
        if self.exact:
            return Span.point(self.mid[rows])
        return Span(self.mid[rows], self.lo[rows], self.hi[rows])

    def shaped(self, f: Callable[[Array], Array]) -> Span:
        """f only moves elements about (reshape, index, transpose)."""
        if self.exact:
            return Span.point(f(self.mid))
        return Span(f(self.mid), f(self.lo), f(self.hi))


def by_rows(f: Callable[..., Span], *xs: Span) -> Span:
    """f of spans, some rows of their first axis after the others: of spans of one shape (or with one row for all of
    them), where each row of the result hangs on the same row of these alone. What f makes beside its result is as large
    as a piece."""
    shape = np.broadcast_shapes(*(x.mid.shape for x in xs))
    step = max(1, PIECE * shape[0] // max(1, int(np.prod(shape)))) if len(shape) > 1 else 1
    if len(shape) < 2 or step >= shape[0]:
        return f(*xs)
    ends = [np.empty(shape) for _ in range(3)]

    def part(start: int) -> bool:
        rows = slice(start, start + step)
        y = f(*(x if len(x.mid) == 1 else x.some(rows) for x in xs))
        ends[0][rows] = y.mid
        if not y.exact:
            ends[1][rows], ends[2][rows] = y.lo, y.hi
        return y.exact

    exact = each(part, range(0, shape[0], step))
    if all(exact):
        return Span.point(ends[0])
    for start in (i * step for i, same in enumerate(exact) if same):
        ends[1][start : start + step] = ends[2][start : start + step] = ends[0][start : start + step]
    return Span(ends[0], ends[1], ends[2])


def plus(x: Span, y: Span) -> Span:
    """x + y, before any rounding."""
    if x.exact and y.exact:
        return Span.point(x.mid + y.mid)
    return Span(x.mid + y.mid, x.lo + y.lo, x.hi + y.hi)


def times(x: Span, y: Span) -> Span:
    """x y element by element, before any rounding."""
    mid = x.mid * y.mid
    if x.exact and y.exact:
        return Span.point(mid)
    corners = (x.lo * y.lo, x.lo * y.hi, x.hi * y.lo, x.hi * y.hi)
    return Span(mid, np.minimum.reduce(corners), np.maximum.reduce(corners))


def hull(x: Span, y: Span) -> Span:
    """What either may be; in the middle x."""
    return Span(x.mid, np.minimum(x.lo, y.lo), np.maximum(x.hi, y.hi))


def joined(spans: list[Span], axis: int) -> Span:
    """Spans side by side."""
    if len(spans) == 1:
        return spans[0]
    mid = np.concatenate([s.mid for s in spans], axis)
    if all(s.exact for s in spans):
        return Span.point(mid)
    return Span(mid, np.concatenate([s.lo for s in spans], axis), np.concatenate([s.hi for s in spans], axis))
