"""RoPE's angles: float32 engines differ in them by far more than rounding at long positions, so how they come about is
part of a recipe, and is fitted to the dump.

The last bit of theta^(-2j/H) depends on the C library's pow. So each inverse frequency may be a few units in the last
place beside ours: what the dump's own rotations say is taken, frequency by frequency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ....engine.rope import UNSCALED, Scaling, frequencies
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
    """ggml (ggml_rope_cache_init): the position, multiplied by theta^(-2/H) in float32 once per pair; each pair's angle
    then scaled (rope_yarn): divided by its divisor, multiplied by the factor's reciprocal, and mixed of both."""

    ratio: np.float32
    pairs: int
    scaled: Scaled | None = None

    def angle(self, pos_T: NDArray[np.int32]) -> Array:
        angle = pos_T.astype(np.float32)
        columns = []
        for _ in range(self.pairs):
            columns.append(angle)
            angle = angle * self.ratio
        table = np.stack(columns, 1)
        return (table if self.scaled is None else self.scaled.of(table)).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """What ggml does to the angle of each pair, in float32.

    divisor_h: of llama.cpp's rope_freqs; scale: 1 / factor; mix_h: how much of the unscaled angle stays (yarn).
    fused: the sum of the mix is one operation with its last product, as compilers make it of that line.
    """

    divisor_h: NDArray[np.float32]
    scale: np.float32
    mix_h: NDArray[np.float32]
    fused: bool = False

    def of(self, angle_Th: NDArray[np.float32]) -> NDArray[np.float32]:
        whole_Th = angle_Th / self.divisor_h
        near_Th = self.scale * whole_Th
        if not self.mix_h.any():
            return near_Th
        first_Th = near_Th * (np.float32(1) - self.mix_h)
        if self.fused:  # an exact product of float32 numbers, and one rounding of the sum, to 2^-29 of it
            return (first_Th + whole_Th.astype(np.float64) * self.mix_h).astype(np.float32)
        return first_Th + whole_Th * self.mix_h


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """No rounding before the cosine: float64 engines, and those with split or reduced arguments."""

    inv_freq_h: Array

    def angle(self, pos_T: NDArray[np.int32]) -> Array:
        return pos_T[:, None] * self.inv_freq_h


def rotations(
    theta: float,
    inv_freq_h: NDArray[np.float32],
    scaling: Scaling = UNSCALED,
    beyond: bool = False,
) -> dict[str, Rotation]:
    """Every known way, by the name that Recipe.angle has. beyond: the session is longer than the original positions."""
    pairs = len(inv_freq_h)
    if scaling == UNSCALED:
        exact_h: Array = theta ** (-np.arange(pairs) / pairs)
    else:
        exact_h = frequencies(theta, 2 * pairs, scaling, beyond, np.float64).astype(np.float64)
    return {
        "product": Product(inv_freq_h),
        "repeated": Repeated(np.float32(theta ** (-1 / pairs)), pairs, by_ggml(theta, pairs, scaling, beyond)),
        "exact": Exact(exact_h),
    }


def by_ggml(theta: float, pairs: int, scaling: Scaling, beyond: bool) -> Scaled | None:
    """How llama.cpp scales the angles of such a model's GGUF file; what it has no key for is divisors there."""
    if scaling == UNSCALED:
        return None
    one_h, f32 = np.ones(pairs, np.float32), np.float32
    if scaling.rope_type == "linear":
        return Scaled(one_h, f32(1) / f32(scaling.factor), 0 * one_h)
    exact_h, plain_h = (frequencies(theta, 2 * pairs, s, beyond, np.float64) for s in (scaling, UNSCALED))
    if scaling.rope_type == "yarn" and scaling.truncate:
        share_h = (exact_h / plain_h - 1 / scaling.factor) / (1 - 1 / scaling.factor) if scaling.factor != 1 else one_h
        return Scaled(one_h, f32(1) / f32(scaling.factor), np.clip(share_h, 0, 1).astype(f32))
    return Scaled((plain_h / exact_h).astype(f32), f32(1), 0 * one_h)


def fitted(
    known: dict[str, Rotation], seen: Sequence[tuple[Array, Array, NDArray[np.int32]]], magnitude: float = 1.0
) -> tuple[dict[str, Rotation], bool]:
    """The same with last bits as the dump has them, best first; and whether the dump can tell the best from the others.

    seen: (before, after, positions) of rotations in the dump: [T, n, H] float64 each. magnitude: of these.
    """

    def residual(way: Rotation) -> Array:
        """[H/2]: the sum of squares that each frequency leaves."""
        total = np.zeros(seen[0][0].shape[-1] // 2)
        for before, after, pos_T in seen:
            (a, b), (c, d) = np.split(before, 2, -1), np.split(after, 2, -1)
            angle = way.angle(pos_T)[:, None, :]
            cos, sin = magnitude * np.cos(angle), magnitude * np.sin(angle)
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
    scaled = repeated.scaled
    mixes = (scaled,) if scaled is None or not scaled.mix_h.any() else (scaled, replace(scaled, fused=True))
    ways["repeated"] = min(
        (Repeated(_nudged(np.array([repeated.ratio]), n)[0], repeated.pairs, mix) for mix in mixes for n in (0, -1, 1)),
        key=lambda way: residual(way).sum(),
    )
    score = {name: float(residual(way).sum()) for name, way in ways.items()}
    fit = {name: score[name] <= 1.5 * min(score.values()) for name in ways}
    # Of ways that the data cannot tell apart, the commonest comes first.
    return dict(sorted(ways.items(), key=lambda item: not fit[item[0]])), sum(fit.values()) == 1


def _nudged(x: NDArray[np.float32], ulps: int) -> NDArray[np.float32]:
    return (x.view(np.int32) + np.int32(ulps)).view(np.float32)
