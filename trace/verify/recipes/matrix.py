"""Matrix: a weight matrix that is decoded a slab of rows at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ....quant.tensor import QTensor, dequantize, format_module
from ..span import Array

SLAB = 1 << 18  # weights decoded at a time

# Where a block's codes lie (first byte, last + 1). With every code 0, what decodes is each group's constant: minus its
# minimum, or minus the offset times its scale.
CODES = {
    "Q4_0": (2, 18), "Q4_1": (4, 20), "Q5_0": (2, 22), "Q5_1": (4, 24),
    "Q2_K": (16, 80), "Q3_K": (0, 96), "Q4_K": (16, 144), "Q5_K": (16, 176), "Q6_K": (0, 192),
}  # fmt: skip
# How many weights of a block share a scale of their own, and in which formats a minimum, too.
GROUPS = {"Q4_1": 32, "Q5_1": 32, "Q2_K": 16, "Q3_K": 16, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16}
MINIMA = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}


def group_sums(x_TI: Array, group: int) -> Array:
    """[T, groups]: sums over each group of columns. The last group may be cut: APR's rows need not be whole blocks."""
    return np.add.reduceat(x_TI, np.arange(0, x_TI.shape[1], group), axis=1)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of shape (O, I), in its file's format.

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
        """(first row, rows) one after the other."""
        O, I = self.shape
        step = max(1, SLAB // I)
        for start in range(0, O, step):
            yield start, self.rows(start, min(start + step, O))

    def constants(self, start: int, stop: int) -> NDArray[np.float32]:
        """[rows, I]: what decodes where every code is 0."""
        size, (first, last) = format_module(self.format).BYTES, CODES[self.format]
        blocks = self.tensor.data.reshape(self.shape[0], -1, size)[start:stop].copy()
        blocks[..., first:last] = 0
        return dequantize(replace(self.tensor, shape=(stop - start, self.shape[1]), data=blocks.reshape(-1)))

    def minima(self, start: int, stop: int) -> NDArray[np.float64] | None:
        """[rows, groups]: the constant of each group; None for formats without minima."""
        if self.format not in MINIMA:
            return None
        return self.constants(start, stop)[:, :: GROUPS[self.format]].astype(np.float64)
