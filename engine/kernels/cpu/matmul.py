"""Products of a few rows of activations with stacked matrices: which kernels, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ....quant.tensor import QTensor
from . import product, quantize
from .packed import Packed, pack
from .replay import empty, submit
from .simd import LANES
from .team import BARRIER, Kernel, at, rows_of, share


@dataclass(frozen=True, slots=True)
class Stack:
    """Packed matrices of one input width K, whose rows follow one another.

    integer: the products are int8's, for the formats that ggml has such products for; the others keep float32's.
    """

    parts: tuple[Packed, ...]
    rows: int
    K: int
    integer: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """How activations lie for a product: the kernel that writes it, and the columns of a block (1: not quantised)."""

    kernel: Kernel
    block: int

    def tile_size(self, K: int, tile: int) -> int:
        return quantize.tile_size(K, tile, self.block) if self.block > 1 else product.tile_size(K, tile)


LAYOUTS = {"F32": Layout(product.lay_out, 1), "Q8_0": Layout(quantize.Q8_0, 32), "Q8_K": Layout(quantize.Q8_K, 256)}


def activations(form: ModuleType, integer: bool) -> str:
    """What a packed form's products take: a name of LAYOUTS."""
    return getattr(form, "ACTIVATIONS", "F32") if integer else "F32"


def kernels_for(form: ModuleType, precision: str) -> tuple[Kernel, ...]:
    """All kernels that matrices of this packed form need."""
    name = activations(form, precision == "int8")
    rearrange = (form.REARRANGE,) if hasattr(form, "REARRANGE") else ()
    return *rearrange, LAYOUTS[name].kernel, *(form.F32 if name == "F32" else form.INT8)


def stack(parts: Sequence[QTensor], precision: str) -> Stack:
    """Matrices [O, K] of one K, packed."""
    packed = tuple(pack(p) for p in parts)
    return Stack(packed, sum(p.rows for p in packed), packed[0].K, precision == "int8")


def linear(x_TI: NDArray[np.float32], w: Stack) -> NDArray[np.float32]:
    """x W^T, [T, O]: x is laid out as the parts want it, then all parts are computed side by side."""
    T, K = x_TI.shape
    tile = product.TILE if T > 1 else 1
    tiles = -(-T // tile)
    y = empty(tiles * tile, w.rows)
    laid_out: dict[str, NDArray[np.uint8]] = {}
    before: list[list[int]] = []
    jobs: list[list[int]] = []
    start = 0
    for p in w.parts:
        name = activations(p.form, w.integer)
        size = LAYOUTS[name].tile_size(K, tile)
        if name not in laid_out:
            x = laid_out[name] = empty(tiles * size, dtype=np.uint8)
            arguments: tuple[int, ...] = (*rows_of(x_TI), T, K, tile, at(x), size)
            lay_out = LAYOUTS[name].kernel.job
            before.append(lay_out(tiles, share(tiles), *arguments, barrier=False, rows=T, rows_per_item=tile))
        kernel = (p.form.F32 if name == "F32" else p.form.INT8)[T > 1]
        blocks = -(-p.rows // LANES)
        arguments = (at(p.data), p.size, at(laid_out[name]), size, at(y) + 4 * start, y.strides[0], p.rows, K, tiles)
        # Where a chunk begins, no weights have been asked for ahead. That costs one token a microsecond.
        how = {"shrink": T == 1, "barrier": False, "weights": (at(p.data), p.data.size)}
        jobs.append(kernel.job(blocks, share(blocks), *arguments, **how))
        start += p.rows
    before[-1][BARRIER] = jobs[-1][BARRIER] = True
    submit(*before, *jobs)
    return y[:T]
