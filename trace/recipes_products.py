"""A matrix product under a recipe: its value in float64 from the operands that the engine used, and how far the order
of summation can move it.

Adding K terms in float32 in an order nobody told: each addition rounds a partial sum s by at most u |s|, on average
(uniform
in the last place) by u |s| / sqrt(3). Terms t_k of mixed sign make s a random walk of size sqrt(sum t_k^2) to the sum
y: the
error's standard deviation is about sigma = u sqrt(K/3) sqrt(y^2 + sum t_k^2) for a walk of ordinary size. It is a
normal number times the size of a walk, so SIGMAS must cover both tails: 13 is passed with a chance of 1e-9 per element
(docs/budgets.md). Sums of one sign cannot wander, and SIGMAS_ONE_SIGN is the normal number's alone. Higham (Accuracy
and
Stability, 2nd ed.) has the worst case gamma_K sum |t_k| in section 3.1, the sqrt(K) of independent roundings in 2.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..quant.tensor import QTensor, dequantize, format_module
from .recipes import Recipe
from .recipes_floats import BFLOAT16, FLOAT16, FLOAT32, Array, Span

SIGMAS, SIGMAS_ONE_SIGN = 13.0, 6.5
SLAB = 1 << 20  # weights decoded at a time


def summation(K: float | Array, y: Array, squares: Array, sigmas: float = SIGMAS) -> Array:
    """How far a sum y of K terms whose squares sum to `squares` may be off."""
    return sigmas * FLOAT32.u * np.sqrt(K / 3) * np.sqrt(y * y + squares)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix that is decoded a slab of rows at a time: shape (O, I), and its file's format.

    change: what to do to each decoded slab [rows, I] (first row given): a hypothesis about the decoder, or nothing.
    """

    tensor: QTensor
    change: Callable[[int, NDArray[np.float32]], NDArray[np.float32]] | None = None

    @property
    def format(self) -> str:
        return self.tensor.format

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        w = dequantize(self.tensor, start, stop)
        return w if self.change is None else self.change(start, w)

    def slabs(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        O, I = self.shape
        step = max(1, SLAB // I)
        for start in range(0, O, step):
            yield start, self.rows(start, min(start + step, O))

    def minima(self) -> NDArray[np.float64]:
        """[O, blocks]: the constant of each block of Q4_1 or Q5_1, its second half-precision number."""
        O, _ = self.shape
        size = format_module(self.format).BYTES
        return self.tensor.data.reshape(O, -1, size)[..., 2:4].copy().view("<f2")[..., 0].astype(np.float64)


def product(r: Recipe, x: Span, w: Matrix) -> Span:
    """x W^T, [T, O], for x [T, I], before the result is rounded."""
    x_TI, extra_TB = operand(r, x.mid, w.format)
    radius_TI = None if x.exact else _moved(r, x, x_TI, w.format)
    y: list[Array] = []
    squares: list[Array] = []
    moved: list[Array] = []
    for _, slab in w.slabs():
        w_OI: Array = slab.astype(np.float64)
        if r.weights is not None:
            w_OI = r.weights.round(w_OI)
        y.append(x_TI @ w_OI.T)
        np.square(w_OI, out=w_OI)
        squares.append(np.square(x_TI) @ w_OI.T)
        if radius_TI is not None:
            moved.append(np.square(radius_TI) @ w_OI.T)
    y_TO, squares_TO = np.concatenate(y, 1), np.concatenate(squares, 1)
    if extra_TB is not None:
        y_TO += extra_TB @ w.minima().T
    radius_TO = summation(w.shape[1], y_TO, squares_TO)
    if moved:
        radius_TO += 3 * np.sqrt(np.concatenate(moved, 1))
    return Span.around(y_TO, radius_TO)


def operand(r: Recipe, x_TI: Array, weight_format: str) -> tuple[Array, Array | None]:
    """The activations as the product uses them; for Q8_1 also what its separately rounded block sums add, per block."""
    kind = r.operand(weight_format)
    if kind in ("F16", "BF16"):
        return (FLOAT16 if kind == "F16" else BFLOAT16).round(x_TI), None
    if kind == "F32":
        return x_TI, None
    f = format_module(kind)
    blocks = f.encode(np.ascontiguousarray(x_TI, np.float32).reshape(-1, f.BLOCK))
    if kind != "Q8_K" and r.quantiser != "reference":
        _requantise(blocks.view(f.STRUCT)[:, 0], x_TI, r.quantiser == "x86")
    values = f.decode(blocks).astype(np.float64).reshape(x_TI.shape)
    if kind != "Q8_1":
        return values, None
    b = blocks.view(f.STRUCT)[:, 0]
    sums = b["s"].astype(np.float64) - b["d"].astype(np.float64) * b["qs"].sum(axis=1, dtype=np.int64)
    return values, sums.reshape(len(x_TI), -1)


def _requantise(b: NDArray[np.void], x_TI: Array, x86: bool) -> None:
    """ggml's vector routines (arch/x86/quants.c, arch/arm/quants.c) where they part from its reference: see Recipe."""
    v = np.ascontiguousarray(x_TI, np.float32).reshape(len(b), -1)
    amax = np.abs(v).max(axis=1)
    d = amax / np.float32(127)
    top, bottom = (np.float32(127), amax) if x86 else (np.float32(1), d)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factor = np.where(bottom > 0, top / bottom, np.float32(0))
        b["qs"] = np.clip(np.rint(v * factor[:, None]), -127, 127)
    if "s" in (b.dtype.names or ()):
        b["s"] = d * b["qs"].sum(axis=1, dtype=np.int64).astype(np.float32)


def _moved(r: Recipe, x: Span, x_TI: Array, weight_format: str) -> Array:
    """How far the operand moves if x moves within its span; a quantiser's code jumps by a whole step."""
    ends = (operand(r, end, weight_format)[0] for end in (x.lo, x.hi))
    return np.maximum.reduce([np.abs(end - x_TI) for end in ends])
