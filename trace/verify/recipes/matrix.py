"""FileMatrix: a weight matrix that is decoded a slab of rows at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ....engine.weights import Adapted, Adapter
from ....quant.format import Format
from ....quant.tensor import QTensor, dequantize, format_of
from ..span import Array

SLAB = 1 << 17  # weights decoded at a time, so that what is made of them stays in a core's own cache
ROWS, SLABS = 32, 8  # positions beyond which a slab is larger, since they are read again for each; times, at most

Blocks = NDArray[np.void]  # [rows, blocks], each a record of its Format's fields


def group_sums(x_TI: Array, group: int) -> Array:
    """[T, groups]: sums over each group of columns. The last group may be cut: APR's rows need not be whole blocks."""
    return np.add.reduceat(x_TI, np.arange(0, x_TI.shape[1], group), axis=1)


def cleared(b: Blocks, *fields: str) -> Blocks:
    """Blocks whose fields are 0."""
    for field in fields:
        b[field] = 0
    return b


@dataclass(frozen=True, slots=True)
class FileMatrix:
    """A matrix of shape (O, I), in its file's format.

    change: what to do to each decoded slab [rows, I] (first row given): a hypothesis about the decoder, or nothing.
    largest: the largest size of the whole matrix, where this is a part of it.
    adapters: what is added to its product; its rows are those of the matrix alone.
    """

    tensor: QTensor
    change: Callable[[int, NDArray[np.float32]], NDArray[np.float32]] | None = None
    largest: float | None = None
    adapters: tuple[Adapter, ...] = ()

    @property
    def format(self) -> str:
        return self.tensor.format

    @property
    def facts(self) -> Format:
        return format_of(self.format)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        w = dequantize(self.tensor, start, stop)
        return w if self.change is None else self.change(start, w)

    def head(self, rows: int, largest: float | None = None) -> FileMatrix:
        """Its first rows."""
        rows = min(rows, self.shape[0])
        few = tuple(a.head(rows) for a in self.adapters)
        return replace(self.rebuilt(lambda b: b, 0, rows), change=self.change, largest=largest, adapters=few)

    def top(self) -> float:
        """The largest size of a weight."""
        return self.largest or max(float(np.abs(slab).max()) for _, slab in self.slabs())

    def slabs(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) one after the other."""
        for start, stop in self.cuts():
            yield start, self.rows(start, stop)

    def cuts(self, positions: int = 1) -> list[tuple[int, int]]:
        """First row, and the row after the last, of each slab, for a product with so many positions."""
        O, I = self.shape
        step = max(1, SLAB * min(SLABS, max(1, positions // ROWS)) // I)
        return [(start, min(start + step, O)) for start in range(0, O, step)]

    def rebuilt(self, f: Callable[[Blocks], Blocks], start: int = 0, stop: int | None = None) -> FileMatrix:
        """Rows start..stop in other bytes: f takes a copy of their blocks and gives as many."""
        blocks = self.tensor.data.reshape(self.shape[0], -1, self.facts.bytes)[start:stop].copy()
        data = np.ascontiguousarray(f(blocks.view(self.facts.struct)[..., 0])).reshape(-1).view(np.uint8)
        return FileMatrix(
            replace(self.tensor, shape=(len(blocks), self.shape[1]), data=data),
            adapters=self.adapters if len(blocks) == self.shape[0] else (),
        )

    def constants(self, start: int, stop: int) -> NDArray[np.float32]:
        """[rows, I]: what decodes where every code is 0, each group's constant: minus its minimum, or minus the offset
        times its scale.
        """
        return self.rebuilt(lambda b: cleared(b, *self.facts.codes), start, stop).rows(0, stop - start)

    def steps(self, start: int, stop: int) -> NDArray[np.float32] | None:
        """[rows, I]: what one step of each code is worth. None for formats without codes, or whose codes are not whole
        in one field, or not evenly spaced."""
        f = self.facts
        if len(f.codes) != 1 or not f.levels:
            return None
        (field,) = f.codes
        if f.nibbles is None and f.struct[field].shape != (f.block,):
            return None

        def ones(b: Blocks) -> Blocks:
            b[field] = 1 if f.nibbles is None else 0x11
            return b

        return self.rebuilt(ones, start, stop).rows(0, stop - start) - self.constants(start, stop)

    def minima(self, start: int, stop: int) -> NDArray[np.float64] | None:
        """[rows, groups]: the constant of each group; None for formats without minima."""
        if self.facts.minimum is None:
            return None
        return self.constants(start, stop)[:, :: self.facts.group].astype(np.float64)


def matrix_of(part: QTensor | Adapted) -> FileMatrix:
    """A matrix of a model, with its adapters if it has any."""
    return FileMatrix(part.base, adapters=part.adapters) if isinstance(part, Adapted) else FileMatrix(part)
