"""Products of activations with stacked matrices: which kernels, on what grids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .....quant.tensor import format_of
from .. import rows
from ..machine.memory import Buffer, Queue, Rows, blocks
from . import product as p32
from . import product8 as p8
from .packed import Packed

ENOUGH_WARPS = 4096  # two for each that an H200 has room for (132 multiprocessors, 16 at 128 registers a thread)
VECTOR_TOKENS = 4  # up to so many tokens, each reads the weights anew: cheaper than a mostly empty tile


@dataclass(frozen=True, slots=True)
class Matrix:
    """Packed matrices of one input width whose rows follow one another, and the precision to multiply them in."""

    parts: tuple[Packed, ...]
    int8: bool

    @property
    def outputs(self) -> int:
        return sum(part.O for part in self.parts)


def linear(queue: Queue, x_TI: Rows, w: Matrix) -> Rows:
    """x W^T, [T, O]: x is laid out as the parts want it, then part after part is multiplied."""
    y_TO = queue.rows(len(x_TI), w.outputs)
    at, ready = 0, Ready(queue, x_TI)
    for part in w.parts:
        (_integers if w.int8 and part.form.FORMAT.block > 1 else _floats)(ready, part, y_TO, at, w.int8)
        at += part.O
    return y_TO


class Ready:
    """The activations as kernels want them, each form made once for all parts of a stack."""

    def __init__(self, queue: Queue, x_TI: Rows) -> None:
        self.queue = queue
        self.x_TI, self.T, self.I = x_TI, len(x_TI), x_TI.shape[1]
        self.tiles = blocks(self.I, p32.GROUP * p32.TILE)
        self.made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def narrowed(self, form: str) -> Rows:
        """x rounded to a 16-bit format, or as it is for F32."""
        if form == "F32":
            return self.x_TI

        def make() -> Rows:
            y_TI = self.queue.rows(self.T, self.I)
            grid = blocks(self.I, rows.THREADS), self.T
            self.queue.launch(rows.narrow, grid, rows.THREADS, *self.x_TI.where, self.I, int(form == "BF16"), y_TI.data)
            return y_TI

        return self.once(form, make)

    def laid(self, form: str) -> tuple[Rows, Rows]:
        """Lane order, and the sum of each group."""

        def make() -> tuple[Rows, Rows]:
            x_TI = self.narrowed(form)
            laid, sums = (self.queue.rows(self.T, self.tiles * width) for width in (512, 16))
            out = self.I, self.tiles, laid.data, sums.data
            self.queue.launch(p32.lay_out, (self.tiles, self.T), p32.LAY_OUT_THREADS, *x_TI.where, *out)
            return laid, sums

        return self.once((form, "laid"), make)

    def quantised(self, form: str) -> tuple[Buffer, Rows, Buffer]:
        """Bytes in lane order, each group's step, and the sums of its halves; form Q8_0 or Q8_K."""

        def make() -> tuple[Buffer, Rows, Buffer]:
            groups = self.T * self.tiles * p32.TILE
            words, sums = self.queue.buffer(groups * 8), self.queue.buffer(groups * 2)
            steps = self.queue.rows(self.T, self.tiles * p32.TILE)
            out = words.data.view(np.uint32), steps.data, sums.data.view(np.int32)
            grid, width = (self.tiles * 2, self.T), format_of(form).block
            self.queue.launch(p8.quantise, grid, p8.BLOCK, *self.x_TI.where, self.I, self.tiles, width, *out)
            return words, steps, sums

        return self.once(form, make)


def _vector_shape(w: Packed, T: int) -> tuple[tuple[int, int], int]:
    """(grid, shift) of a vector product: warps share rows, as far as there are tiles to share, to be ENOUGH_WARPS."""
    tiles, shift = blocks(w.G, p32.TILE), 0
    while shift < 2 and 2 << shift <= tiles and (w.O >> 3) << shift < ENOUGH_WARPS:
        shift += 1
    return (blocks(w.O, p32.VECTOR_ROWS >> shift), T), shift


def _matrix_grid(w: Packed, T: int) -> tuple[int, int]:
    return blocks(w.O, p32.MATRIX_ROWS), blocks(T, p32.MATRIX_TOKENS)


def _floats(ready: Ready, w: Packed, y_TO: Rows, at: int, narrow: bool) -> None:
    """y[:, at:] of one matrix, activations in float32 (narrowed first where ggml would and `narrow` says so)."""
    T, y, form = ready.T, (y_TO.data, at, y_TO.row), w.form.FORMAT.activations if narrow else "F32"
    kernels = p32.products(w.form)
    if T <= VECTOR_TOKENS:
        (laid, sums), (grid, shift) = ready.laid(form), _vector_shape(w, T)
        x = laid.data, sums.data, sums.data  # the steps are the 8 bits' alone
        ready.queue.launch(kernels.vector, grid, p32.VECTOR_THREADS, *x, *w.planes, *y, w.O, w.G, shift)
    else:
        x_TI = ready.narrowed(form)
        ready.queue.launch(
            kernels.matrix, _matrix_grid(w, T), p32.MATRIX_THREADS, *x_TI.where, w.I, *w.planes, *y, w.O, w.G, T
        )


def _integers(ready: Ready, w: Packed, y_TO: Rows, at: int, narrow: bool) -> None:
    """y[:, at:] of one matrix, activations in 8 bits."""
    T, y, kernels = ready.T, (y_TO.data, at, y_TO.row), p8.products8(w.form)
    words, steps, sums = ready.quantised(w.form.FORMAT.activations)
    x = words.data.view(np.uint32), steps.data, sums.data.view(np.int32)
    if T <= VECTOR_TOKENS:
        grid, shift = _vector_shape(w, T)
        ready.queue.launch(kernels.vector, grid, p32.VECTOR_THREADS, *x, *w.planes, *y, w.O, w.G, shift)
    else:
        ready.queue.launch(kernels.matrix, _matrix_grid(w, T), p8.MATRIX_THREADS, *x, *w.planes, *y, w.O, w.G, T)
