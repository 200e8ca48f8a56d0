"""How well a span explains what a dump holds: by element, and where in the tensor the rest sits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .span import Array, Span


@dataclass(frozen=True, slots=True)
class Fit:
    """left: RMS of (dump - span.mid) over RMS of span.mid. allowed: the same of what rounding may leave (span's ends).

    worst: the largest |dump - mid| / allowed of any element. outside: how many elements lie outside their span.
    equal: how many are bit-equal to mid as the recipe rounds it (+0 and -0 alike).
    """

    left: float
    allowed: float
    worst: float
    outside: int
    equal: int
    size: int

    @property
    def good(self) -> bool:
        return self.outside == 0

    @property
    def exact(self) -> bool:
        return self.equal == self.size


def compare(got: NDArray[np.floating[Any]], span: Span) -> Fit:
    """Every element is judged: it must lie in its span. Where the span is not finite (its input was not), the dump
    must not be."""
    x, mid = np.asarray(got, np.float64), span.mid
    with np.errstate(invalid="ignore", over="ignore"):
        equal = (x == mid) | (np.isnan(x) & np.isnan(mid))
        inside = ~outside(got, span)
        finite = np.isfinite(mid) & np.isfinite(x)
        error = np.where(finite, x - np.where(finite, mid, 0), 0)
        allowed = np.where(finite & np.isfinite(span.radius), span.radius, 0)
        ratio = np.divide(np.abs(error), allowed, out=np.where(error != 0, np.inf, 0.0), where=allowed > 0)
        ratio[~inside & ~finite] = np.inf
        scale = rms(np.where(finite, mid, 0))
        return Fit(
            left=over(rms(error), scale),
            allowed=over(rms(allowed), scale),
            worst=float(ratio.max(initial=0.0)),
            outside=int(x.size - np.count_nonzero(inside)),
            equal=int(np.count_nonzero(equal)),
            size=x.size,
        )


def rms(x: Array) -> float:
    """Root of the mean square, safe from overflow."""
    top = float(np.abs(x).max(initial=0.0))
    return top * float(np.sqrt(np.mean(np.square(x / top)))) if 0 < top < np.inf else top


def over(a: float, b: float) -> float:
    return a / b if b else (0.0 if a == 0 else float("inf"))


def outside(got: NDArray[np.floating[Any]], span: Span) -> NDArray[np.bool_]:
    """Which elements lie outside their span. An end that overflowed allows nothing."""
    x, mid = np.asarray(got, np.float64), span.mid
    with np.errstate(invalid="ignore"):
        inside = (x >= span.lo) & (x <= span.hi) & np.isfinite(span.lo) & np.isfinite(span.hi)
        return ~(inside | (x == mid) | (~np.isfinite(mid) & ~np.isfinite(x)))
