"""Products of a few rows of activations with stacked matrices: which kernels, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .....quant import q16
from .....quant.tensor import QTensor, format_of
from ..machine.codegen import LANES
from ..machine.kernel import BARRIER, Kernel, at, rows_of, share
from ..machine.replay import Jobs
from . import integer, product, quantize
from .form import Form
from .packed import Packed, pack

FEW = 8  # up to so many, weights are read from memory no slower than they are used


@dataclass(frozen=True, slots=True)
class Stack:
    """Packed matrices of one input width K, whose rows follow one another.

    precision: int8 and int16 are for the formats that ggml has integer products for; the others keep float32's.
    """

    parts: tuple[Packed, ...]
    rows: int
    K: int
    precision: str


@dataclass(frozen=True, slots=True)
class Layout:
    """How activations lie for a product: the kernel that writes it, the columns of a block (1: not quantised), which of
    a form's products take it, the vectors of a tile that are one token, and of how many columns sums lie behind those
    that are not quantised.
    """

    kernel: Kernel
    block: int
    products: str
    halves: int = 1
    summed: int = product.SUMMED

    @property
    def widths(self) -> tuple[int, int, int]:
        """Tokens of a tile, or their halves, where there is one, where there are few, or many."""
        return (1, product.FEW, product.TILE) if self.block == 1 else (1, integer.FEW, integer.TILE)

    def tile_size(self, K: int, tile: int) -> int:
        if self.block == 1:
            return product.tile_size(K, tile, self.summed)
        return quantize.tile_size(K, tile, self.block)


LAYOUTS = {
    "F32": Layout(product.lay_out, 1, "f32"),
    "F32, sums of 16": Layout(product.lay_out_16, 1, "f32", summed=16),
    "Q8_0": Layout(quantize.Q8_0, format_of("Q8_0").block, "int8"),
    "Q8_1": Layout(quantize.Q8_1, format_of("Q8_1").block, "int8"),
    "Q8_K": Layout(quantize.Q8_K, format_of("Q8_K").block, "int8"),
    "Q16_0": Layout(quantize.Q16_0, q16.BLOCKS["Q16_0"], "int16", 2),
    "Q16_K": Layout(quantize.Q16_K, q16.BLOCKS["Q16_K"], "int16", 2),
}


def activations(form: Form, precision: str) -> str:
    """What a packed form's products take, a name of LAYOUTS: float32 where it has no products of that precision."""
    f = form.format
    unrounded = "F32, sums of 16" if f.minimum and f.group == 16 else "F32"
    name = {"int8": f.activations, "int16": f.activations_int16}.get(precision, unrounded)
    return name if name in LAYOUTS and getattr(form, LAYOUTS[name].products) else unrounded


def kernels_for(form: Form, precision: str) -> tuple[Kernel, ...]:
    """All kernels that matrices of this packed form need."""
    layout = LAYOUTS[activations(form, precision)]
    rearrange = (form.rearrange,) if form.rearrange else ()
    return *rearrange, layout.kernel, *getattr(form, layout.products)


def stack(parts: Sequence[QTensor], precision: str) -> Stack:
    """Matrices [O, K] of one K, packed."""
    packed = tuple(pack(p) for p in parts)
    return Stack(packed, sum(p.rows for p in packed), packed[0].K, precision)


def linear(to: Jobs, x_TI: NDArray[np.float32], w: Stack) -> NDArray[np.float32]:
    """x W^T, [T, O]: x is laid out as the parts want it, then all parts are computed side by side."""
    T, K = x_TI.shape
    which = 0 if T == 1 else 1 if T <= FEW else 2
    rows = max(-(-T // n) * n for n in (p.widths[which] for p in LAYOUTS.values()))
    y = to.empty(rows, w.rows)
    laid_out: dict[str, tuple[NDArray[np.uint8], int, int]] = {}
    before: list[list[int]] = []
    jobs: list[list[int]] = []
    start = 0
    for p in w.parts:
        name = activations(p.form, w.precision)
        layout = LAYOUTS[name]
        if name not in laid_out:
            tile = max(layout.widths[which], layout.halves)
            per, size = tile // layout.halves, layout.tile_size(K, tile)
            tiles = -(-T // per)
            x = to.empty(tiles * size, dtype=np.uint8)
            laid_out[name] = x, size, tiles
            where = (*rows_of(x_TI), T, K, tile, at(x), size)
            before.append(layout.kernel.job(tiles, share(tiles), *where, barrier=False, rows=T, rows_per_item=per))
        x, size, tiles = laid_out[name]
        kernel = getattr(p.form, layout.products)[which]
        blocks = -(-p.rows // LANES)
        arguments = (at(p.data), p.size, at(x), size, at(y) + 4 * start, y.strides[0], p.rows, K, tiles)
        # Where a chunk begins, no weights have been asked for ahead. That costs one token a microsecond.
        how = {"shrink": True, "barrier": False, "weights": (at(p.data), p.data.size)}
        jobs.append(kernel.job(blocks, share(blocks), *arguments, **how))
        start += p.rows
    before[-1][BARRIER] = jobs[-1][BARRIER] = True
    to.submit(*before, *jobs)
    return y[:T]
