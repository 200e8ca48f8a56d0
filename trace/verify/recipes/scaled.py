"""Numbers of 8 bits that share a float32 scale: activations of W8A8 products, weights that an engine rounds when it
loads them, keys and values of a cache.

A number is round(x / s), and stands for s times itself. Engines divide by s or multiply by its inverse, which parts
them where x / s is within a few units in the last place of a tie: there both neighbours are allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..span import BFLOAT16, E4M3, E5M2, FLOAT16, FLOAT32, Array, Float, Span

TIE = 4 * FLOAT32.u  # how far, relatively, x / s may be off


@dataclass(frozen=True, slots=True)
class Scaled:
    """top: what the largest size becomes; whole numbers, or those of `grid`. over: the values that share a scale: so
    many of a row, a row, a column, or all. around: the numbers are 0 to top, and 0.0 is one of them (codes without a
    sign). fixed: a scale that no value changes. kept: what the scale is rounded to, once the numbers are made.
    """

    top: float
    over: int | Literal["row", "column", "all"]
    grid: Float | None = None
    around: bool = False
    fixed: float | None = None
    kept: Float = FLOAT32

    def of(self, x: Array) -> Span:
        """x [..., rows, columns] as it is held. Rows are cut in blocks from their start."""
        if isinstance(self.over, int):
            width = x.shape[-1]
            blocks = np.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, -width % self.over)))
            found = self._of(blocks.reshape(*x.shape[:-1], -1, self.over), (-1,))
            return found.shaped(lambda v: v.reshape(*x.shape[:-1], -1)[..., :width])
        return self._of(x, {"row": (-1,), "column": (-2,), "all": None}[self.over])

    def _of(self, x: Array, axes: tuple[int, ...] | None) -> Span:
        least, most = -np.ceil(self.top), np.floor(self.top)
        if self.fixed is not None:
            scale = np.full((1,) * x.ndim, self.fixed)
        elif self.around:
            low, high = np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0)
            scale = _float32((high - low) / self.top)
            least = -np.clip(np.rint(-low / np.where(scale > 0, scale, 1)), 0, self.top)
            most = least + self.top
        else:
            scale = _float32(np.abs(x).max(axes, keepdims=True) / self.top)
        scale = np.where(scale > 0, scale, 1.0)
        real, nearest = x / scale, np.rint if self.grid is None else self.grid.round
        if self.fixed == 1:  # a conversion, in which no quotient is rounded
            return Span.point(np.clip(nearest(x), least, most))
        slack = TIE * (np.abs(real) + self.top * self.around)  # the zero point may be added before the rounding
        scale = scale if self.kept is FLOAT32 else self.kept.round(scale)
        mid, less, more = (np.clip(nearest(v), least, most) for v in (real, real - slack, real + slack))
        if np.array_equal(less, more):
            return Span.point(mid * scale)
        return Span(mid * scale, less * scale, more * scale)


def _float32(x: Array) -> Array:
    return x.astype(np.float32).astype(np.float64)


INT8, FP8 = 127.0, E4M3.most

# Names say what shares a scale; of activations, a row is a token's.
KINDS: dict[str, Scaled] = {
    "int8 token": Scaled(INT8, "row"),
    "int8 tensor": Scaled(INT8, "all"),
    "int8 channel": Scaled(INT8, "column"),
    "uint8 token": Scaled(255.0, "row", around=True),
    "uint4 token": Scaled(15.0, "row", around=True),
    "uint4 channel": Scaled(15.0, "column", around=True),
    "int4 token": Scaled(7.0, "row"),
    "uint3 token": Scaled(7.0, "row", around=True),
    "uint8 tensor": Scaled(255.0, "all", around=True),
    "uint7 tensor": Scaled(127.0, "all", around=True),
    "int8 even tensor": Scaled(127.5, "all"),
    "e4m3 token": Scaled(FP8, "row", E4M3),
    "e4m3 tensor": Scaled(FP8, "all", E4M3),
    "e4m3 block": Scaled(FP8, 128, E4M3),
    "e4m3": Scaled(FP8, "all", E4M3, fixed=1.0),
    "e5m2": Scaled(E5M2.most, "all", E5M2, fixed=1.0),
    "int8 32": Scaled(INT8, 32),
    "int8 32 halves": Scaled(INT8, 32, kept=FLOAT16),
    "float16": Scaled(FLOAT16.most, "all", FLOAT16, fixed=1.0),
    "bfloat16": Scaled(BFLOAT16.most, "all", BFLOAT16, fixed=1.0),
}

ROUNDED = ", rounded"  # of a cache: what the numbers stand for is rounded to 16 bits before it is used
WHOLE = tuple(name for name, kind in KINDS.items() if kind.over == "all" and kind.fixed is None)


def held(kind: str | None) -> Callable[[Span], Span]:
    """What becomes of a span that is held so."""
    if kind is None:
        return lambda x: x

    def hold(x: Span) -> Span:
        mid = KINDS[kind].of(x.mid)
        if x.exact:
            return mid
        ends = [KINDS[kind].of(end) for end in (x.lo, x.hi)]  # a scale moves with its largest value
        return Span(
            mid.mid,
            np.minimum.reduce([mid.lo, *(e.lo for e in ends)]),
            np.maximum.reduce([mid.hi, *(e.hi for e in ends)]),
        )

    return hold
