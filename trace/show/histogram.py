"""How the values of a part of a stage are spread, in bins with round edges."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
from numpy.typing import NDArray

BINS = 14  # at most, and two for the rest
TAIL = 0.01  # of the values at each end, which do not stretch the bins


@dataclass(frozen=True, slots=True)
class Histogram:
    """edges: of the bins, one more than counts. below, above: how many are outside. A bin holds its lower edge."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    below: int
    above: int


def histogram(values: NDArray[np.floating]) -> Histogram | None:
    """Of the finite values; None where there is none."""
    x = values[np.isfinite(values)].astype(np.float64)
    if not x.size:
        return None
    low, high = (float(q) for q in np.quantile(x, (TAIL, 1 - TAIL)))
    edges: tuple[float, ...]
    if low == high:
        edges = (low, float(np.nextafter(low, np.inf)))
    else:
        step = round_step((high - low) / (BINS - 2))
        edges = tuple(float(f"{k * step:.12g}") for k in range(floor(low / step), ceil(high / step) + 1))
        if edges[-1] <= high:
            edges = (*edges, float(f"{(ceil(high / step) + 1) * step:.12g}"))
    at = np.searchsorted(edges, x, side="right")  # 0: below the first; len(edges): at or past the last
    counts = np.bincount(at, minlength=len(edges) + 1)
    return Histogram(edges, tuple(map(int, counts[1:-1])), int(counts[0]), int(counts[-1]))


def round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten: the smallest that is not below."""
    power = 10.0 ** floor(log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least or m == 10)
