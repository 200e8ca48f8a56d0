"""What is in an array: mean, standard deviation, range, and counts of what should not be there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import hypot, inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Statistics:
    """In float64, over the finite values; std is the population's (divided by n). None where no value is finite."""

    count: int
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    nan: int
    inf: int
    zero: int

    @property
    def rms(self) -> float | None:
        """The root of the mean square, of the finite values."""
        return None if self.mean is None or self.std is None else hypot(self.mean, self.std)

    def anomalies(self) -> list[str]:
        """What no healthy stage shows, in words. Zeros of both signs count as zero."""
        found = [f"{n} {what}" for n, what in ((self.nan, "NaN"), (self.inf, "Inf")) if n]
        if self.count and self.zero == self.count:
            found.append("all zero")
        elif self.count > 1 and self.std == 0:
            found.append("constant")
        return found

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def statistics(parts: Iterable[NDArray[np.floating]]) -> Statistics:
    """Statistics of arrays taken together, one part in memory at a time as float64.

    Means and squared deviations of the parts are merged as Chan, Golub and LeVeque (1983) do: no cancellation.
    """
    count = n = nan = infinite = zero = 0
    mean = m2 = 0.0
    low, high = inf, -inf
    for part in parts:
        x = part.astype(np.float64)
        finite = x[np.isfinite(x)]
        count, nan, zero = count + x.size, nan + int(np.isnan(x).sum()), zero + int((finite == 0).sum())
        infinite += x.size - finite.size - int(np.isnan(x).sum())
        if not finite.size:
            continue
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        k, part_mean = finite.size, float(finite.mean())
        delta = part_mean - mean
        m2 += float(np.square(finite - part_mean).sum()) + delta * delta * n * k / (n + k)
        n += k
        mean += delta * k / n
    if not n:
        return Statistics(count, None, None, None, None, nan, infinite, zero)
    return Statistics(count, mean, sqrt(m2 / n), low, high, nan, infinite, zero)
