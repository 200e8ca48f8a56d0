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
    return Counter().add(parts).result()


class Counter:
    """`statistics` of parts that come one after the other: the same figures, however they are called in."""

    def __init__(self) -> None:
        self.count = self.n = self.nan = self.infinite = self.zero = 0
        self.mean = self.m2 = 0.0
        self.low, self.high = inf, -inf

    def add(self, parts: Iterable[NDArray[np.floating]]) -> Counter:
        for part in parts:
            x = part.astype(np.float64)
            finite, nan = x[np.isfinite(x)], int(np.isnan(x).sum())
            self.count, self.nan, self.zero = self.count + x.size, self.nan + nan, self.zero + int((finite == 0).sum())
            self.infinite += x.size - finite.size - nan
            if not finite.size:
                continue
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            k, part_mean = finite.size, float(finite.mean())
            delta = part_mean - self.mean
            self.m2 += float(np.square(finite - part_mean).sum()) + delta * delta * self.n * k / (self.n + k)
            self.n += k
            self.mean += delta * k / self.n
        return self

    def result(self) -> Statistics:
        if not self.n:
            return Statistics(self.count, None, None, None, None, self.nan, self.infinite, self.zero)
        std = sqrt(self.m2 / self.n)
        return Statistics(self.count, self.mean, std, self.low, self.high, self.nan, self.infinite, self.zero)
