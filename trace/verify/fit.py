"""How well a span explains what a dump holds: by element, and where in the tensor the rest sits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...quant.rms import ratio
from .parallel import each
from .span import Array, Span

MOST_ALLOWED, MOST_LEFT = 0.5, 0.05  # of the values' RMS: what a span may allow, and may leave if it allows more
PIECE = 1 << 15  # elements compared at a time: what is made of them stays in a core's own cache


@dataclass(frozen=True, slots=True)
class Fit:
    """left: RMS of (dump - span.mid) over RMS of span.mid. allowed: the same of what rounding may leave (span's ends).

    worst: the largest |dump - mid| / allowed of any element. outside: how many elements lie outside their span.
    equal: how many are bit-equal to mid as the recipe rounds it (+0 and -0 alike).
    leans: whether the error, of a span that leaves much open, has a side, as no rounding has (leaning.py).
    """

    left: float
    allowed: float
    worst: float
    outside: int
    equal: int
    size: int
    leans: bool = False

    @property
    def good(self) -> bool:
        return self.outside == 0 and not self.leans and not self.vacuous

    @property
    def vacuous(self) -> bool:
        """Whether the span allows half of what the values are, and that is made use of: it would explain anything."""
        return self.allowed > MOST_ALLOWED and self.left > MOST_LEFT

    @property
    def exact(self) -> bool:
        return self.equal == self.size


def fit_of(got: NDArray[np.floating[Any]], span: Span) -> Fit:
    """Every element is judged: it must lie in its span. Where the span is not finite (its input was not), the dump
    must not be."""
    ends = (got, span.mid) if span.exact else (got, span.mid, span.lo, span.hi)
    flat = [a.reshape(-1) for a in ends]
    parts = each(lambda start: _compared(*(a[start : start + PIECE] for a in flat)), range(0, got.size, PIECE))
    if not parts:
        return Fit(0.0, 0.0, 0.0, 0, 0, 0)
    outside, equal, worst, *sums = (np.array(column) for column in zip(*parts, strict=True))
    error, allowed, mid = (_together(sums[i], sums[i + 1]) for i in (0, 2, 4))
    scale = mid / np.sqrt(got.size)
    return Fit(
        left=ratio(error / np.sqrt(got.size), scale),
        allowed=ratio(allowed / np.sqrt(got.size), scale),
        worst=float(worst.max()),
        outside=int(outside.sum()),
        equal=int(equal.sum()),
        size=got.size,
    )


def _compared(
    got: NDArray[np.floating[Any]], mid: Array, lo: Array | None = None, hi: Array | None = None
) -> tuple[float, ...]:
    """Of one piece: how many are outside and equal, the worst; root and largest of the error's, the allowance's and
    mid's squares."""
    x = np.asarray(got, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(x - mid)
        radius = np.zeros_like(mid) if lo is None or hi is None else np.maximum(hi - mid, mid - lo)
        equal = x == mid
        inside = equal if lo is None or hi is None else (x >= lo) & (x <= hi) | equal
        if not (np.isfinite(error).all() and np.isfinite(radius).all()):
            equal |= np.isnan(x) & np.isnan(mid)
            inside = ~_outside(x, mid, mid if lo is None else lo, mid if hi is None else hi)
            finite = np.isfinite(mid) & np.isfinite(x)
            error = np.where(finite, error, 0)
            radius = np.where(finite & np.isfinite(radius), radius, 0)
            mid = np.where(finite, mid, 0)
            odd = ~inside & ~finite
        else:
            odd = None
        times = np.divide(error, radius, out=np.where(error != 0, np.inf, 0.0), where=radius > 0)
        if odd is not None:
            times[odd] = np.inf
    return (
        x.size - float(np.count_nonzero(inside)),
        float(np.count_nonzero(equal)),
        float(times.max()),
        *_norm(error),
        *_norm(radius),
        *_norm(mid),
    )


def _norm(x: Array) -> tuple[float, float]:
    """The root of the sum of squares over the largest size, and that size: safe from overflow."""
    top = float(np.abs(x).max())
    return (float(np.sqrt(np.square(x / top).sum())), top) if 0 < top < np.inf else (float(top > 0), top)


def _together(roots: Array, tops: Array) -> float:
    """The root of the sum of squares of all pieces."""
    top = float(tops.max())
    return top * float(np.sqrt(np.square(roots * (tops / top)).sum())) if 0 < top < np.inf else top


def outside(got: NDArray[np.floating[Any]], span: Span) -> NDArray[np.bool_]:
    """Which elements lie outside their span. An end that overflowed allows nothing."""
    return _outside(np.asarray(got, np.float64), span.mid, span.lo, span.hi)


def _outside(x: Array, mid: Array, lo: Array, hi: Array) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        inside = (x >= lo) & (x <= hi) & np.isfinite(lo) & np.isfinite(hi)
        return ~(inside | (x == mid) | (~np.isfinite(mid) & ~np.isfinite(x)))


def few_of(n: int, few: int) -> NDArray[np.intp]:
    """A few of n indices, the first and the last among them; all of them if there are no more."""
    return np.unique(np.linspace(0, n - 1, min(n, few)).astype(np.intp))
