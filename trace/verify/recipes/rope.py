"""RoPE's angles: float32 engines differ in them by far more than rounding at long positions, so how they come about is
part of a recipe, and is fitted to the dump.

The last bit of theta^(-2j/H) depends on the C library's pow. So each inverse frequency may be a few units in the last
place beside ours: what the dump's own rotations say is taken, frequency by frequency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..span import Array

ULPS = range(-4, 5)
BETTER = 4.0  # times, in squares, that a neighbour must explain the dump better


class Rotation(Protocol):
    """How the angle comes about."""

    def angle(self, pos_T: NDArray[np.int32]) -> Array:
        """[T, H/2], float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """position times inverse frequency, one float32 product: Hugging Face and this engine."""

    inv_freq_h: NDArray[np.float32]

    def angle(self, pos_T: NDArray[np.int32]) -> Array:
        return (pos_T.astype(np.float32)[:, None] * self.inv_freq_h).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Repeated:
    """ggml (ggml_rope_cache_init): the position, multiplied by theta^(-2/H) in float32 once per pair."""

    ratio: np.float32
    pairs: int

    def angle(self, pos_T: NDArray[np.int32]) -> Array:
        angle = pos_T.astype(np.float32)
        columns = []
        for _ in range(self.pairs):
            columns.append(angle.astype(np.float64))
            angle = angle * self.ratio
        return np.stack(columns, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """No rounding before the cosine: float64 engines, and those with split or reduced arguments."""

    theta: float
    pairs: int

    def angle(self, pos_T: NDArray[np.int32]) -> Array:
        return pos_T[:, None] * self.theta ** (-np.arange(self.pairs) / self.pairs)


def rotations(theta: float, inv_freq_h: NDArray[np.float32]) -> dict[str, Rotation]:
    """Every known way, by the name that Recipe.angle has."""
    pairs = len(inv_freq_h)
    return {
        "product": Product(inv_freq_h),
        "repeated": Repeated(np.float32(theta ** (-1 / pairs)), pairs),
        "exact": Exact(theta, pairs),
    }


def fitted(
    known: dict[str, Rotation], seen: Sequence[tuple[Array, Array, NDArray[np.int32]]]
) -> tuple[dict[str, Rotation], bool]:
    """The same with last bits as the dump has them, best first; and whether the dump can tell the best from the others.

    seen: (before, after, positions) of rotations in the dump: [T, n, H] float64 each.
    """

    def residual(way: Rotation) -> Array:
        """[H/2]: the sum of squares that each frequency leaves."""
        total = np.zeros(seen[0][0].shape[-1] // 2)
        for before, after, pos_T in seen:
            (a, b), (c, d) = np.split(before, 2, -1), np.split(after, 2, -1)
            angle = way.angle(pos_T)[:, None, :]
            cos, sin = np.cos(angle), np.sin(angle)
            total += (np.square(a * cos - b * sin - c) + np.square(b * cos + a * sin - d)).sum((0, 1))
        return total

    if not seen:
        return known, False
    product, repeated = known["product"], known["repeated"]
    assert isinstance(product, Product) and isinstance(repeated, Repeated)
    tables = [_nudged(product.inv_freq_h, n) for n in ULPS]
    left = np.stack([residual(Product(t)) + (1e-30 if n else 0) for t, n in zip(tables, ULPS, strict=True)])
    # A frequency is taken from beside ours only if that explains the dump far better; else the data cannot tell.
    best, ours = left.argmin(0), len(ULPS) // 2
    best = np.where(left.min(0) < left[ours] / BETTER, best, ours)
    ways: dict[str, Rotation] = dict(known)
    ways["product"] = Product(np.choose(best, tables).astype(np.float32))
    ways["repeated"] = min(
        (Repeated(_nudged(np.array([repeated.ratio]), n)[0], repeated.pairs) for n in (0, -1, 1)),
        key=lambda way: residual(way).sum(),
    )
    score = {name: float(residual(way).sum()) for name, way in ways.items()}
    fit = {name: score[name] <= 1.5 * min(score.values()) for name in ways}
    # Of ways that the data cannot tell apart, the commonest comes first.
    return dict(sorted(ways.items(), key=lambda item: not fit[item[0]])), sum(fit.values()) == 1


def _nudged(x: NDArray[np.float32], ulps: int) -> NDArray[np.float32]:
    return (x.view(np.int32) + np.int32(ulps)).view(np.float32)
